"""What all tests share: checked shapes, a small text, and one small run that is trained once."""

# ruff: noqa: E402 — the modules whose shapes are to be checked must be imported under the hook, before all others

import os
import signal
import sys
from pathlib import Path

from rnn_lm.cache import keep_programs

# A test compiles much and computes little: less work for LLVM saves a fifth of the time.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
# What one test has compiled, other tests, processes and later runs take from there: a quarter of the time.
keep_programs(Path(".pytest_cache").absolute())

import absl.logging
import jaxtyping
import pytest

CHECKED = ["rnn_lm.nn", "rnn_lm.keys", "rnn_lm.data.batches", "rnn_lm.inference", "rnn_lm.training.optimizers",
           "rnn_lm.analysis"]  # fmt: skip
with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    import rnn_lm.analysis.laboratory
    import rnn_lm.compression.compress
    import rnn_lm.data.batches
    import rnn_lm.inference.evaluate
    import rnn_lm.inference.generate
    import rnn_lm.inference.mixture
    import rnn_lm.inference.score
    import rnn_lm.nn.recurrence
    import rnn_lm.sweeps.rivals
    import rnn_lm.training.optimizers  # noqa: F401

import jax
import numpy as np

from rnn_lm.config import complete_config
from rnn_lm.training.train import train


@pytest.fixture(autouse=True)
def _hooks_stay():
    """Commands set signal handlers and quieten libraries; tests leave nothing of it behind."""
    hook, verbosity = sys.unraisablehook, absl.logging.get_verbosity()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    sys.unraisablehook = hook
    absl.logging.set_verbosity(verbosity)


@pytest.fixture
def strict_promotion():
    """No silent change of dtype."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def make_text(lines: int = 400, seed: int = 0) -> str:
    """Lines of made-up sentences: predictable enough to be learned."""
    rng = np.random.default_rng(seed)
    words = "the time traveller smiled and spoke of a machine that no one there had seen before".split()
    return "\n".join(" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(lines)) + "\n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


def small_config(text_file, **changes):
    """A config that trains in a second or two; changes are dotted field names with two underscores for the dot."""
    given = {
        "steps": 60,
        "batch_size": 4,
        "segment_length": 8,
        "log_every": 10,
        "eval_every": 20,
        "eval_tokens": 500,
        "save_every": 25,
        "corpus": {"path": str(text_file), "valid_fraction": 0.1, "test_fraction": 0.1},
        "model": {"num_hiddens": 16},
        "optimizer": {"learning_rate": 1e-2},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = given
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return complete_config(given)


# A config file for the verb sweep; takes steps, trials and the path of a text.
SEARCH_FILE = """
def get_config():
    return {{"batch_size": 4, "segment_length": 8, "steps": {steps}, "eval_every": 50, "save_every": 50,
             "model": {{"num_hiddens": 8}}, "sweep": {{"trials": {trials}, "pruner": "none"}},
             "corpus": {{"path": {path!r}, "valid_fraction": 0.1, "test_fraction": 0.1}}}}

def search(trial):
    return {{"optimizer.learning_rate": trial.suggest_float("rate", 1e-3, 0.1, log=True)}}
"""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, text_file):
    """The folder of a finished run. Tests read it; those that write copy it first."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    train(small_config(text_file), workdir)
    return workdir


@pytest.fixture
def figures(monkeypatch):
    """The figures that a test draws, in order."""
    from matplotlib.figure import Figure

    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (savefig(figure, *a, **k), saved.append(figure)))
    return saved
