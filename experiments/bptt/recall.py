"""A task with a known lag of 10: a loss that looks back 10 steps learns it, one that looks back 6 cannot.

    python run.py --config=experiments/bptt/recall.py
    python run.py --config=experiments/bptt/recall.py --config.truncation.steps=6 --workdir=runs/recall-6

Lines such as "CabcdefghiC": 0.173 nats a character for a model that remembers the capital, 0.347 for one that does not.
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "recall"  # made up: 20 000 lines, eight capitals
    config.model.cell = "gru"  # an Elman cell learns it too, in more steps
    config.model.num_hiddens = 64  # units; three bits are to be kept
    config.segment_length = 24  # tokens: two lines
    config.truncation.kind = "window"  # each loss looks back the same number of steps
    config.truncation.steps = 10  # the lag: from the step that is to say the capital to the one that read it
    config.steps = 1000  # updates, half a minute on two cores
    config.optimizer.learning_rate = 1e-2  # of adam
    config.optimizer.schedule = "cosine"  # falls to zero at the last step
    config.optimizer.warmup_steps = 50  # updates
    config.eval_every = 250  # updates
    return config
