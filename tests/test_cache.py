"""Programs that are kept between runs."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rnn_lm.cache import keep_programs

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Where `keep_programs` sets what it likes."""
    values = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", values)
    with warnings.catch_warnings():
        yield values


def test_each_kind_of_cpu_has_a_folder_of_its_own(environment, tmp_path, monkeypatch):
    folders = []
    for features in ("flags : avx2", "flags : avx2 avx512f"):
        monkeypatch.setattr(Path, "read_text", lambda path, features=features: features)
        environment.pop(NAMES[0], None)
        keep_programs()
        folders.append(Path(environment[NAMES[0]]))
    assert len(set(folders)) == 2 and {folder.parent for folder in folders} == {tmp_path / "rnn_lm"}


def test_the_users_own_choice_stays(environment):
    environment.update(dict.fromkeys(NAMES, "7"))
    keep_programs()
    assert [environment[name] for name in NAMES] == ["7", "7"]


def test_nobodys_home_is_no_error(environment, monkeypatch):
    del environment["XDG_CACHE_HOME"]
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-at-all").expanduser())
    keep_programs()
    assert NAMES[0] not in environment


ADD = "import rnn_lm.cache; rnn_lm.cache.keep_programs(); import jax; print(jax.jit(lambda x: x + 1)(1))"


@pytest.mark.parametrize("damage", ["nothing", "files", "folder"])
def test_a_damaged_cache_costs_nothing_but_time(tmp_path, damage):
    def add():
        environment = {name: value for name, value in os.environ.items() if name not in NAMES}
        environment["XDG_CACHE_HOME"] = str(tmp_path)
        return subprocess.run([sys.executable, "-c", ADD], env=environment, capture_output=True, text=True, check=True)

    if damage == "folder":
        (tmp_path / "rnn_lm").touch()
    for _ in range(2):
        result = add()
        assert (result.stdout, result.stderr) == ("2\n", "")
        files = [*tmp_path.glob("rnn_lm/programs-*/*")]
        assert files or damage == "folder"
        for path in files if damage == "files" else []:
            path.write_bytes(path.read_bytes()[:40])
