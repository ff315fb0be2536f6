"""What the verbs show people: tables, paragraphs, commands and files that fit the terminal; JSON for programs."""

import io
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_lm.files import dumps
from rnn_lm.visible import visible

WIDTH = 79  # columns where the output is not a terminal
INDENT, GAP = 2, 2  # of a table: before it, between its columns
LONG_WORD = 20  # columns: longer words of a text may be cut where the table would be too wide
DIGITS = 8  # of the numbers in JSON: enough that exp(nll) is the perplexity to a millionth
NOT_COMPARABLE = (
    "Bits per character cannot be compared with other models': the tokens cannot be joined back into exactly the text "
    "(words lose repeated spaces, normalization loses more)."
)


def on_terminal() -> bool:
    """Whether people read the output; otherwise it is a file or another program."""
    return sys.stdout.isatty()


def width() -> int:
    """The columns of the terminal."""
    return max(shutil.get_terminal_size((WIDTH, 0)).columns, LONG_WORD) if on_terminal() else WIDTH


def program() -> str:
    """The name that this program was called by: `rnn-lm` or `python run.py`."""
    called = Path(sys.argv[0])
    module = called.name == "__main__.py" and called.parent.name == "rnn_lm"
    return "rnn-lm" if called.name == "rnn-lm" else "python -m rnn_lm" if module else "python run.py"


def number(value: float | None, digits: int) -> str:
    """A figure of a JSON file, where null is a number that is not finite."""
    return "infinite" if value is None else f"{value:.{digits}f}"


def json_line(value: Any) -> str:
    """One line of JSON, its numbers rounded to `DIGITS`."""
    return dumps(_rounded(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def paragraph(text: str, first: str = "", rest: str | None = None) -> str:
    """A text in lines that fit; they start with `first`, then with `rest` (default: as many spaces)."""
    rest = " " * len(first) if rest is None else rest
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # paths and flags stay whole
    return textwrap.fill(visible(text, keep="\n"), width(), initial_indent=first, subsequent_indent=rest, **options)


def command(*words: str, start: str | None = None) -> str:
    """A command to copy, of this program unless `start` is another. Where it is too long, backslashes continue it."""
    lines = [" " * INDENT + (program() if start is None else start)]
    for word in map(shlex.quote, words):
        word = visible(word)
        if len(lines[-1]) + len(word) + 3 > width():  # a space, and later " \"
            lines[-1] += " \\"
            lines.append(" " * 2 * INDENT + word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def listing(*files: Path | str) -> str:
    """The files that a verb wrote, one a line; those that do not exist are left out."""
    there = [visible(str(file)) for file in files if isinstance(file, str) or file.exists()]
    return "Files: " + "\n       ".join(there)


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers, to the right; or text of several `words`, to the left, which may be wrapped."""

    head: str
    drop: int = 0  # where the table is too wide, the column with the highest number goes first; 0: it stays
    words: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table that fits: heads and texts are wrapped, then columns are left out. A number is never broken."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    rows = [[visible(cell) for cell in row] for row in rows]
    least, most = [], []
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        words = max([cell_len(word) for cell in cells for word in cell.split()], default=0)
        most.append(max(map(cell_len, (column.head, *cells))))
        body = min(words, LONG_WORD) if column.words else max(map(cell_len, cells))
        least.append(max(body, *map(cell_len, _parts(column.head))))
    kept = list(range(len(columns)))

    def spare() -> int:
        return width() - INDENT - GAP * (len(kept) - 1) - sum(least[i] for i in kept)

    while spare() < 0 and any(columns[i].drop for i in kept):
        kept.remove(max(kept, key=lambda i: columns[i].drop))
    headed, left = any(column.head for column in columns), max(spare(), 0)
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="", show_header=headed)
    for i in kept:
        wide = least[i] + min(left, most[i] - least[i])
        left -= wide - least[i]
        head = columns[i].head if wide >= cell_len(columns[i].head) else " ".join(_parts(columns[i].head))
        grid.add_column(Text(head), width=wide, justify="left" if columns[i].words else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(row[i]) for i in kept))
    out = io.StringIO()
    Console(file=out, width=width() - min(spare(), 0), color_system=None).print(Padding(grid, (0, 0, 0, INDENT)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _parts(head: str) -> list[str]:
    """Where a head may be wrapped: `learning_rate` → `learning_`, `rate`."""
    return re.findall(r"[^\s_]*_|[^\s_]+", head) or [""]


def progress_bar():
    """A bar on stderr that goes away at the end; shown on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
