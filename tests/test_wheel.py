"""A wheel: it trains with machine code where there is no compiler and no repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rnn_lm.nn import native
from rnn_lm.runs.folder import SUMMARY

ROOT = Path(__file__).parent.parent
NO_AVX512 = """
from rnn_lm.nn.cpu import compiler
compiler._cpu_features = lambda: compiler.V3
from rnn_lm.nn.cpu import library
print(library.build().name, library.is_available())
"""


@pytest.mark.slow
@pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")
def test_a_wheel_needs_no_compiler_and_no_repository(tmp_path, text_file):
    from rnn_lm.nn.cpu import compiler

    pytest.importorskip("build")
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    [wheel] = tmp_path.glob("rnn_lm-*-py3-none-*.whl")
    assert "-any" not in wheel.name
    zipfile.ZipFile(wheel).extractall(site := tmp_path / "site")

    # The kernels have the names of a clone's: they are of the same sources, compiler and flags.
    names = [compiler.file_name(kind) for kind in compiler.kinds_here()]
    assert {path.name for path in site.rglob("*.so")} == {*names}
    experiments = {str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/**/*.py")}
    assert {str(path.relative_to(site / "rnn_lm")) for path in site.glob("rnn_lm/experiments/**/*.py")} == experiments

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(site), "PATH": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, *command]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result

    flags = [f"--config.corpus.path={text_file}", "--config.steps=2", "--config.batch_size=2"]
    assert "machine code (C++ kernels): used\n" in run("-m", "rnn_lm", "--config=char", *flags).stderr
    assert (tmp_path / "runs" / "char" / SUMMARY).exists()
    run("-m", "rnn_lm", "export", "--workdir=runs/char", "out")
    assert (tmp_path / "out" / "index.html").exists()  # its template is in the wheel
    if len(names) == 2:
        assert run("-c", NO_AVX512).stdout == f"{names[1]} True\n"
    assert not [*tmp_path.glob("cache/rnn_lm/kernels-*")]
