"""The plots of a run and of a sweep: what is drawn, and what is said of it."""

import numpy as np
import pytest

from rnn_lm.plots.curves import learning_curve, learning_curves, loss_by_field, what_was_learned, which_is_best
from tests.pictures import caption_of, check, labels_of, title_of


def line(split, step, perplexity):
    return {"split": split, "step": step, "tokens": 100 * step, "perplexity": perplexity}


LINES = [
    *(line("train", step, 3.5 + 30 / step) for step in range(1, 60)),
    *(line("valid", step, 4.5 + 20 / step) for step in range(9, 60, 10)),
]
BASELINES = {"uniform": 81.0, "unigram": 27.0, "6-gram": 5.1}


def test_a_learning_curve_shows_its_numbers(figures, tmp_path):
    learning_curve(tmp_path / "a.png", LINES, BASELINES, of="GRU of 8 units on a text", read="the validation text")
    [axes] = figures[0].axes
    check(figures[0])
    assert title_of(figures[0]) == "Learning curve: GRU of 8 units on a text"
    assert labels_of(axes) == [
        "training (ends at 4.01)", "validation (ends at 4.84)", "6-gram (5.10)", "unigram (27.00)", "uniform (81.00)",
    ]  # fmt: skip
    level = {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 2}
    assert level == set(BASELINES.values())
    assert "on the validation text" in caption_of(figures[0])


def test_a_learning_curve_is_drawn_also_from_little(figures, tmp_path):
    train = [line("train", 10, 9.0), line("train", 20, None)]
    for some in ([], train, [*train, line("valid", 20, 11.0)]):
        path = tmp_path / "plots" / "a.png"
        learning_curve(path, some, {"uniform": 28.0, "unigram": 17.0}, of="a model", read="a text")
        assert path.read_bytes().startswith(b"\x89PNG")
        check(figures[-1])
    assert "no evaluation" in caption_of(figures[0]) and "at step 20: 11.00, 35.3 % below" in caption_of(figures[2])


def test_what_is_said_of_a_learning_curve_follows_its_numbers():
    falling = [line("valid", 100, 6.0), line("valid", 2000, 4.0)]
    assert what_was_learned(falling, {"unigram": 20.0, "6-gram": 5.0}) == (
        "The validation perplexity is lowest at step 2,000: 4.00, 20.0 % below that of the 6-gram (5.00)."
    )
    rising = [line("valid", 100, 6.0), line("valid", 2000, 9.0)]
    assert what_was_learned(rising, {"unigram": 20.0, "6-gram": 5.0}) == (
        "The validation perplexity is lowest at step 100: 6.00, 20.0 % above that of the 6-gram (5.00); it has "
        "risen to 9.00 at the end."
    )
    assert "4.00, about that of the 6-gram (4.01)." in what_was_learned(falling, {"6-gram": 4.01})


def sweep_of(losses, *, seeds=3, spread=0.01, fields=None):
    """Results and curves of a sweep over the learning rate: mean final loss by rate; None: diverged."""
    members, settings, curves = [], [], {}
    for rate, loss in losses.items():
        overrides = {"optimizer.learning_rate": rate} | (fields or {})
        for seed in range(seeds):
            nll = None if loss is None else loss + spread * (seed - (seeds - 1) / 2)
            name = f"learning_rate={rate:g},seed={seed}"
            status = "diverged" if nll is None else "finished"
            row = {"name": name, "overrides": overrides | {"seed": seed}, "status": status}
            members.append(row | {"valid": nll and {"nll": nll}})
            ends = 5 if nll is not None else 3
            curves[name] = [line("valid", step, float(np.exp((nll or 3) + 1 / step))) for step in range(1, ends)]
        error = spread / np.sqrt(seeds) if seeds > 1 else None
        valid = None if loss is None else {"nll": loss, "nll_standard_error": error}
        settings.append({"overrides": overrides, "members": seeds, "valid": valid})
    return {"members": members, "settings": sorted(settings, key=lambda s: (s["valid"] or {"nll": 9})["nll"])}, curves


@pytest.mark.parametrize("count", [2, 8, 13])
def test_every_setting_of_a_sweep_is_told_apart(count, figures, tmp_path):
    losses = {0.001 * 2**i: 1.5 + 0.002 * i for i in range(count)} | {5.0: None}
    result, curves = sweep_of(losses)
    learning_curves(tmp_path / "a.png", result, curves, of="GRU of 8 units on a text")
    [axes] = figures[0].axes
    check(figures[0])
    assert title_of(figures[0]) == f"Learning curves of {3 * count + 3} members: GRU of 8 units on a text"
    assert len(labels_of(axes)) == min(count + 1, 11) and ("other settings" in labels_of(axes)) == (count > 9)
    assert "The lowest perplexity, 5.70, is that of learning_rate=0.001,seed=0 after 400 tokens. 3 of" in caption_of(
        figures[0]
    )
    looks = {}
    for drawn in axes.lines:
        if not drawn.get_label().startswith("_") and drawn.get_label() != "other settings":
            looks[drawn.get_label()] = drawn.get_color(), drawn.get_linestyle(), drawn.get_marker()
    assert len(set(looks.values())) == len(looks)


def test_the_loss_over_a_field_is_labelled_and_explained(figures, tmp_path):
    result, _ = sweep_of({0.001: 2.0, 0.01: 1.7, 0.1: 1.705, 1.0: None})
    one, _ = sweep_of({0.001: 2.1, 0.01: 1.9}, fields={"model.cell": "gru"})
    default = {"overrides": {}, "members": 3, "valid": {"nll": 1.8, "nll_standard_error": 0.01}}
    both = {name: [*result[name], *one[name]] for name in result}
    both["settings"].append(default)
    assert loss_by_field(tmp_path / "a.png", both, "optimizer.learning_rate", of="GRU of 8 units on a text")
    [axes] = figures[0].axes
    check(figures[0])
    assert set(labels_of(axes)) == {"unchanged config (1.800)", "cell=gru"}
    assert caption_of(figures[0]).startswith(
        "The loss is lowest with learning_rate=0.01: 1.700 ± 0.006; learning_rate=0.1 is within two standard"
    )
    [means] = [line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    assert list(means.get_ydata()) == [2.0, 1.7, 1.705]
    assert not loss_by_field(tmp_path / "b.png", both, "model.cell", of="") and not (tmp_path / "b.png").exists()


def test_what_is_said_of_settings_follows_their_errors():
    def settings(*pairs):
        scores = [{"nll": nll, "nll_standard_error": error} for nll, error in pairs]
        return [{"overrides": {"steps": i}, "valid": score} for i, score in enumerate(scores)]

    assert "; no others are within two standard" in which_is_best(settings((2.0, 0.01), (1.0, 0.01)))
    assert "steps=1: 1.000 ± 0.300; steps=0 is within" in which_is_best(settings((1.5, 0.3), (1.0, 0.3)))
    fixed = [
        setting | {"overrides": setting["overrides"] | {"kind": "a"}} for setting in settings((1, 0.1), (1.01, 0.1))
    ]
    default = {"overrides": {}, "valid": {"nll": 1.02, "nll_standard_error": 0.1}}
    assert "lowest with steps=0: 1.000 ± 0.100; steps=1, the unchanged config are" in which_is_best([*fixed, default])
    assert "5 others are within" in which_is_best(settings(*[(1 + 0.001 * i, 0.1) for i in range(6)]))
    assert "One seed does not show" in which_is_best(settings((1.0, None), (2.0, None)))
