"""Gradients that vanish or explode from the start: W_hh of spectral radius 0.5, 1 or 1.5.

    python run.py --config=experiments/bptt/radius.py
    python run.py --config=experiments/bptt/radius.py --config.model.initial_radius=0.5 --workdir=runs/radius-0.5
    python run.py --config=experiments/bptt/radius.py --config.model.initial_radius=1.5 --workdir=runs/radius-1.5
    python run.py inspect --workdir=runs/radius-1.5

With --config.steps=1, in a --workdir of its own, `inspect` sees the start. docs/bptt.md has the results.
Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text
    config.corpus.normalize = "letters"  # the book's: 28 entries
    config.corpus.valid_fraction = 0.1  # 17 000 characters
    config.corpus.test_fraction = 0.1  # the same
    config.model.cell = "elman"  # the chapter's: nothing stands between the gradient and the powers of W_hh but tanh
    config.model.num_hiddens = 256  # units
    config.model.initial_radius = 1.0  # of W_hh, a random orthogonal matrix times this
    config.segment_length = 64  # tokens; long enough that 0.5 and 1.5 to that power mean something
    config.optimizer.clip_norm = 1.0  # without it 1.5 does not survive its first steps
    config.optimizer.learning_rate = 1e-3  # of adam
    config.steps = 2000  # updates, half a minute on two cores
    config.log_every = 20  # updates, so that the plot of clipping shows the start
    return config
