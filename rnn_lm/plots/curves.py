"""Plots of a run and of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rnn_lm.files import Json
from rnn_lm.plots.figure import new_figure, plain_ticks, save_figure

MAX_LINES = 10  # labelled in one plot


def learning_curve(path: Path, lines: Sequence[Json], baselines: Mapping[str, float], caption: str) -> None:
    """Perplexity against tokens trained on, for train and validation, with baselines as horizontal lines."""
    figure, [axes] = new_figure(caption)
    names = {"train": "training", "valid": "validation"}
    for split, colour, marker in [("train", "tab:blue", ""), ("valid", "tab:orange", "o")]:
        if points := _points(lines, split):
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=names[split])
    for (name, perplexity), style in zip(baselines.items(), ["--", ":", "-."], strict=False):
        axes.axhline(perplexity, color="gray", linestyle=style, label=f"{name} ({perplexity:.1f})")
    _set_up(axes, "Learning curve", "perplexity (1 is perfect; logarithmic)")
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    save_figure(figure, path, fontsize="medium", loc="center right")


def learning_curves(path: Path, result: Json, curves: Mapping[str, Sequence[Json]]) -> None:
    """Validation perplexity of every member of a sweep against tokens trained on. One colour per setting."""
    settings = [setting["overrides"] for setting in result["settings"]]
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(settings)))
    diverged = any(row["status"] == "diverged" for row in result["members"])
    figure, [axes] = new_figure(
        "Members on the validation text, one colour per setting, from the best (dark) to the worst (bright)."
        + (" Crosses: last values of diverged members." if diverged else "")
    )
    labelled = set()
    for row in sorted(result["members"], key=lambda row: settings.index(_setting(row))):
        rank = settings.index(_setting(row))
        if points := _points(curves[row["name"]], "valid"):
            label = None if rank in labelled or rank >= MAX_LINES else _label(_setting(row).items())
            labelled.add(rank)
            style = {"color": colours[rank], "linewidth": 1, "marker": "o", "markersize": 2}
            axes.plot(*zip(*points, strict=True), label=label, **style)
            if row["status"] == "diverged":
                axes.plot(*points[-1], marker="x", markersize=9, color="black", zorder=5)
    title = f"Learning curves of {len(result['members'])} members"
    _set_up(axes, title, "validation perplexity (1 is perfect; logarithmic)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    plain_ticks(axes.yaxis, subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
    save_figure(figure, path, loc="upper left", bbox_to_anchor=(1, 1))


def _points(lines: Iterable[Json], split: str) -> list[tuple[int, float]]:
    return [(line["tokens"], line["perplexity"]) for line in lines if line["split"] == split and line["perplexity"]]


def _set_up(axes: Any, title: str, ylabel: str) -> None:
    axes.set(title=title, xlabel="tokens trained on", ylabel=ylabel, yscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def loss_by_field(path: Path, result: Json, field: str) -> bool:
    """Final validation loss against one field of a sweep, with a line for each setting of the other fields.

    Returns False and draws nothing unless the field is a number with at least two values in one such setting.
    """

    def others(overrides: Json) -> tuple:
        return tuple((name, value) for name, value in overrides.items() if name not in ("seed", field))

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    settings = [s for s in result["settings"] if s["valid"] and is_number(s["overrides"].get(field))]
    lines: dict[tuple, list[Json]] = {}
    for setting in settings:
        lines.setdefault(others(setting["overrides"]), []).append(setting)
    lines = dict([(name, rows) for name, rows in lines.items() if len(rows) > 1][:MAX_LINES])
    if not lines:
        return False
    crosses = [
        row["overrides"][field]
        for row in result["members"]
        if row["status"] == "diverged" and field in row["overrides"]
    ]
    figure, [axes] = new_figure(
        "Dots: members. Lines: means over seeds. Bars: their standard errors."
        + (" Crosses at the upper edge: diverged members." if crosses else "")
    )
    for number, (name, rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row["overrides"][field])
        values = [row["overrides"][field] for row in rows]
        errors = np.array([row["valid"]["nll_standard_error"] for row in rows], float)  # None becomes nan
        nlls = [row["valid"]["nll"] for row in rows]
        axes.errorbar(values, nlls, errors, color=f"C{number}", capsize=3, label=_label(name) if name else None)
        dots = [row for row in result["members"] if row["valid"] and others(row["overrides"]) == name]
        dots = [(row["overrides"].get(field), row["valid"]["nll"]) for row in dots]
        axes.plot(*zip(*dots, strict=True), "o", markersize=3, alpha=0.5, color=f"C{number}")
    for setting in result["settings"]:
        if not setting["overrides"] and setting["valid"]:
            axes.axhline(setting["valid"]["nll"], color="gray", linestyle="--", label=_label([]))
    if crosses:
        axes.plot(crosses, len(crosses) * [0.98], "x", color="black", transform=axes.get_xaxis_transform())
    values = sorted({setting["overrides"][field] for setting in settings} | set(crosses))
    if values[0] > 0 and values[-1] / values[0] > 8:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, subs=(1, 2, 5) if values[-1] / values[0] < 1e4 else None)
    if len(values) <= MAX_LINES:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set(
        title=f"Validation loss by {field}", xlabel=field.rpartition(".")[2], ylabel="validation loss (nats per token)"
    )
    save_figure(figure, path)
    return True


def _setting(row: Json) -> Json:
    """A member's overrides without its seed."""
    return {field: value for field, value in row["overrides"].items() if field != "seed"}


def _label(setting: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in setting) or "unchanged config"
