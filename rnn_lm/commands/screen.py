"""Screen output that the verbs share."""

import sys
from pathlib import Path


def number(value: float | None, digits: int) -> str:
    """A figure of a JSON file, where null is a number that is not finite."""
    return "infinite" if value is None else f"{value:.{digits}f}"


def listing(*files: Path | str) -> str:
    """The files that a verb wrote, one a line."""
    return "Files: " + "\n       ".join(map(str, files))


def progress_bar():
    """A bar on stderr that goes away at the end; shown on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
