"""Plots of a search: what its trials found one after the other, and which fields matter."""

import math
from pathlib import Path
from statistics import median

from matplotlib.ticker import MaxNLocator

from rnn_lm.files import Json
from rnn_lm.plots.figure import COLOURS, REFERENCE, new_figure, save_figure

SPREAD = 4  # times what the median is above the lowest loss, is drawn


def history(path: Path, result: Json, *, of: str) -> None:
    """The validation loss of each trial that finished, in the order in which they did, and the lowest so far."""
    rows = result["search"]["history"]
    ends = [row["status"] for row in result["members"]]
    lost = [f"{ends.count(status)} {status}" for status in ("pruned", "diverged") if status in ends]
    nlls, lows = [row["nll"] for row in rows], [row["best"] for row in rows]
    top = lows[-1] + SPREAD * (median(nlls) - lows[-1]) if rows else 0.0
    above = [count for count, nll in enumerate(nlls, start=1) if nll > top]
    figure, [axes] = new_figure(
        f"{_trials(str(len(ends)))} of a search: {of}",
        what_was_found(rows),
        "Dots: trials. Line: the lowest so far."
        + (" Triangles at the upper edge: higher losses." if above else "")
        + (f" Not shown: {_trials(' and '.join(lost))}." if lost else ""),
    )
    if rows:
        counts = range(1, len(rows) + 1)
        shown = [nll if nll <= top else math.nan for nll in nlls]
        axes.plot(counts, shown, "o", color=COLOURS[0], markersize=4, label="a trial")
        axes.step(counts, [min(low, top) for low in lows], where="post", color=COLOURS[1], label="lowest so far")
        axes.plot(above, len(above) * [0.98], "^", color=COLOURS[0], transform=axes.get_xaxis_transform())
    if len(rows) < 2:  # or the ticks were fractions of a trial
        axes.set_xlim(0.5, 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="trials that finished", ylabel="validation loss (nats per token)")
    save_figure(figure, path)


def what_was_found(rows: list[Json]) -> str:
    """When the lowest loss was found."""
    if not rows:
        return "No trial has finished."
    best = min(rows, key=lambda row: row["nll"])
    place = _nth(rows.index(best) + 1)
    return f"The lowest loss, {best['nll']:.3f}, is that of trial {best['trial']}, the {place} to finish."


def _trials(what: str) -> str:
    """`1` → `1 trial`, `1 pruned` → `1 pruned trial`, `2` → `2 trials`."""
    return f"{what} trial{'' if what.split()[0] == '1' and ' and ' not in what else 's'}"


def _nth(count: int) -> str:
    ending = "th" if count % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def importances(path: Path, result: Json, *, of: str) -> bool:
    """The share of each field in what the loss depends on. Returns False and draws nothing if there are no shares."""
    shares = result["search"]["importances"]
    if not shares:
        return False
    names = [name.rpartition(".")[2] for name in shares]
    figure, [axes] = new_figure(
        f"What the loss depends on: {of}",
        f"{names[0]} matters most for being among the best tenth of {len(result['search']['history'])} trials.",
        "By PED-ANOVA: how much the values of the best tenth differ from the whole range. The shares sum to 1. "
        "A field of few choices has a small one.",
    )
    axes.barh(range(len(names)), list(shares.values()), color=COLOURS[0])
    for place, share in enumerate(shares.values()):
        axes.annotate(f"{share:.0%}", (share, place), (3, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, **REFERENCE)
    axes.set(xlabel="share", xlim=(0, max(shares.values()) * 1.12))
    save_figure(figure, path)
    return True
