"""Elman, GRU and LSTM with the same number of parameters, each at three learning rates, three seeds each.

    python run.py sweep --config=experiments/sweeps/cells.py

Gates cost parameters: with the same number of them, gated cells have fewer units. Results: docs/sweeps.md.
"""

from rnn_lm import default_config, sweeps


def sweep():
    # With 68 characters: (G + 1) · 68 · H for input and output, G · H² for the recurrence, plus biases.
    cells = sweeps.zip(
        sweeps.choice("model.cell", ["elman", "gru", "lstm"]),  # G is 1, 3, 4
        sweeps.choice("model.num_hiddens", [245, 136, 115]),  # 93 000 parameters each, within 1 %
    )
    rates = sweeps.choice("optimizer.learning_rate", [8e-3, 1.6e-2, 3.2e-2])  # the best one differs between cells
    return sweeps.product(cells, rates, sweeps.seeds(3))


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # ships with a package
    config.corpus.max_tokens = 1_000_000  # the first characters only, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters
    config.corpus.test_fraction = 0.01  # the same
    config.batch_size = 32  # rows (sequences)
    config.segment_length = 64  # tokens; long enough to give gates something to remember
    config.steps = 1500  # updates: 3 million characters, three passes
    config.optimizer.schedule = "cosine"  # decays to zero at the last step
    config.optimizer.warmup_steps = 100  # updates
    config.optimizer.clip_norm = 1.0  # as in the chapter
    config.eval_every = 500  # updates
    config.eval_tokens = 0  # all of the validation text
    config.save_every = 500  # updates: the most that a kill can cost
    return config
