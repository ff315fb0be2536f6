import numpy as np
import pytest
from flax import nnx

from rnn_lm.analysis import laboratory
from rnn_lm.analysis.laboratory import SECTIONS, Subject
from rnn_lm.files import dumps
from rnn_lm.nn.models import RNNLM
from rnn_lm.plots.laboratory import INSPECTION

V = 7
IDS = np.random.default_rng(0).integers(0, V, 600)


def subject(model, window=16, ids=IDS, clip_norm=1.0, lines=()):
    return Subject(model, ids, window, batch_size=4, segment_length=8, clip_norm=clip_norm, lines=list(lines))


def elman(radius, activation="tanh", **options):
    init = nnx.initializers.orthogonal(radius)
    return RNNLM(V, 8, rngs=nnx.Rngs(0), activation=activation, recurrent_init=init, **options)


def dead():
    """A relu cell whose units are never above 0."""
    return elman(1.0, "relu", bias_init=nnx.initializers.constant(-100.0))


def finding(name, of):
    """The sentence, after the section was written and drawn."""
    section = SECTIONS[name][1](of)
    assert dumps(section)
    assert (
        "nan" not in section["finding"] and "inf" not in section["finding"] and section["finding"].endswith((".", ")"))
    )
    return section["finding"]


@pytest.mark.parametrize("name", ["gradients_by_lag", "jacobians", "truncated_gradients", "randomized_truncation"])
@pytest.mark.parametrize("make", [dead, lambda: elman(9.0, "identity")], ids=["dead", "exploding"])
def test_models_without_a_gradient_to_measure_are_told_of(make, name, tmp_path, monkeypatch):
    monkeypatch.setattr(laboratory, "KEEP_PROBABILITIES", (0.5,))
    of = subject(make(), window=64 if make is not dead else 4)
    with np.errstate(over="ignore", invalid="ignore"):
        section = SECTIONS[name][1](of)
        assert dumps(section) and "nan" not in section["finding"]
        INSPECTION[name](tmp_path / "picture.png", section, of="a model")


def test_the_fate_of_gradients_is_named():
    fates = [(0.5, "vanish in the long run"), (1.0, "keep their size over 16 steps"), (1.5, "explode in the long run")]
    for radius, fate in fates:
        assert f"is {radius:.2f}: by this factor alone, gradients would {fate}" in finding(
            "jacobians", subject(elman(radius))
        )
    assert "is 1.00 to 1.00. Including" in finding("jacobians", subject(RNNLM(V, 8, rngs=nnx.Rngs(0), cell="gru")))


def test_far_lags_that_float32_cannot_hold_are_left_out():
    """0.5 to the power of 128 is 0 to it."""
    found = laboratory.gradients_by_lag(subject(elman(0.5, "identity"), window=128))
    assert found["rate"] == pytest.approx(np.log(0.5), rel=0.02) and found["effective_memory"] == 7
    assert max(found["later_lags"]) < 105


def test_a_text_of_one_window_has_no_error_bars():
    assert "±" not in finding("jacobians", subject(elman(0.9), window=16, ids=IDS[:40]))


def test_the_share_of_clipping_counts_steps():
    step = lambda step, **more: {"split": "train", "step": step, "grad_norm": 2.0} | more  # noqa: E731
    clipped = lambda at, share: step(at, clipped=share, clipped_norm=1.0)  # noqa: E731
    found = lambda *lines, **more: finding("clipping", subject(elman(1.0), lines=lines, **more))  # noqa: E731
    assert "at 25.0 % of the steps" in found(clipped(10, 1.0), {"split": "valid", "step": 10}, clipped(40, 0.0))
    assert "at 50.0 % of the steps" in found(step(100), clipped(110, 1.0), clipped(120, 0.0))
    assert "has not logged" in found() and "has not logged" in found(step(10))
    assert found(step(10), clip_norm=0.0) == "Gradients were not clipped: clip_norm is 0."


def test_clipped_steps_are_told_from_the_others():
    """A line has means only; the norms of its steps are those that they were made of."""
    norms, limit = np.array([[0.5, 3.0, 0.3, 5.0], [0.2, 0.4, 0.6, 0.8], [2.0, 2.0, 4.0, 6.0]]), 1.0
    lines = [
        {"split": "train", "step": 4 * (i + 1), "grad_norm": of_line.mean(), "clipped": (of_line > limit).mean(),
         "clipped_norm": np.minimum(of_line, limit).mean()} for i, of_line in enumerate(norms)
    ]  # fmt: skip
    found = laboratory.clipping(subject(elman(1.0), lines=lines, clip_norm=limit))
    assert [line["norm_of_clipped"] for line in found["lines"]] == [pytest.approx(4.0), None, pytest.approx(3.5)]
    assert [line["norm_of_others"] for line in found["lines"]] == [pytest.approx(0.4), pytest.approx(0.5), None]
    assert found["finding"] == (
        "The gradient norm was clipped to 1 at 50.0 % of the steps (6 of 12), the last by step 12. Before clipping "
        "these had a mean norm of 3.67."
    )
    calm = laboratory.clipping(subject(elman(1.0), lines=lines[1:2], clip_norm=limit))["finding"]
    assert calm == "The gradient norm was clipped to 1 at 0.0 % of the steps (0 of 8)."


def test_quiet_means_from_there_on():
    assert laboratory._from_there_on([True, False, True, True]) == 2
    assert laboratory._from_there_on([True, True]) == 0
    assert laboratory._from_there_on([True, False]) is None


def test_the_spread_is_put_in_words():
    words = lambda *spread: laboratory._spread_in_words(  # noqa: E731
        [{"keep_probability": p, "standard_deviation": s} for p, s in zip((0.5, 0.8, 0.9), spread, strict=True)]
    )
    calm = "the standard deviation of a single draw is smaller than the norm of the full gradient"
    assert words(13, 1.2, 0.83) == f"From π = 0.9, {calm} (0.83 times it); at π = 0.5, it is 13 times that norm."
    assert words(0.9, 0.5, 0.1) == f"From π = 0.5, {calm} (0.9 times it)."
    assert words(130, 6, 3).startswith("Even at π = 0.9, the standard deviation of a single draw is 3 times the norm")
    assert "nothing to compare" in words(np.inf, 6, 3)


def test_a_cut_as_long_as_the_window_is_none():
    """The state keeps everything: each cut loses much, and only looking back further helps."""
    found = finding("truncated_gradients", subject(elman(1.0, "identity")))
    assert "if each loss looks back 8 steps" in found and "if the text is cut every 8 steps (segment)." in found
    assert "16 steps (segment)" not in found and "% off" in found


def test_a_short_text_has_as_many_positions_as_windows():
    of = subject(elman(0.9), window=16, ids=IDS[:38])
    assert laboratory.gradients_by_lag(of)["positions"] == 6
    assert laboratory.truncated_gradients(of)["windows"] == 6
