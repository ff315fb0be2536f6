"""The kernels under the compiler's sanitizers."""

import sys

import pytest

from benchmarks import sanitize
from rnn_lm.nn import native


@pytest.mark.slow
@pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")
def test_the_kernels_are_clean(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanitize", "--cases=16"])
    assert sanitize.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("layers of both kinds and texts have the same bits by 1, 2, 5 and 64 threads" in line for line in lines)
