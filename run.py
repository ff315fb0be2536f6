"""The one command: `python run.py --config=FILE` trains, `python run.py VERB --help` tells the rest."""

import sys

from rnn_lm.commands import main

if __name__ == "__main__":
    sys.exit(main())
