"""Eight learning rates, four seeds each: which is best, and is the difference more than chance?

    python run.py sweep --config=experiments/sweeps/learning_rate.py
    python run.py sweep --config=experiments/sweeps/learning_rate.py --config.model.cell=lstm --workdir=runs/lstm-rates

Results: docs/sweeps.md. `python run.py --config=...`, without `sweep`, trains one run with the config below as it is.
"""

from rnn_lm import default_config, sweeps


def sweep():
    rates = sweeps.choice("optimizer.learning_rate", [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128])
    return sweeps.product(rates, sweeps.seeds(4))


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # ships with a package
    config.corpus.max_tokens = 1_000_000  # the first characters only, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters, enough to resolve 0.01 nats
    config.corpus.test_fraction = 0.01  # the same
    config.model.cell = "gru"  # trains fast and well
    config.model.num_hiddens = 64  # units; small, because there are 32 models to train
    config.batch_size = 32  # rows (sequences)
    config.segment_length = 32  # tokens
    config.steps = 2000  # updates: 2 million characters, two passes
    config.optimizer.schedule = "cosine"  # decays to zero at the last step, so that all rates settle
    config.optimizer.warmup_steps = 100  # updates; gives large rates a chance
    config.optimizer.clip_norm = 1.0  # as in the chapter
    config.eval_every = 500  # updates
    config.eval_tokens = 0  # all of the validation text
    config.save_every = 500  # updates: the most that a kill can cost
    return config
