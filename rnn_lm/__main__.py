"""Entry point: what has to be done before the slow imports."""

import sys

from rnn_lm.cache import keep_programs
from rnn_lm.interrupts import exit_on_signals


def main() -> None:
    """Runs the command line of this process."""
    exit_on_signals()
    keep_programs()
    from rnn_lm.commands import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
