"""A search: 32 trials that Optuna draws, each knowing how the ones before it ended. About two minutes on two cores.

    python run.py sweep --config=experiments/sweeps/search.py
    python run.py sweep --config=experiments/sweeps/search.py --config.sweep.trials=64   # goes on to 64

Started several times at once, also on several machines that share the folder runs/, the command searches together:
docs/scaling.md. It needs Optuna: pip install 'rnn_lm[search]'.
"""

from rnn_lm import default_config


def search(trial):
    """What a trial changes: names are those of config fields, `trial` is an optuna.Trial."""
    return {
        "model.cell": trial.suggest_categorical("model.cell", ["elman", "gru", "lstm"]),
        "optimizer.learning_rate": trial.suggest_float("optimizer.learning_rate", 1e-3, 0.3, log=True),  # by its log
        "optimizer.clip_norm": trial.suggest_float("optimizer.clip_norm", 0.03, 3.0, log=True),  # of the gradient
        "optimizer.warmup_steps": trial.suggest_int("optimizer.warmup_steps", 0, 200, step=20),  # updates
        "model.initial_radius": trial.suggest_float("model.initial_radius", 0.3, 1.5),  # of W_hh at the start
    }


def get_config():
    config = default_config()
    config.corpus.source = "shakespeare"  # ships with a package
    config.corpus.max_tokens = 1_000_000  # the first characters only, so that n-grams are counted in seconds
    config.corpus.valid_fraction = 0.01  # 50 000 characters, enough to resolve 0.01 nats
    config.corpus.test_fraction = 0.01  # the same
    config.model.num_hiddens = 64  # units; small, because there are many models to train
    config.batch_size = 32  # rows (sequences)
    config.segment_length = 32  # tokens
    config.steps = 1000  # updates
    config.optimizer.schedule = "cosine"  # decays to zero at the last step, so that all rates settle
    config.eval_every = 250  # updates; after each a trial may be pruned
    config.eval_tokens = 20_000  # of the validation text in those; the final figure reads all of it
    config.save_every = 500  # updates: the most that a kill can cost
    config.sweep.trials = 32  # in all
    config.sweep.sampler = "tpe"  # draws near good trials; random and grid do not
    config.sweep.pruner = "median"  # stops trials that are worse than half of the others at the same step
    return config
