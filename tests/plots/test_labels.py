"""Labels beside lines, and the palette that tells lines apart."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rnn_lm.plots.figure import COLOURS, REFERENCE, new_figure, save_figure, style
from rnn_lm.plots.labels import balanced, spread
from tests.pictures import check, contrast, labels_of


def test_labels_are_spread_without_overlap_and_no_further_than_needed():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(1, 9)
        wanted, heights = np.sort(rng.uniform(0, 300, count)), rng.uniform(8, 30, count)
        centres = spread(wanted, heights, 0, 300)
        gaps = np.diff(centres) - (heights[1:] + heights[:-1]) / 2
        assert gaps.size == 0 or gaps.min() > -1e-9
        assert centres[0] >= heights[0] / 2 - 1e-9 and centres[-1] <= 300 - heights[-1] / 2 + 1e-9
        apart = np.diff(wanted) >= (heights[1:] + heights[:-1]) / 2
        if apart.all() and wanted[0] > heights[0] / 2 and wanted[-1] < 300 - heights[-1] / 2:
            assert centres == pytest.approx(wanted)


def test_labels_stay_off_all_lines(figures, tmp_path):
    """Lines that end together, in the middle, at the lower edge, one that stands, and one level one."""
    figure, [axes] = new_figure("A title", "A sentence.")
    x = np.arange(1, 101.0)
    for number in range(5):
        axes.plot(x, 1 + (0.01 * number + 1) / x, color=COLOURS[number], label=f"ends with the others, {number}")
    axes.plot(x[:40], 3 + np.sin(x[:40]), **style(6), label="ends early")
    axes.plot(x[:40], 3 + np.sin(x[:40]), **style(7), label="ends early, too")
    axes.axvline(30, **REFERENCE, label="stands")
    axes.axhline(1.0, **REFERENCE, label="level, with a label of more than one line")
    save_figure(figure, tmp_path / "a.png")
    check(figures[0])
    early = next(text for text in axes.texts if text.get_text() == "ends early")
    assert axes.bbox.contains(*early.get_window_extent().min) and axes.bbox.contains(*early.get_window_extent().max)
    assert len(labels_of(axes)) == 9 and labels_of(axes)[0] == "level, with a label of more than one line"
    order = [label for label in labels_of(axes) if label.startswith("ends with")]
    assert order == [f"ends with the others, {number}" for number in range(5)]


def test_a_line_that_ends_early_without_room_has_its_label_outside(figures, tmp_path):
    figure, [axes] = new_figure("A title", "A sentence.")
    x = np.linspace(0, 1, 400)
    for number in range(60):
        axes.plot(x, np.full(400, number / 60), color=COLOURS[0])
    axes.plot([0.1, 0.4], [0.5, 0.5], color=COLOURS[1], label="ends early")
    save_figure(figure, tmp_path / "a.png")
    check(figures[0])


def test_wrapped_text_has_no_orphan():
    sentence = "The truncated gradient is within 10 % of the full one, if each loss looks back far enough in time."
    for width in range(30, 110):
        lines = balanced(sentence, width).split("\n")
        assert max(map(len, lines)) <= width
        assert len(lines) == 1 or len(lines[-1].split()) > 1
        assert " ".join(lines).replace("\N{NO-BREAK SPACE}", " ") == sentence
    assert balanced("6-gram model", 8) == "6-gram\nmodel"
    assert balanced("norms of the internationalization", 25).split("\n") == [
        "norms of",
        "the\N{NO-BREAK SPACE}internationalization",
    ]
    assert [len(line) for line in balanced("aa " * 12 + "aa", 36).split("\n")] == [20, 17]


def test_lines_differ_by_more_than_colour():
    looks = [tuple(map(str, style(number).values())) for number in range(60)]
    assert len(set(looks)) == 60
    for one, other in zip(looks, looks[1:], strict=False):
        assert all(a != b for a, b in zip(one[:3], other[:3], strict=True))


def test_colours_are_dark_enough_and_apart_for_the_colour_blind():
    """In CIELAB, as seen with normal sight, deuteranopia and protanopia (Machado, Oliveira, Fernandes 2009)."""
    seen = [
        np.eye(3),
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
    assert min(map(contrast, [*COLOURS, REFERENCE["color"]])) >= 3
    for sight, (one, other) in itertools.product(seen, itertools.combinations(COLOURS, 2)):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 30, (one, other)


def lab(colour, sight):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(sight) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    xyz = xyz / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
