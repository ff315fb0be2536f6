"""A character model of Shakespeare's 38 plays: the default, two minutes on two CPU cores.

python run.py --config=experiments/char.py
python run.py --config=experiments/char.py --config.corpus.path=FILE_OR_FOLDER --workdir=runs/mine
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # comes with a package, so a first run needs no network
    config.corpus.tokens = "char"  # the chapter's: no vocabulary to choose, no word unknown
    config.corpus.valid_fraction = 0.05  # about 250 000 characters, enough for 0.01 bits
    config.corpus.test_fraction = 0.05  # the same
    config.model.cell = "elman"  # the chapter's recurrent layer
    config.model.num_hiddens = 256  # units; more learns slower than it gains in two minutes
    config.batch_size = 128  # streams; 64 and 32 make slower use of two cores and end 0.02 and 0.05 bits worse
    config.segment_length = 32  # tokens; longer ones mean fewer updates in the same time
    config.partition = "sequential"  # carries the state from segment to segment
    config.steps = 3000  # updates: 12 million characters, not quite three times the text, 100 seconds on two cores
    config.optimizer.name = "adam"  # learns fastest per step here
    config.optimizer.learning_rate = 1.2e-2  # large batches take large rates; a third of it ends 0.1 bits worse
    config.optimizer.schedule = "cosine"  # falls to zero at the end, which settles the last 0.1 bits
    config.optimizer.warmup_steps = 100  # updates; lets so large a rate start safely
    config.optimizer.clip_norm = 1.0  # the chapter's; it acts mostly in the first steps
    config.log_every = 50  # updates: every second or two
    config.eval_every = 200  # updates: a sample every few seconds
    config.eval_tokens = 50_000  # of the validation text, enough to see progress; the end reads all of it
    config.save_every = 1000  # updates; each new best is saved as well
    config.seed = 0  # another number is another run of the same experiment
    return config
