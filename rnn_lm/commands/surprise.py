"""A text with the bits of each token, on a terminal or as a web page."""

import html
import io
import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from rnn_lm.commands.screen import width
from rnn_lm.files import Json
from rnn_lm.visible import visible

MOST = 10.0  # bits; more are the same red
Surprise = Sequence[tuple[str, float]]  # a text's tokens and their bits


def in_terminal(rows: Sequence[Json], surprises: Sequence[Surprise]) -> str:
    """Tokens above their bits, in colour; each is as wide as it needs, at most a line."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", highlight=False, width=width())
    for row, surprise in zip(rows, surprises, strict=True):
        console.print(Text(f"{row['rank']}. {row['bits_per_char']:.2f} bits per character, {row['bits']:.1f} in all"))
        tokens, bits = Text(), Text(style="dim")
        for token, cost in surprise:
            shown, below = Text(_alone(token)), f"{cost:.1f}"
            shown.truncate(console.width - 1, overflow="ellipsis")
            wide = max(4, shown.cell_len, len(below)) + 1
            if tokens.cell_len + wide > console.width:
                console.print(tokens, bits, sep="\n", no_wrap=True, overflow="crop")
                tokens, bits = Text(), Text(style="dim")
            shown.align("right", wide - 1)
            shown.pad_right(1)
            shown.stylize(_style(cost))
            tokens.append_text(shown)
            bits.append(f"{below:>{wide - 1}} ")
        console.print(tokens, bits, sep="\n", no_wrap=True, overflow="crop")
        console.print()
    return out.getvalue().rstrip("\n")


def _alone(token: str) -> str:
    """A token that can be seen alone: an accent gets a circle to stand on."""
    return ("◌" if unicodedata.category(token[:1] or " ").startswith("M") else "") + visible(token)


def _style(bits: float) -> Style:
    red, green, blue = _colour(bits)
    return Style(color="black", bgcolor=f"rgb({red},{green},{blue})")


def in_page(prompt: str, rows: Sequence[Json], surprises: Sequence[Surprise], between: str = "") -> str:
    """A self-contained page; a token's bits show on hover."""
    texts = [
        f"<h2>{row['rank']}. {row['bits_per_char']:.2f} bits per character "
        f"<small>{row['bits']:.1f} in all, perplexity {row['perplexity']:.3g}</small></h2>\n"
        f'<p class="text">{between.join(_span(token, bits) for token, bits in surprise)}</p>'
        for row, surprise in zip(rows, surprises, strict=True)
    ]
    scale = "".join(_span(f" {bits} ", bits) for bits in (0, 1, 2, 4, 6, 8, 10))
    return PAGE.format(prompt=html.escape(visible(prompt)), scale=scale, texts="\n".join(texts))


def _span(token: str, bits: float) -> str:
    title = f"{visible(token)}: {bits:.2f} bits, probability {2**-bits:.3g}"
    red, green, blue = _colour(bits)
    end = "\n" if token.endswith("\n") else ""  # keep the line break after its ⏎
    return (
        f'<span style="background:rgb({red},{green},{blue})" title="{html.escape(title)}">'
        f"{html.escape(token if token.isspace() and not end else visible(token))}</span>{end}"
    )


def _colour(bits: float) -> tuple[int, int, int]:
    """White at 0 bits, red at `MOST`."""
    share = min(max(bits / MOST, 0), 1)
    return 255, round(255 - 150 * share), round(255 - 190 * share)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Where the model is surprised</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif; background: #fff; color: #111 }}
h1 {{ font-size: 1.4rem }}
h2 {{ font-size: 1rem; margin: 1.5rem 0 .3rem }}
small {{ font-weight: normal; color: #555 }}
.text, code {{ font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }}
.text {{ font-size: 1.15rem; line-height: 1.6 }}
.text span:hover {{ outline: 2px solid #111 }}
</style>
<h1>Where the model is surprised</h1>
<p>The more bits a token costs (−log₂ of its probability), the redder it is. Hover over a token to see its bits.
The prompt is <code>{prompt}</code>.</p>
<p class="text">{scale} bits or more</p>
{texts}
</html>
"""
