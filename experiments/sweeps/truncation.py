"""How far back must the gradient go? Segments of τ steps, and randomized truncation that passes on with probability π.

    python run.py sweep --config=experiments/sweeps/truncation.py

All with the same number of updates and tokens, three seeds each. docs/sweeps.md has the results.
"""

from rnn_lm import default_config, sweeps


def sweep():
    segments = sweeps.product(
        sweeps.choice("truncation.kind", ["segment"]),
        sweeps.choice("truncation.steps", [1, 2, 4, 8, 16, 32]),  # τ: steps that the gradient goes back at most
    )
    randomized = sweeps.product(
        sweeps.choice("truncation.kind", ["randomized"]),
        sweeps.choice("truncation.keep_probability", [0.5, 0.75, 0.875, 0.9375]),  # π: 1/(1 − π) steps in the mean
    )
    # The first is the config as it stands: full backpropagation through each window.
    return sweeps.product(sweeps.chain([{}], segments, randomized), sweeps.seeds(3))


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # comes with a package
    config.corpus.max_tokens = 1_000_000  # its first characters, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters
    config.corpus.test_fraction = 0.01  # the same
    config.model.cell = "gru"  # remembers further than an Elman cell, so truncation costs it more
    config.model.num_hiddens = 64  # units
    config.batch_size = 32  # streams
    config.segment_length = 64  # tokens: what "full" means here
    config.steps = 1500  # updates: 3 million characters, the same for every strategy
    config.optimizer.learning_rate = 8e-3  # of adam; of 0.001 to 0.128 among the best for this model
    config.optimizer.schedule = "cosine"  # falls to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.optimizer.clip_norm = 1.0  # the chapter's; randomized truncation needs it most
    config.eval_every = 500  # updates
    config.eval_tokens = 0  # all of the validation text
    config.save_every = 500  # updates: what a kill can cost
    return config
