"""The blocks of docs/library.md run as they stand; the trackers are stand-ins that keep what they are given."""

import re
import sys
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

import rnn_lm
from tests.conftest import small_config

PAGE = (Path(rnn_lm.__file__).parent.parent / "docs" / "library.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def block(words):
    [found] = [text for text in BLOCKS if words in text]
    return found


def test_the_hidden_states_of_the_page(run_folder):
    model, vocabulary = rnn_lm.load(run_folder)
    names = {"model": model, "ids": jnp.asarray(vocabulary.encode("the time"))[:, None]}
    exec(block("return_carries=True"), names)
    _, logits = model(model.initialize_carry(1), names["ids"])
    np.testing.assert_array_equal(names["logits"], logits)
    np.testing.assert_array_equal(names["states"]["h"][0], names["h"])
    assert names["nats"].shape == (7, 1)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_the_trackers_of_the_page(tracker, text_file, tmp_path, monkeypatch):
    calls = []

    class Tracker(ModuleType):
        def start_run(self):
            return open("/dev/null")  # a context

        def __getattr__(self, name):
            return lambda *arguments, **options: calls.append((name, arguments, options))

    monkeypatch.setitem(sys.modules, tracker, Tracker(tracker))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("numbers_of(line):"), names)
    exec(block(f"import {tracker}"), names | {"config": small_config(text_file, steps=10)})
    logged = [(arguments[0], options["step"]) for name, arguments, options in calls if name.startswith("log")]
    assert len(logged) == len((tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()) == 2
    assert {name for values, _ in logged for name in values} >= {"train/nll", "valid/nll", "train/learning_rate"}
    assert [step for _, step in logged] == [10, 10]


def test_the_optimizer_of_the_page(text_file, tmp_path, monkeypatch):
    registered = {}
    monkeypatch.setattr("rnn_lm.plugins.OPTIMIZERS", registered)
    monkeypatch.setattr("rnn_lm.program.OPTIMIZERS", registered)
    monkeypatch.setitem(rnn_lm.config.REGISTERED, "optimizer.name", registered)
    config = small_config(text_file, steps=10)
    exec(block("register_optimizer"), {"rnn_lm": rnn_lm, "config": config})
    assert config.optimizer.name == "lion" and rnn_lm.train(config, tmp_path / "run")["steps"] == 10
