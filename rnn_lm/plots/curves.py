"""Plots of a run and of a sweep."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from rnn_lm.files import Json
from rnn_lm.plots.figure import COLOURS, DASHES, REFERENCE, new_figure, plain_ticks, save_figure, style

MAX_LINES = 10  # labelled in one plot


def learning_curve(path: Path, lines: Iterable[Json], baselines: Mapping[str, float], *, of: str, read: str) -> None:
    """Perplexity against tokens trained on, for training and validation, with baselines as horizontal lines.

    Args:
      path: of the PNG file.
      lines: the run's metrics.
      baselines: perplexities by name, measured on the text of the validation lines.
      of: model and text, for the title.
      read: names the text that the validation lines and the baselines read.
    """
    names = {"train": "training", "valid": "validation"}
    points: dict[str, array[float]] = {split: array("d") for split in names}  # 16 bytes each: a long run has many
    evaluations = []
    for line in lines:
        if line["perplexity"]:
            points[line["split"]].extend((line["tokens"], line["perplexity"]))
            evaluations += [line] if line["split"] == "valid" else []
    figure, [axes] = new_figure(
        f"Learning curve: {of}",
        what_was_learned(evaluations, baselines),
        f"Validation and baselines: on {read}. Training: mean since the point before.",
    )
    for split, colour, marker in [("train", COLOURS[0], ""), ("valid", COLOURS[1], "o")]:
        if curve := points[split]:
            name = f"{names[split]} (ends at {curve[-1]:.2f})"
            axes.plot(curve[::2], curve[1::2], color=colour, marker=marker, markersize=3, label=name)
    for (name, perplexity), dash in zip(baselines.items(), DASHES[1:], strict=False):
        axes.axhline(perplexity, **REFERENCE, linestyle=dash, label=f"{name} ({perplexity:.2f})")
    _set_up(axes, "perplexity (1 is perfect; logarithmic)")
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    save_figure(figure, path)


def what_was_learned(rows: Sequence[Json], baselines: Mapping[str, float]) -> str:
    """The best of the validation lines `rows`, beside the best baseline and the last line."""
    if not rows:
        return "There was no evaluation on the validation text."
    best, last = min(rows, key=lambda row: row["perplexity"]), rows[-1]
    text = f"The validation perplexity is lowest at step {best['step']:,}: {best['perplexity']:.2f}"
    if baselines:
        name, rival = min(baselines.items(), key=lambda pair: pair[1])
        ratio = best["perplexity"] / rival - 1
        side = "below" if ratio < 0 else "above"
        how = "about" if abs(ratio) < 0.005 else f"{100 * abs(ratio):.1f} % {side}"
        text += f", {how} that of the {name} ({rival:.2f})"
    rise = last["perplexity"] > 1.01 * best["perplexity"]
    return text + (f"; it has risen to {last['perplexity']:.2f} at the end." if rise else ".")


def learning_curves(path: Path, result: Json, curves: Mapping[str, Sequence[Json]], *, of: str) -> None:
    """Validation perplexity of every member of a sweep against tokens trained on. One style per setting."""
    ranks = {tuple(setting["overrides"].items()): rank for rank, setting in enumerate(result["settings"])}
    rank_of = {row["name"]: ranks[tuple(_setting(row).items())] for row in result["members"]}
    diverged = [row for row in result["members"] if row["status"] == "diverged"]
    labels = "The seeds of a setting look alike; one of them has the label."
    figure, [axes] = new_figure(
        f"Learning curves of {len(result['members'])} members: {of}",
        who_is_lowest(result["members"], curves),
        ("The best trials have labels." if "search" in result else labels)
        + (" Crosses: last values of diverged members." if diverged else ""),
    )
    labelled = set()
    for row in sorted(result["members"], key=lambda row: rank_of[row["name"]]):
        rank = rank_of[row["name"]] if row["status"] != "pruned" else MAX_LINES
        if points := _points(curves[row["name"]], "valid"):
            how = style(rank) | {"markersize": 3} if rank < MAX_LINES else REFERENCE
            if rank not in labelled and rank <= MAX_LINES:
                how = how | {"label": _name_of(row) if rank < MAX_LINES else "other settings"}
                labelled.add(rank)
            axes.plot(*zip(*points, strict=True), **{"linewidth": 1} | how)
            if row["status"] == "diverged":
                axes.plot(*points[-1], marker="x", markersize=9, color="black", zorder=5)
    _set_up(axes, "validation perplexity (1 is perfect; logarithmic)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    plain_ticks(axes.yaxis, subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
    save_figure(figure, path)


def who_is_lowest(members: Sequence[Json], curves: Mapping[str, Sequence[Json]]) -> str:
    """The member with the lowest point of all curves, and how many diverged."""
    lows = [
        (perplexity, tokens, f"trial {row['trial']}" if "trial" in row else row["name"])
        for row in members
        for tokens, perplexity in _points(curves[row["name"]], "valid")
    ]
    diverged = sum(row["status"] == "diverged" for row in members)
    lost = f"{diverged} of {len(members)} members diverged." if diverged else ""
    if not lows:
        return lost or "No member has been evaluated yet."
    perplexity, tokens, name = min(lows)
    return f"The lowest perplexity, {perplexity:.2f}, is that of {name} after {tokens:,} tokens. {lost}".strip()


def _points(lines: Iterable[Json], split: str) -> list[tuple[int, float]]:
    return [(line["tokens"], line["perplexity"]) for line in lines if line["split"] == split and line["perplexity"]]


def _set_up(axes: Any, ylabel: str) -> None:
    axes.set(xlabel="tokens trained on", ylabel=ylabel, yscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def loss_by_field(path: Path, result: Json, field: str, *, of: str) -> bool:
    """Final validation loss against one field of a sweep, with a line for each setting of the other fields.

    Returns False and draws nothing unless the field is a number with at least two values in one such setting.
    """
    lines = _lines_of(result["settings"], field)
    if not lines:
        return False
    unchanged = [setting for setting in result["settings"] if not setting["overrides"] and setting["valid"]]
    diverged = [row["overrides"] for row in result["members"] if row["status"] == "diverged"]
    crosses = [overrides[field] for overrides in diverged if _is_number(overrides.get(field))]
    seeds = any(setting["members"] > 1 for rows in lines.values() for setting in rows)
    figure, [axes] = new_figure(
        f"Validation loss by {field}: {of}",
        which_is_best([*unchanged, *(row for rows in lines.values() for row in rows)]),
        ("Dots: members. Lines: means over seeds. Bars: their standard errors." if seeds else "One member per dot.")
        + (" Crosses at the upper edge: diverged members." if crosses else ""),
    )
    for number, (name, rows) in enumerate(lines.items()):
        dots = [row for row in result["members"] if row["valid"] and _others(row["overrides"], field) == name]
        _draw_line(axes, field, rows, dots, style(number) | {"label": _label(name) if name else None})
    for setting in unchanged:
        nll = setting["valid"]["nll"]
        axes.axhline(nll, **REFERENCE, linestyle="--", label=f"{_label([])} ({nll:.3f})")
    if crosses:
        axes.plot(crosses, len(crosses) * [0.98], "x", color="black", transform=axes.get_xaxis_transform())
    values = sorted({row["overrides"][field] for rows in lines.values() for row in rows} | set(crosses))
    if values[0] > 0 and values[-1] / values[0] > 8:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, subs=(1, 2, 5) if values[-1] / values[0] < 1e4 else None)
    if len(values) <= MAX_LINES:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=field.rpartition(".")[2], ylabel="validation loss (nats per token)")
    save_figure(figure, path)
    return True


def _lines_of(settings: Sequence[Json], field: str) -> dict[tuple, list[Json]]:
    """The settings along each line, in the order of the field's values; a line has the same values of other fields."""
    lines: dict[tuple, list[Json]] = {}
    for setting in settings:
        if setting["valid"] and _is_number(setting["overrides"].get(field)):
            lines.setdefault(_others(setting["overrides"], field), []).append(setting)
    long = [(name, rows) for name, rows in lines.items() if len(rows) > 1][:MAX_LINES]
    return {name: sorted(rows, key=lambda row: row["overrides"][field]) for name, rows in long}


