"""`benchmarks/fault.py`: the scan is not wrong, and what is wrong is found where it is."""

import numpy as np
import pytest

from benchmarks import fault


@pytest.fixture
def right(monkeypatch):
    for name, size in {"H": 8, "B": 4, "T": 3}.items():
        monkeypatch.setattr(fault, name, size)
    return fault.run({}, 2, kernels=False)


def test_what_is_wrong_is_found_where_it_is(right):
    first, again = right
    assert fault.wrong(again, first) == (0, "")
    d_carry, d_x = (np.array(x) for x in first)
    d_carry[2] *= 2
    d_x[:2, 2] *= 2
    error, place = fault.wrong((d_carry, d_x), first)
    assert error > fault.TOLERANCE and place == "rows [2], 1 steps back"


def test_it_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fault"])
    with pytest.raises(SystemExit):
        fault.main()
    assert "needs a Hopper GPU" in capsys.readouterr().err
