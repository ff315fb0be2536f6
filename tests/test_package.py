"""The shape of the package: which way imports go, and what is loaded when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_lm

ROOT = Path(rnn_lm.__file__).parent
LAYERS = ["nn", "data", "ngram", "inference", "training", "analysis", "commands"]
BESIDE = {"nn", "data", "ngram"}  # these do not know each other


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    layer = path.relative_to(ROOT).with_suffix("").parts[0]
    for module in imports(path):
        target = module.split(".")[1] if module.startswith("rnn_lm.") else None
        if layer in LAYERS and target in LAYERS and target != layer:
            assert LAYERS.index(target) < LAYERS.index(layer), f"{path} imports {module}"
            assert not {layer, target} <= BESIDE, f"{path} imports {module}"
        if layer == "nn":
            assert module.split(".")[0] in {"jax", "flax", "jaxtyping", "rnn_lm"} | sys.stdlib_module_names, (
                f"{path} imports {module}"
            )
            assert target in (None, "nn")


def test_every_public_name_is_there():
    assert all(getattr(rnn_lm, name) is not None for name in rnn_lm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(rnn_lm, "nothing")  # noqa: B009


@pytest.mark.parametrize("statement", ["import rnn_lm", "import rnn_lm.commands.train, rnn_lm.commands.generate"])
def test_jax_is_not_loaded_before_it_is_needed(statement):
    code = f"import sys; {statement}; print([m for m in ('jax', 'flax', 'numpy', 'optax') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
