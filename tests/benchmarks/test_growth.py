import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth import SERIES, Series, exponent_of, measure, report

NAMES = [f"{series.name} by {series.of}, {series.unit}" for series in SERIES]


@pytest.mark.slow
@pytest.mark.parametrize("series", SERIES, ids=NAMES)
def test_no_cost_grows_faster_than_the_work(series):
    costs = series.costs(series.small)
    exponent = exponent_of(series.small, costs)
    assert exponent < series.exponent + 0.3, f"{series.name}: {costs} at {series.small}"


def test_what_is_quadratic_is_seen_as_such():
    pairs = Series("all pairs", "numbers", lambda n, folder: lambda: n**2 + n, (10, 100, 1000), (), far=10**4, unit="")
    row = measure(pairs, pairs.sizes)
    assert row["exponent"] == pytest.approx(2, abs=0.05)  # more than 1.3, what the test above allows
    assert row["far_cost"] == pytest.approx(1e8, rel=0.3)  # by the exponent that was seen
    assert "| all pairs | numbers | 10 / 100 / 1,000 | 110 / 10,100 / 1,001,000 |" in report([row])


def test_the_document_has_the_results():
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks/results/growth.json").read_text())["series"]
    assert report(results) in (root / "docs/scaling.md").read_text()
    assert [(row["name"], row["of"], row["unit"]) for row in results] == [(s.name, s.of, s.unit) for s in SERIES]


def test_bytes_are_those_that_numpy_allocates():
    zeros = Series("zeros", "numbers", lambda n, folder: lambda: np.zeros(n), (10**5, 10**6), (), unit="bytes")
    assert zeros.costs(zeros.sizes) == pytest.approx([8e5, 8e6], rel=0.02)
    assert exponent_of(zeros.sizes, zeros.costs(zeros.sizes)) == pytest.approx(1, abs=0.02)
