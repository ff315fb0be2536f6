"""The shape of the package: which way imports go, and what is loaded when."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rnn_lm

ROOT = Path(rnn_lm.__file__).parent
# Tools, that any room but nn may use.
TOOLS = {
    "cache",
    "cores",
    "errors",
    "files",
    "interrupts",
    "keys",
    "members",
    "mesh",
    "processes",
    "plugins",
    "fields",
    "visible",
}
# Which rooms each one knows. A room is a folder, or a module beside them.
ARROWS = {
    "nn": set(),
    "data": set(),
    "ngram": set(),
    "plots": set(),
    "convert": {"data"},
    "mlp": {"nn"},
    "config": {"nn"},
    "inference": {"nn", "ngram"},
    "analysis": {"nn"},
    "compression": {"nn", "data", "inference"},
    "program": {"nn", "data", "mlp"},
    "runs": {"nn", "data", "ngram", "inference", "mlp", "config", "program", "convert"},
    "training": {"nn", "data", "ngram", "inference", "plots", "config", "program", "runs"},
    "sweeps": {"nn", "data", "ngram", "inference", "config", "program", "runs", "training"},
    "commands": {
        "data",
        "inference",
        "analysis",
        "compression",
        "plots",
        "convert",
        "config",
        "runs",
        "training",
        "sweeps",
    },
}
# Inside these a module knows only those that stand before it.
INSIDE = {
    "nn": ["initializers", "arrays", "truncation", "activations", "controls", "cell", "registry", "cells", "stack",
           "checks", "scan", "choice", "cpu", "gpu", "native", "fused", "window", "recurrence", "output", "models"],
    "runs": ["lock", "folder", "checkpoints", "origin", "record", "load", "save"],
    "training": ["tbptt", "optimizers", "step", "run", "memory", "progress", "baselines", "loop", "profile", "opening",
                 "finish", "train"],
    "sweeps": ["lists", "shared", "members", "results", "sweep", "storage", "study", "search", "rivals"],
}  # fmt: skip
CORE = {"nn", "program", "training.step", "training.loop", "training.optimizers"}
LATER = {"commands", "sweeps", "compression", "analysis", "plots", "convert"}
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path, *, also_for_checkers=False):
    """The modules that a module imports; those of ours by their full names."""
    tree = ast.parse(path.read_text())
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if not also_for_checkers and "TYPE_CHECKING" in ast.unparse(block.test):
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in MODULES else node.module


def room_and_module(name):
    _, room, *module = [*name.split("."), "", ""]
    return room, module[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room, module = room_and_module(name_of(path))
    if room not in ARROWS:
        return
    for imported in imports(path, also_for_checkers=True):
        if room == "nn":
            assert imported.split(".")[0] in {"jax", "flax", "jaxtyping", "rnn_lm"} | sys.stdlib_module_names
        if not imported.startswith("rnn_lm."):
            continue
        target, inner = room_and_module(imported)
        if target != room:
            known = ARROWS[room] | (TOOLS if room != "nn" else set())
            assert target in known, f"{path} imports {imported}"
        elif room in INSIDE and module and inner and module != inner:
            order = INSIDE[room]
            assert order.index(inner) < order.index(module), f"{path} imports {imported}"


def test_the_tools_know_no_room():
    for name in TOOLS:
        ours = {room_and_module(m)[0] for m in imports(MODULES[f"rnn_lm.{name}"]) if m.startswith("rnn_lm.")}
        assert ours <= TOOLS, name


def test_no_module_is_imported_in_a_circle_and_the_core_knows_no_later_room():
    graph = {name: {m for m in imports(path) if m in MODULES} - {"rnn_lm"} for name, path in MODULES.items()}
    graph["rnn_lm"] = set()  # loads lazily
    TopologicalSorter(graph).prepare()  # raises CycleError
    seen, left = set(), [name for name in MODULES if name.removeprefix("rnn_lm.").startswith(tuple(CORE))]
    while left:
        if (name := left.pop()) not in seen:
            seen.add(name)
            left += graph[name]
    assert not {name for name in seen if room_and_module(name)[0] in LATER}


def test_every_public_name_is_there():
    assert all(getattr(rnn_lm, name) is not None for name in rnn_lm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(rnn_lm, "nothing")  # noqa: B009


@pytest.mark.parametrize("statement", ["import rnn_lm", "import rnn_lm.commands.train, rnn_lm.commands.generate"])
def test_jax_is_not_loaded_before_it_is_needed(statement):
    code = f"import sys; {statement}; print([m for m in ('jax', 'flax', 'numpy', 'optax') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
