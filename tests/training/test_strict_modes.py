"""The training step under JAX's own checks."""

from contextlib import closing

import jax
import pytest

from rnn_lm.config import check_config
from rnn_lm.data.corpus import load_corpus
from rnn_lm.program import batches_of
from rnn_lm.training.loop import Trainer
from rnn_lm.training.run import Run
from tests.conftest import small_config

TRUNCATIONS = {
    "none": {},
    "segment": {"steps": 3},
    "window": {"steps": 3},
    "randomized": {"keep_probability": 0.5},
    "tbptt": {"steps": 8, "update_every": 4},
}


@pytest.mark.slow  # the checks take up to a minute a step
@pytest.mark.parametrize("kind", TRUNCATIONS)
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_a_step_leaks_nothing_draws_once_from_a_key_sends_nothing_unasked_and_has_no_nan(
    cell, kind, text_file, tmp_path
):
    changes = {f"truncation__{name}": value for name, value in TRUNCATIONS[kind].items()}
    layers = 2 if kind == "randomized" else 1  # two share a draw; one alone shows a leak of the window
    config = small_config(
        text_file, truncation__kind=kind, model__cell=cell, model__num_layers=layers, model__dropout=0.2, **changes
    )
    check_config(config)
    corpus = load_corpus(**config.corpus)
    run = Run(config, tmp_path / "run", corpus)
    with closing(Trainer([run], batches_of(run.program, corpus))) as trainer:
        with jax.checking_leaks(), jax.debug_key_reuse(True), jax.transfer_guard("disallow"), jax.debug_nans(True):
            for until in (2, 5):
                report = jax.device_get(trainer.dispatch(until))
    assert report["step"] == 5 and report["finite"]
