"""Plots as PNG files, drawn by matplotlib, an optional dependency."""

import sys
from importlib.util import find_spec


def can_draw() -> bool:
    """Whether matplotlib is installed. Says on stderr how to install it if not."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is missing (pip install 'rnn_lm[plots]')", file=sys.stderr)
        return False
    return True
