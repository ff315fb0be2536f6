"""Plain numbers → PNG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from rnn_lm.files import write_bytes


def learning_curve(
    path: Path, lines: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], caption: str
) -> None:
    """Perplexity against tokens trained on, for train and validation, with baselines as horizontal lines."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for split, colour, marker in [("train", "tab:blue", ""), ("valid", "tab:orange", "o")]:
        points = [(x["tokens"], x["perplexity"]) for x in lines if x["split"] == split and x["perplexity"]]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=_NAMES[split])
    for (name, perplexity), style in zip(baselines.items(), ["--", ":", "-."], strict=False):
        axes.axhline(perplexity, color="gray", linestyle=style, label=f"{name} ({perplexity:.1f})")
    axes.set(
        title="Learning curve",
        xlabel="tokens trained on",
        ylabel="perplexity (1 is perfect; logarithmic)",
        yscale="log",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([t for t in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if _inside(t, axes.get_ylim())])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.supxlabel(caption, fontsize="small")
    _save(figure, path)


_NAMES = {"train": "training", "valid": "validation"}


def _inside(tick: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= tick <= limits[1]


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
