"""Entry point: handles signals before the slow imports."""

import sys

from rnn_lm.interrupts import exit_on_signals


def main() -> None:
    """Runs the command line of this process."""
    exit_on_signals()
    from rnn_lm.commands import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
