"""A run's learning curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from rnn_lm.plots.figure import new_figure, plain_ticks, save_figure


def learning_curve(
    path: Path, lines: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], caption: str
) -> None:
    """Perplexity against tokens trained on, for train and validation, with baselines as horizontal lines."""
    figure, [axes] = new_figure(caption)
    names = {"train": "training", "valid": "validation"}
    for split, colour, marker in [("train", "tab:blue", ""), ("valid", "tab:orange", "o")]:
        points = [(x["tokens"], x["perplexity"]) for x in lines if x["split"] == split and x["perplexity"]]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=names[split])
    for (name, perplexity), style in zip(baselines.items(), ["--", ":", "-."], strict=False):
        axes.axhline(perplexity, color="gray", linestyle=style, label=f"{name} ({perplexity:.1f})")
    axes.set(
        title="Learning curve",
        xlabel="tokens trained on",
        ylabel="perplexity (1 is perfect; logarithmic)",
        yscale="log",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center right")
    save_figure(figure, path)
