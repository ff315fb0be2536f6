"""How far back must the gradient go? Segments of τ steps, and randomized truncation with probability π.

    python run.py sweep --config=experiments/sweeps/truncation.py

All have the same number of updates and tokens, and three seeds each. Results: docs/sweeps.md.
"""

from rnn_lm import default_config, sweeps


def sweep():
    segments = sweeps.product(
        sweeps.choice("truncation.kind", ["segment"]),
        sweeps.choice("truncation.steps", [1, 2, 4, 8, 16, 32]),  # τ: the gradient goes back at most this many steps
    )
    randomized = sweeps.product(
        sweeps.choice("truncation.kind", ["randomized"]),
        sweeps.choice("truncation.keep_probability", [0.5, 0.75, 0.875, 0.9375]),  # π: 1/(1 − π) steps in the mean
    )
    # The empty override is the config as it is: full backpropagation through each window.
    return sweeps.product(sweeps.chain([{}], segments, randomized), sweeps.seeds(3))


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # ships with a package
    config.corpus.max_tokens = 1_000_000  # the first characters only, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters
    config.corpus.test_fraction = 0.01  # the same
    config.model.cell = "gru"  # remembers longer than an Elman cell, so truncation costs it more
    config.model.num_hiddens = 64  # units
    config.batch_size = 32  # rows (sequences)
    config.segment_length = 64  # tokens; full backpropagation looks back this far
    config.steps = 1500  # updates: 3 million characters, the same for each kind of truncation
    config.optimizer.learning_rate = 8e-3  # for Adam; among the best from 0.001 to 0.128 for this model
    config.optimizer.schedule = "cosine"  # decays to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.optimizer.clip_norm = 1.0  # as in the chapter; randomized truncation needs it most
    config.eval_every = 500  # updates
    config.eval_tokens = 0  # all of the validation text
    config.save_every = 500  # updates: the most that a kill can cost
    return config
