"""The plots of `inspect`, of numbers made up here: what is drawn, and that all of it can be read."""

import numpy as np
import pytest

from rnn_lm.plots.laboratory import INSPECTION
from tests.pictures import caption_of, check, labels_of, title_of

LAGS = np.arange(64)


def quantiles(rate):
    median = np.exp(rate * LAGS)
    return {q: (median * factor).tolist() for q, factor in
            {"0.05": 0.1, "0.25": 0.5, "0.5": 1, "0.75": 2, "0.95": 10}.items()}  # fmt: skip


def spectrum(gate, layer=1):
    eigenvalues = np.exp(2j * np.pi * np.arange(8) / 8) * (1 + layer)
    pairs = [[x.real, x.imag] for x in eigenvalues]
    return {"layer": layer, "gate": gate, "spectral_radius": 1.0 + layer, "eigenvalues": pairs,
            "singular_values": [3.0, 2.0, 1.0, 0.5]}  # fmt: skip


def rows(kinds):
    return [
        {"kind": kind, "steps": steps, "parameter": name, "cosine": 1 - 0.3 / steps, "bias": number / steps}
        for number, kind in enumerate(kinds, start=1) for steps in (1, 2, 4, 8, 16) for name in ("all", "w_hh", "b_h")
    ]  # fmt: skip


FINDING = "The gradient falls by 5 % of its norm at each of the steps that it takes back through this text, and more."
SECTIONS = {
    "gradients_by_lag": {
        "quantiles": {"h": quantiles(-0.05), "c": quantiles(-0.04)}, "later_lags": [20, 30, 40], "rate": -0.05,
        "predicted_rate": -0.05, "effective_memory": 46,
    },
    "jacobians": {
        "w_hh": [spectrum(gate, layer) for layer in (1, 2) for gate in "ifgo"],
        "lyapunov_exponents": [-0.04, -0.1, -0.3], "standard_errors": [0.005, 0.005, 0.01],
    },
    "truncated_gradients": {"rows": rows(["segment", "window"])},
    "randomized_truncation": {"rows": [
        {"keep_probability": p, "parameter": name, "standard_deviation": number * (1 - p) / p**9}
        for number, name in enumerate(("b_q", "all", "w_hh")) for p in (0.5, 0.8, 0.9, 0.95)
    ]},
    "clipping": {"clip_norm": 1.0, "lines": [
        {"step": 50, "steps": 50, "grad_norm": 0.8, "clipped_norm": 0.6, "clipped": 0.1,
         "norm_of_clipped": 3.0, "norm_of_others": 0.5556},
        *({"step": step, "steps": 50, "grad_norm": 0.5, "clipped_norm": 0.5, "clipped": 0.0,
           "norm_of_clipped": None, "norm_of_others": 0.5} for step in range(100, 500, 50)),
    ]},
    "cost": {"batch_size": 8, "rows": [
        {"way": way, "steps": steps, "temporary_bytes": 1e6 * steps / number, "seconds": 0.01 * steps / number}
        for number, way in enumerate(("cached", "remat", "truncated"), start=1) for steps in (64, 256, 1024)
    ]},
    "strategies": {"tokens": list("the time machine\nby h. g. wells"), "cuts": {"randomized": [3, 20], "full": []}},
}  # fmt: skip


@pytest.fixture
def draw(figures, tmp_path):
    def draw(name, **changes):
        section = {"finding": FINDING} | SECTIONS[name] | changes
        INSPECTION[name](tmp_path / f"{name}.png", section, of="GRU of 8 units, on a text")
        return figures[-1]

    return draw


@pytest.mark.parametrize("name", INSPECTION)
def test_everything_can_be_read(name, draw):
    figure = draw(name)
    check(figure)
    assert title_of(figure).endswith(": GRU of 8 units, on a text")
    assert caption_of(figure).startswith(FINDING)
    for axes in figure.axes:
        names = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
        assert axes.get_legend() or len(labels_of(axes)) >= len(names)


def test_bands_are_labelled(draw):
    [axes] = draw("gradients_by_lag").axes
    assert set(labels_of(axes)) > {
        "h: median", "h: middle 50 % of positions", "h: middle 90 % of positions", "effective memory: 46 steps",
        "predicted slope: × 0.951 per step (exp of the largest Lyapunov exponent)",
    }  # fmt: skip


def test_growth_is_the_exponential_of_the_exponents(draw):
    axes = draw("jacobians").axes[2]
    [points] = [line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_marker() == "o"]
    assert points.get_ydata() == pytest.approx(np.exp([-0.04, -0.1, -0.3]))
    [bars] = axes.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert (ends[:, 1] - ends[:, 0]) / 2 == pytest.approx(np.exp([-0.04, -0.1, -0.3]) * [0.005, 0.005, 0.01])


def test_clipped_steps_are_shown_apart(draw):
    """Five of fifty steps were clipped from a mean norm of 3, although the mean of all fifty is below the limit."""
    norms, count = draw("clipping").axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in norms.lines}
    assert drawn["clipped steps"] == [[50, 3.0]]
    assert drawn["steps that were not clipped"][:2] == [[50, 0.5556], [100, 0.5]]
    assert [line.get_xydata().tolist() for line in count.lines] == [[[50, 5.0]]]
    unclipped, _ = draw("clipping", lines=SECTIONS["clipping"]["lines"][1:]).axes
    assert "clipped steps" not in {line.get_label() for line in unclipped.lines}
