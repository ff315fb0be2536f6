"""Helpers for all plots: figures with a title and a caption, line styles, plain ticks, labels, and files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rnn_lm.files import Json, write_bytes
from rnn_lm.plots.labels import balanced, label_lines, lay_out

# Told apart by the colour-blind and in print, and dark enough on white (a contrast of at least 3).
COLOURS = ("#1A85FF", "#C44E00", "#332288", "#009E73", "#222222")
DASHES = ("-", (0, (6, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vP"
REFERENCE = {"color": "#666666", "linewidth": 1}  # of lines to compare with


def style(number: int) -> Json:
    """Colour, dash and marker of line 0, 1, 2, …; the first sixty differ."""
    cycles = (("color", COLOURS), ("linestyle", DASHES), ("marker", MARKERS))
    return {name: values[number % len(values)] for name, values in cycles} | {"markersize": 4}


def new_figure(
    title: str,
    *sentences: str,
    rows: int = 1,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
    size: tuple[float, float] | None = None,
) -> tuple[Figure, list[Any]]:
    """A figure with a title above, sentences below, and axes with grids."""
    width, height = size or (9 if columns == 1 else 13, 5)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)  # its renderer keeps the sizes of texts; without it each question about them makes another
    figure.suptitle(balanced(title, int(10 * width)), fontsize="large")
    figure.supxlabel("\n".join(balanced(sentence, int(14 * width)) for sentence in sentences), fontsize="small")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios, sharex="col" if rows > 1 else False)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.margins(x=0.02)
    return figure, list(grid.flat)


def plain_ticks(axis: Any, subs: Sequence[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis, at `subs` times each power of ten."""
    if subs:
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_rows(axes: Any, rows: Sequence[Json], x: str, y: str, **how: Any) -> None:
    """Plots key `y` of each row over key `x`."""
    axes.plot([row[x] for row in rows], [row[y] for row in rows], **{"markersize": 4} | how)


def band(axes: Any, x: Any, low: Any, high: Any, *, label: str, color: str, alpha: float) -> None:
    """The area between two lines, which are drawn, too; the upper one has the label."""
    axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)
    for edge, name in ((low, None), (high, label)):
        axes.plot(x, edge, color=color, linewidth=0.7, linestyle=":", label=name)


def save_figure(figure: Figure, path: Path) -> None:
    """Labels the lines and writes a PNG file."""
    for axes in figure.axes:
        drawn = [np.asarray(line.get_xydata(), float) for line in axes.lines if line.get_transform() == axes.transData]
        is_logarithmic = "log" in (axes.get_xscale(), axes.get_yscale())
        if is_logarithmic and not any(((xy > 0) & np.isfinite(xy)).all(1).any() for xy in drawn):
            axes.set(xscale="linear", yscale="linear")  # a logarithmic scale needs positive data
    label_lines(figure)
    lay_out(figure)
    figure.set_layout_engine("none")  # or saving draws twice: to lay out, and again
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
