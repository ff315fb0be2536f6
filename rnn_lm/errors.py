"""Exceptions that commands turn into exit codes."""

import difflib
from collections.abc import Iterable


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


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown cell 'elmen'; did you mean 'elman'? known: elman, gru`."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {what} {name!r};{hint} known: {', '.join(known)}")
