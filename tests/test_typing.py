"""The package as type checkers see it, in a user's environment where it is installed."""

import ast
import inspect
import json
import os
import re
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import rnn_lm

ROOT = Path(rnn_lm.__file__).parent
SCRIPTS = [Path(__file__).parent / "typing" / name for name in ("correct.py", "mistakes.py")]
NAMES = "import rnn_lm\n" + "".join(f"reveal_type(rnn_lm.{name})\n" for name in rnn_lm.__all__)
# Severity, what is found: (file, line, message).
Found = list[tuple[str, tuple[str, int, str]]]


def test_what_checkers_read_is_what_is_loaded():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    read = {name.asname: node.module for node in block.body for name in node.names}
    assert read == rnn_lm._HOMES
    assert rnn_lm.__all__ == [*rnn_lm._HOMES]


@pytest.mark.parametrize("name", ["Cell", "ElmanCell", "GRUCell", "LSTMCell", "Stack", "RNNLM", "MLPLM"])
def test_constructors_name_their_parameters(name):
    parameters = [*inspect.signature(getattr(rnn_lm, name)).parameters.values()]
    assert len(parameters) >= 2
    assert not [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.annotation is p.empty]


def test_the_wheel_says_that_it_is_typed():
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert (ROOT / "py.typed").exists() and "py.typed" in settings["package-data"]["rnn_lm"]


def test_the_scripts_are_what_they_say():
    correct, mistakes = (path.read_text() for path in SCRIPTS)
    assert set(rnn_lm.__all__) <= set(re.findall(r"rnn_lm\.(\w+)", correct))
    assert len(marked(mistakes)) == 10 and not marked(correct)


def marked(script: str) -> list[int]:
    """The numbers of the lines that have a mistake."""
    return [number for number, line in enumerate(script.splitlines(), start=1) if line.endswith("  # error")]


@pytest.mark.slow
def test_the_correct_script_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, SCRIPTS[0], tmp_path], env=environment, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_checkers_find_the_mistakes_and_nothing_else(checker, tmp_path):
    for path in SCRIPTS:
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "names.py").write_text(NAMES)
    found = {"mypy": by_mypy, "pyright": by_pyright}[checker](tmp_path, user_python(tmp_path))
    errors = [place for severity, place in found if severity == "error"]
    expected = {("mistakes.py", line) for line in marked(SCRIPTS[1].read_text())}
    assert {place[:2] for place in errors} == expected, "\n".join(map(str, errors))
    types = [message for severity, (file, _, message) in found if file == "names.py" and severity != "error"]
    assert len(types) == len(rnn_lm.__all__)
    assert not [message for message in types if re.search(r'is "(Any|Unknown)"', message)]


def user_python(folder: Path) -> Path:
    """An environment that has this package and what it needs, all as if they were installed."""
    venv.create(folder / "env", symlinks=True)
    (packages,) = folder.glob("env/lib/*/site-packages")
    (packages / "there.pth").write_text("\n".join([str(ROOT.parent), *site.getsitepackages()]))
    return folder / "env" / "bin" / "python"


def by_mypy(folder: Path, python: Path) -> Found:
    options = ["--config-file=", "--cache-dir=cache", "--output=json", f"--python-executable={python}"]
    printed = check("mypy", *options, folder=folder)
    lines = [json.loads(line) for line in printed.splitlines()]
    return [(line["severity"], (Path(line["file"]).name, line["line"], line["message"])) for line in lines]


def by_pyright(folder: Path, python: Path) -> Found:
    printed = check("pyright", "--outputjson", f"--pythonpath={python}", folder=folder)
    return [
        (line["severity"], (Path(line["file"]).name, line["range"]["start"]["line"] + 1, line["message"]))
        for line in json.loads(printed)["generalDiagnostics"]
    ]


def check(checker: str, *options: str, folder: Path) -> str:
    """What a checker prints. Where it does not start, the test fails."""
    files = [path.name for path in sorted(folder.glob("*.py"))]
    command = [sys.executable, "-m", checker, *options, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):  # 1: it has found something
        how = "`pip install -r requirements-dev.txt` installs it"
        pytest.fail(f"{checker} could not check the scripts; {how}.\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout
