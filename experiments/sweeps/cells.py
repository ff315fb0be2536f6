"""Elman, GRU and LSTM with the same number of parameters, each at three learning rates, three seeds each.

    python run.py sweep --config=experiments/sweeps/cells.py

Gates cost parameters, so with as many of them the gated cells have fewer units. docs/sweeps.md has the results.
"""

from rnn_lm import default_config, sweeps


def sweep():
    # With 81 characters: (G + 1) · 81 · H of what is read and predicted, G · H² of the recurrence, and biases.
    cells = sweeps.zip(
        sweeps.choice("model.cell", ["elman", "gru", "lstm"]),  # G is 1, 3, 4
        sweeps.choice("model.num_hiddens", [245, 136, 115]),  # 100 000 parameters each, within 1 %
    )
    rates = sweeps.choice("optimizer.learning_rate", [8e-3, 1.6e-2, 3.2e-2])  # each cell has a best one of its own
    return sweeps.product(cells, rates, sweeps.seeds(3))


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # comes with a package
    config.corpus.max_tokens = 1_000_000  # its first characters, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters
    config.corpus.test_fraction = 0.01  # the same
    config.batch_size = 32  # streams
    config.segment_length = 64  # tokens; long enough that gates have something to remember
    config.steps = 1500  # updates: 3 million characters, three passes
    config.optimizer.schedule = "cosine"  # falls to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.optimizer.clip_norm = 1.0  # the chapter's
    config.eval_every = 500  # updates
    config.eval_tokens = 0  # all of the validation text
    config.save_every = 500  # updates: what a kill can cost
    return config
