"""Shared by `compress` and `decompress`: flags, checks of IN and OUT, progress."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BufferedIOBase
from pathlib import Path

from rnn_lm.commands.flags import FlagValues, check_output, define
from rnn_lm.commands.screen import json_line, number, on_terminal, paragraph, progress_bar
from rnn_lm.errors import UserError
from rnn_lm.files import Json, replacing, temporary_name
from rnn_lm.interrupts import Stopped, deferred_signals


def define_file_flags(flags: FlagValues) -> None:
    define(flags, "workdir", None, "the folder of a trained run")
    define(flags, "force", False, "replace OUT if it exists")


def check(source: Path, target: Path, *, force: bool) -> None:
    """Raises UserError if IN cannot be read, OUT cannot be written, or the range coder is not installed."""
    if not source.is_file():
        raise UserError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    for taken in (target, temporary_name(target)):
        if taken.exists() and source.samefile(taken):
            raise UserError(f"{taken} is IN and would be overwritten; give another OUT")
    check_output(target, force=force)
    if find_spec("constriction") is None:
        raise UserError("compression needs the package constriction: pip install 'rnn_lm[compression]'")


@contextmanager
def opened(
    source: Path, target: Path, *, what: str, total: int
) -> Iterator[tuple[BufferedIOBase, BufferedIOBase, Callable[[int], None]]]:
    """Opens IN and OUT. Yields both, and a function that advances a progress bar by a number of bytes, of `total`.

    OUT appears only if all goes well. A signal ends the command when the function is next called.
    """
    with deferred_signals() as pending, progress_bar() as bar, source.open("rb") as given, replacing(target) as written:
        task = bar.add_task(what, total=total)

        def advance(size: int) -> None:
            if pending.signum:
                raise Stopped(pending.signum, "stopped; nothing was written")
            bar.advance(task, size)

        yield given, written, advance
        advance(0)


def described(result: Json) -> str:
    """The sizes, in sentences on a terminal."""
    if not on_terminal():
        return json_line(result)
    before, after = result["input_bytes"], result["output_bytes"]
    share = f" ({after / before:.1%})" if before else ""
    sizes = f"{before:,} bytes became {after:,}{share}."
    if math.isfinite(result["bits_per_char"]):  # there are characters
        bits, model = number(result["bits_per_char"], 3), number(result["model_bits_per_char"], 3)
        sizes += f" The archive has {bits} bits per character; the model's probabilities promise {model}."
    return paragraph(sizes)