def _draw_line(axes: Any, field: str, rows: Sequence[Json], members: Sequence[Json], how: Json) -> None:
    values, nlls = [row["overrides"][field] for row in rows], [row["valid"]["nll"] for row in rows]
    errors = np.array([row["valid"]["nll_standard_error"] for row in rows], float)  # None becomes nan
    axes.plot(values, nlls, **how | {"marker": ""})
    axes.errorbar(values, nlls, errors, fmt="none", ecolor=how["color"], capsize=4)
    dots = [row["overrides"].get(field) for row in members], [row["valid"]["nll"] for row in members]
    axes.plot(*dots, **how | {"linestyle": "", "markerfacecolor": "none", "label": None})


def which_is_best(settings: Sequence[Json]) -> str:
    """The setting with the lowest mean loss, and those that chance may have put behind it."""
    given = [set(setting["overrides"].items()) for setting in settings if setting["overrides"]]
    shared = set.intersection(*given) if len(given) > 1 else set()

    def name(setting: Json) -> str:
        fields = [pair for pair in setting["overrides"].items() if pair not in shared]
        return _label(fields).replace(", ", " ") if fields else "the unchanged config"

    best, *others = sorted(settings, key=lambda setting: setting["valid"]["nll"])
    nll, error = best["valid"]["nll"], best["valid"]["nll_standard_error"]
    text = f"The loss is lowest with {name(best)}: {nll:.3f}"
    if error is None:
        return f"{text}. One seed does not show how much of a difference is chance."

    def is_close(other: Json) -> bool:
        return other["valid"]["nll"] - nll < 2 * hypot(error, other["valid"]["nll_standard_error"] or 0)

    close = [name(other) for other in others if is_close(other)]
    who = ", ".join(close) if 0 < len(close) < 4 else f"{len(close) or 'no'} others"
    verb = "is" if len(close) == 1 else "are"
    return f"{text} ± {error:.3f}; {who} {verb} within two standard errors of the difference."


def _others(overrides: Json, field: str) -> tuple:
    return tuple((name, value) for name, value in overrides.items() if name not in ("seed", field))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _setting(row: Json) -> Json:
    """A member's overrides without its seed."""
    return {field: value for field, value in row["overrides"].items() if field != "seed"}


def _name_of(row: Json) -> str:
    """A member by its setting, or by the number of its trial: what a search draws has many digits."""
    return f"trial {row['trial']}" if "trial" in row else _label(_setting(row).items())


def _label(setting: Iterable[tuple[str, Any]]) -> str:
    shown = ((field, f"{value:.4g}" if isinstance(value, float) else value) for field, value in setting)
    return ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in shown) or "unchanged config"
