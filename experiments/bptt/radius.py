"""Gradients that vanish or explode from the start: W_hh of spectral radius 0.5, 1 or 1.5.

    python run.py --config=experiments/bptt/radius.py
    python run.py --config=experiments/bptt/radius.py --config.model.initial_radius=0.5 --workdir=runs/radius-0.5
    python run.py --config=experiments/bptt/radius.py --config.model.initial_radius=1.5 --workdir=runs/radius-1.5
    python run.py inspect --workdir=runs/radius-1.5

To inspect the start of training, use --config.steps=1 and another --workdir. Results: docs/bptt.md.
Without a network, give the text: --config.corpus.path=timemachine.txt
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "time_machine"  # the book's text
    config.corpus.normalize = "letters"  # as in the book: 28 entries
    config.corpus.valid_fraction = 0.1  # 17 000 characters
    config.corpus.test_fraction = 0.1  # the same
    config.model.cell = "elman"  # as in the chapter: gradients are powers of W_hh, apart from tanh
    config.model.num_hiddens = 256  # units
    config.model.initial_radius = 1.0  # W_hh starts as a random orthogonal matrix times this
    config.segment_length = 64  # tokens; enough for 0.5 and 1.5 to this power to matter
    config.optimizer.clip_norm = 1.0  # without it a radius of 1.5 diverges in the first steps
    config.optimizer.learning_rate = 1e-3  # for Adam
    config.steps = 2000  # updates: half a minute on two cores
    config.log_every = 20  # updates; often, so that the clipping plot shows the start
    return config
