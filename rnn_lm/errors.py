"""What can go wrong by the user's hand, and what ends a run."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line and says how; commands print it and exit with 2."""


class Unreadable(UserError):
    """A file that is missing or damaged, so it may be replaced."""


class NewerFormat(UserError):
    """A file that a newer version wrote: not damaged, so it may not be replaced."""


class Diverged(ArithmeticError):
    """Training met a loss or a gradient that is not finite; commands exit with 3."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown cell 'elmen'; did you mean 'elman'? Known: elman`."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {what} {name!r};{hint} known: {', '.join(known)}")
