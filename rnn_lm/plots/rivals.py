"""What `compare` finds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lm.plots.figure import new_figure, plain_ticks, plot_rows, save_figure


def perplexity_by_context(path: Path, result: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """How well each model predicts over how many tokens it has seen."""
    figure, [axes] = new_figure(
        "An n-gram model is one model for each context. A network is one model for all of them: here it starts afresh, "
        "reads so many tokens of the text, and is asked for the next."
    )
    plot_rows(
        axes, result["ngrams"], "context", "perplexity", marker="o", color="gray", label="n-grams, one model each"
    )
    for (name, shown), marker in zip(names.items(), "^sDvP", strict=False):
        rows = result["by_context"][name]
        axes.plot(rows["context"], np.exp(rows["nll"]), marker=marker, markersize=3, label=shown)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(
        title="What is a longer context worth?",
        xlabel="context: tokens seen before the one that is asked for",
        ylabel="perplexity (1 is perfect; logarithmic)",
        yscale="log",
        xlim=(-0.1, None),
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    save_figure(figure, path, fontsize="medium", loc="upper left", bbox_to_anchor=(1, 1))


def parameters(path: Path, result: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """How many numbers each model has, over how far it looks."""
    counts, size = result["num_params_by_order"], result["corpus"]["vocab_size"]
    figure, [axes] = new_figure(
        f"Each further token multiplies the possible n-grams by |V| = {size}; a text fills few of them. To an MLP it "
        "adds a block of weights, to a recurrent network nothing."
    )
    axes.plot(counts["order"], counts["possible"], "--", color="black", label=f"possible n-grams, $|V|^n$ = {size}$^n$")
    plot_rows(
        axes, result["ngrams"], "order", "num_params", marker="o", color="gray", label="n-grams of the text, stored"
    )
    for (name, shown), marker in zip(names.items(), "^sDvP", strict=False):
        pairs = [pair for pair in zip(counts["order"], counts[name], strict=True) if pair[1] is not None]
        axes.plot(*zip(*pairs, strict=True), marker=marker, markersize=3, label=f"{shown}: parameters")
    axes.set(
        title="What does a longer context cost?",
        xlabel="n: tokens of an n-gram, or time steps",
        ylabel="numbers in the model (logarithmic)",
        yscale="log",
    )
    save_figure(figure, path, fontsize="medium")


COMPARISON = {"perplexity_by_context": perplexity_by_context, "parameters": parameters}
