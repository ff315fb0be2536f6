"""Plots as PNG files, drawn by matplotlib, an optional dependency."""

import sys
from functools import cache
from importlib.util import find_spec


def can_draw() -> bool:
    """Whether matplotlib is installed. Says on stderr how to install it if not, once."""
    if find_spec("matplotlib") is None:
        _say_what_is_missing()
        return False
    return True


@cache
def _say_what_is_missing() -> None:
    print("no plots: matplotlib is missing (pip install 'rnn_lm[plots]')", file=sys.stderr)
