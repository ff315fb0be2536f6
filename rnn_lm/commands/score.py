"""Rank continuations of a prompt by bits per character: python run.py score --workdir=DIR --prompt=P --continuation=A

Prints a table on a terminal, elsewhere a JSON line for each, the fewest bits per character first: "rank",
"continuation", "log_prob" (natural logarithm), "bits", "bits_per_char", "perplexity" (per token) and "comparable":
whether the tokens can be joined back into exactly the text, so that bits per character compare with other models'.
With --surprise it also shows the bits of each token: in colour on a terminal, elsewhere as "surprise", a list of
[token, bits].
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnn_lm.commands.flags import FlagValues, check_output, define, define_mix_flag, define_text_flags, workdir_of
from rnn_lm.commands.screen import Column, json_line, number, on_terminal, paragraph, table
from rnn_lm.errors import UserError
from rnn_lm.files import Json, path_of

if TYPE_CHECKING:
    import numpy as np


def define_flags(flags: FlagValues) -> None:
    define_text_flags(flags, "whose lines are continuations")
    define(flags, "prompt", None, "the text before (default: a line end, or the most frequent token)")
    define(flags, "continuation", [], "a text that may follow the prompt")
    define(flags, "surprise", False, "show the bits of each token")
    define(flags, "html", None, "write a web page with the bits of each token to this file")
    define(flags, "force", False, "replace the --html file if it exists")
    define_mix_flag(flags)


def run(flags: FlagValues) -> str:
    workdir = workdir_of(flags)
    if flags.prompt == "":
        raise UserError("--prompt is empty; leave it out, or give at least one character")
    if "" in flags.continuation:
        raise UserError("--continuation is empty; give at least one character")
    if flags.html == "":
        raise UserError("--html is empty; give a file, such as --html=surprise.html")
    page = path_of(flags.html) if flags.html else None
    if page is not None:
        check_output(page, force=flags.force)
    if not flags.continuation and not flags.text:
        raise UserError('--continuation is missing; for example --continuation="outside" --continuation="banana tree"')

    from rnn_lm.commands.surprise import in_page, in_terminal
    from rnn_lm.commands.texts import check_known
    from rnn_lm.data.texts import lines_of, read_files
    from rnn_lm.data.vocabulary import characters_after, joined, readable, tokenize
    from rnn_lm.files import write_text
    from rnn_lm.inference.score import score
    from rnn_lm.runs.load import load

    model, vocabulary = load(workdir, mix=flags.mix)
    prompt, before = vocabulary.prompt_of(flags.prompt)
    if not len(before):
        raise UserError(f"--prompt={prompt!r} has no tokens; give at least one")
    lines = lines_of(read_files(*flags.text)) if flags.text else []
    encoded = {text: vocabulary.encode(text) for text in [*flags.continuation, *lines]}
    for text in flags.continuation:
        if not len(encoded[text]):
            raise UserError(f"--continuation={text!r} has no tokens; give at least one")
    continuations = [text for text in [*flags.continuation, *lines] if len(encoded[text])]
    if not continuations:
        raise UserError(f"--text={flags.text[0]} has only empty lines; give a text to score")
    check_known(vocabulary, prompt, *continuations, name="the text", strict=flags.strict)
    last = vocabulary.tokens_of(before[-1:])
    scored = []
    is_shown = flags.surprise or page is not None
    for text, nats in zip(continuations, score(model, before, [encoded[text] for text in continuations]), strict=True):
        tokens = tokenize(text, vocabulary.kind, vocabulary.normalize)
        row = _row(text, nats, characters_after(last, tokens)) | {"comparable": joined(tokens) == text}
        bits = nats / math.log(2)
        # A pair for each token takes much memory.
        surprise = [*zip(map(readable, tokens), bits.tolist(), strict=True)] if is_shown else []
        scored.append((row, surprise))
    scored.sort(key=lambda item: item[0]["bits_per_char"])
    rows: list[Json] = [{"rank": rank} | row for rank, (row, _) in enumerate(scored, start=1)]
    surprises = [surprise for _, surprise in scored]
    if page is not None:
        write_text(page, in_page(prompt, rows, surprises, " " if vocabulary.kind == "word" else ""))
    if on_terminal():
        return in_terminal(rows, surprises) if flags.surprise else describe(rows)
    if flags.surprise:
        rows = [row | {"surprise": surprise} for row, surprise in zip(rows, surprises, strict=True)]
    return "\n".join(map(json_line, rows))


def _row(text: str, nats: "np.ndarray", characters: int) -> Json:
    from rnn_lm.inference.evaluate import figures

    total = float(nats.sum())
    of_text = figures(total / len(nats), len(nats) / characters)
    return {
        "continuation": text,
        "log_prob": -total,
        "bits": total / math.log(2),
        "bits_per_char": of_text["bits_per_char"],
        "perplexity": of_text["perplexity"],
    }


def describe(rows: Sequence[Json]) -> str:
    """The ranking for a terminal."""
    columns = [Column("rank"), Column("bits per character"), Column("bits", 2), Column("perplexity", 1)]
    shown = [
        (str(row["rank"]), number(row["bits_per_char"], 3), number(row["bits"], 2), number(row["perplexity"], 2))
        for row in rows
    ]
    texts = [row["continuation"] for row in rows]
    return "\n".join(
        [
            table([*columns, Column("continuation", words=True)], [(*a, b) for a, b in zip(shown, texts, strict=True)]),
            "",
            paragraph("The fewer bits, the likelier the text. The perplexity is per token."),
        ]
    )
