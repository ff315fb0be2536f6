"""A character model of Shakespeare's 38 plays: the default, three minutes on two CPU cores.

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
    config.model.cell = "gru"  # two gates decide what to keep; the chapter's "elman" ends 0.2 bits worse
    config.model.num_hiddens = 256  # units; 192 and 320 ended 0.01 bits worse in the same time
    config.batch_size = 32  # streams; 64 of half the length end 0.02 bits worse
    config.segment_length = 64  # tokens that the gradient looks back
    config.partition = "sequential"  # carries the state from segment to segment
    config.steps = 6000  # updates: 12 million characters, not quite three times the text
    config.optimizer.name = "adam"  # learns fastest per step here
    config.optimizer.learning_rate = 8e-3  # half of it ends 0.07 bits worse, half as much again 0.01
    config.optimizer.schedule = "cosine"  # falls to zero at the end, which settles the last 0.1 bits
    config.optimizer.warmup_steps = 100  # updates; lets so large a rate start safely
    config.optimizer.clip_norm = 1.0  # the chapter's; it acts mostly in the first steps
    config.log_every = 50  # updates: every second or two
    config.eval_every = 400  # updates: a sample every ten seconds
    config.eval_tokens = 100_000  # of the validation text, enough to find the best checkpoint; the end reads all
    config.save_every = 1000  # updates; each new best is saved as well
    config.seed = 0  # another number is another run of the same experiment
    return config
