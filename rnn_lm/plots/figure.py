"""Helpers for all plots: figures with captions, plain ticks, and files."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rnn_lm.files import Json, write_bytes


def new_figure(
    caption: str,
    *,
    rows: int = 1,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
    size: tuple[float, float] | None = None,
) -> tuple[Figure, list[Any]]:
    """A figure with a caption below, and its axes with grids."""
    width, height = size or (8 if columns == 1 else 12, 5)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    figure.supxlabel(textwrap.fill(caption, int(14 * width)), fontsize="small")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios, sharex="col" if rows > 1 else False)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    return figure, list(grid.flat)


def plain_ticks(axis: Any, subs: Sequence[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis, at `subs` times each power of ten."""
    if subs:
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_rows(axes: Any, rows: Sequence[Json], x: str, y: str, **style: Any) -> None:
    """Plots key `y` of each row over key `x`."""
    axes.plot([row[x] for row in rows], [row[y] for row in rows], **{"markersize": 4} | style)


def save_figure(figure: Figure, path: Path, **legend: Any) -> None:
    """Writes a PNG file. Axes with labelled lines get a legend."""
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(**{"frameon": False, "fontsize": "small"} | legend)
        drawn = [np.asarray(line.get_xydata(), float) for line in axes.lines if line.get_transform() == axes.transData]
        if not any(((xy > 0) & np.isfinite(xy)).all(1).any() for xy in drawn):
            axes.set(xscale="linear", yscale="linear")  # a logarithmic scale needs positive data
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
