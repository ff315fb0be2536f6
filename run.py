"""The one command: `python run.py --config=FILE` trains, `python run.py --help` lists the rest."""

from rnn_lm.__main__ import main

if __name__ == "__main__":
    main()
