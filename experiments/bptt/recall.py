"""A task with a known lag of 10: learned if the loss looks back 10 steps, not if it looks back 6.

    python run.py --config=experiments/bptt/recall.py
    python run.py --config=experiments/bptt/recall.py --config.truncation.steps=6 --workdir=runs/recall-6

Lines such as "CabcdefghiC". A model that remembers the capital reaches 0.173 nats per character, others 0.347.
"""

from rnn_lm import default_config


def get_config():
    config = default_config()
    config.corpus.source = "recall"  # generated: 20 000 lines, eight capitals
    config.model.cell = "gru"  # an Elman cell learns it, too, in more steps
    config.model.num_hiddens = 64  # units; the task is to keep three bits
    config.segment_length = 24  # tokens: two lines
    config.truncation.kind = "window"  # every loss looks back the same number of steps
    config.truncation.steps = 10  # the lag: from predicting the capital back to reading it
    config.steps = 1000  # updates: half a minute on two cores
    config.optimizer.learning_rate = 1e-2  # for Adam
    config.optimizer.schedule = "cosine"  # decays to zero at the last step
    config.optimizer.warmup_steps = 50  # updates
    config.eval_every = 250  # updates
    return config
