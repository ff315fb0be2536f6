"""Plain numbers → PNG, by matplotlib, which is an extra."""

import sys
from importlib.util import find_spec


def can_draw() -> bool:
    """Whether matplotlib is installed; where it is not, a line on stderr says how to get it."""
    if find_spec("matplotlib") is None:
        print("no plots: pip install 'rnn_lm[plots]' draws them", file=sys.stderr)
        return False
    return True
