"""Exceptions that commands turn into exit codes."""

import difflib
import os
import traceback
from collections.abc import Iterable

MAX_LISTED = 12  # known names that are listed beside a suggestion


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line and says how; commands exit with 2."""


class Unreadable(UserError):
    """A file that is missing or damaged, so it may be replaced."""


class NewerFormat(UserError):
    """A file written by a newer version: not damaged, so it must not be replaced."""


class NotFinite(UserError):
    """A model whose logits are not finite predicts nothing."""

    def __init__(self) -> None:
        super().__init__("the model predicts nothing: its logits are not finite; it diverged in training")


class Diverged(ArithmeticError):
    """A perplexity or a gradient of training is not finite; commands exit with 3."""


class Abandoned(Exception):
    """Another process of the job has ended; commands exit with 1."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown cell 'elmen'; did you mean 'elman'? known: elman, gru`."""
    known = list(known)
    close = nearest(name, known)
    hint = f"; did you mean {close!r}?" if close else ";"
    listed = f" known: {', '.join(known)}" if not close or len(known) <= MAX_LISTED else ""
    return UserError(f"unknown {what} {name!r}{hint}{listed}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def place_of(error: BaseException, path: str) -> str:
    """`conf.py:4: c.steps = 1 // 0`: the deepest line of the user's file `path` that an error came through, or ``."""
    if isinstance(error, SyntaxError) and _is_same(error.filename, path):
        number, line = error.lineno, error.text
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_same(frame.filename, path)]
        number, line = (frames[-1].lineno, frames[-1].line) if frames else (None, None)
    return f"{path}:{number}: {(line or '').strip()}" if number else ""


def reason_of(error: BaseException, path: str) -> str:
    """`ZeroDivisionError: division by zero`; the message alone if it is ours. `path` is the user's file."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        elsewhere = error.filename and not _is_same(error.filename, path)
        text = error.msg + (f" ({error.filename}, line {error.lineno})" if elsewhere else "")
    else:
        text = error.args[0] if error.args else ""  # str() would quote a KeyError's
    return f"{type(error).__name__}: {text}"


def _is_same(name: str | None, path: str) -> bool:
    return name is not None and os.path.abspath(name) == os.path.abspath(path)
