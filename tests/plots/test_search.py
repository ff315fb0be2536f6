"""The plots of a search."""

import pytest

from rnn_lm.plots.search import history, importances, what_was_found
from tests.pictures import caption_of, check, labels_of, title_of

NLLS = [2.5, 2.1, 2.3, 1.9, 2.0]
HIGH = [9.5, *NLLS]


def result_of(nlls, shares):
    rows = [{"trial": 10 + i, "nll": nll, "best": min(nlls[: i + 1])} for i, nll in enumerate(nlls)]
    members = [{"status": status} for status in ["finished"] * len(nlls) + ["pruned", "pruned", "diverged"]]
    return {"members": members, "search": {"history": rows, "importances": shares}}


def test_the_history_shows_each_loss_and_the_lowest_so_far(figures, tmp_path):
    history(tmp_path / "a.png", result_of(NLLS, {}), of="several models on a text")
    check(figures[0])
    [axes] = figures[0].axes
    trials, lowest, above = axes.lines
    assert trials.get_ydata().tolist() == NLLS and lowest.get_ydata().tolist() == [2.5, 2.1, 2.1, 1.9, 1.9]
    assert not len(above.get_xdata())
    assert title_of(figures[0]) == "8 trials of a search: several models on a text"
    assert "The lowest loss, 1.900, is that of trial 13, the 4th to finish." in caption_of(figures[0])
    assert "Not shown: 2 pruned and 1 diverged trials." in caption_of(figures[0])
    assert {*labels_of(axes)} == {"a trial", "lowest so far"}


def test_losses_that_are_much_higher_are_at_the_edge(figures, tmp_path):
    history(tmp_path / "a.png", result_of(HIGH, {}), of="a model")
    check(figures[0])
    [axes] = figures[0].axes
    assert axes.lines[2].get_xdata().tolist() == [1] and axes.get_ylim()[1] < 4
    assert "Triangles at the upper edge: higher losses." in caption_of(figures[0])


@pytest.mark.parametrize("nlls", [[], [2.0]])
def test_a_history_is_drawn_also_from_little(figures, tmp_path, nlls):
    history(tmp_path / "a.png", result_of(nlls, {}), of="a model")
    check(figures[0])
    [axes] = figures[0].axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]  # trials are counted in whole numbers
    assert what_was_found([]) == "No trial has finished."


def test_one_trial_is_not_called_trials(figures, tmp_path):
    one = result_of([2.0], {}) | {"members": [{"status": "pruned"}]}
    history(tmp_path / "a.png", one, of="a model")
    assert title_of(figures[0]) == "1 trial of a search: a model"
    assert "Not shown: 1 pruned trial." in caption_of(figures[0])


def test_importances_are_bars_of_shares(figures, tmp_path):
    shares = {"optimizer.learning_rate": 0.7, "model.cell": 0.2, "mine": 0.1}
    assert importances(tmp_path / "a.png", result_of(NLLS, shares), of="a model on a text")
    check(figures[0])
    [axes] = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [*shares.values()]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["learning_rate", "cell", "mine"]
    assert {text.get_text() for text in axes.texts} >= {"70%", "20%", "10%"}
    assert "learning_rate matters most" in caption_of(figures[0])
    assert not importances(tmp_path / "b.png", result_of(NLLS, {}), of="a model") and len(figures) == 1
