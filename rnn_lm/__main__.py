"""Where a command starts: signals first, everything else after."""

import sys

from rnn_lm.interrupts import exit_on_signals


def main() -> None:
    """Runs the command that the arguments of the process name."""
    exit_on_signals()
    from rnn_lm.commands import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
