"""Plots of `compare`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rnn_lm.files import Json
from rnn_lm.plots.figure import new_figure, plain_ticks, plot_rows, save_figure


def perplexity_by_context(path: Path, result: Json, names: Mapping[str, str]) -> None:
    """Perplexity of each model over the number of tokens that it has read."""
    figure, [axes] = new_figure(
        "Each context length takes its own n-gram model. A network serves all of them: from its initial state it reads "
        "that many tokens and predicts the next."
    )
    plot_rows(
        axes, result["ngrams"], "context", "perplexity", marker="o", color="gray", label="n-grams, one model each"
    )
    for (name, shown), marker in zip(names.items(), "^sDvP", strict=False):
        rows = result["by_context"][name]
        axes.plot(rows["context"], np.exp(rows["nll"]), marker=marker, markersize=3, label=shown)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(
        title="Perplexity by context",
        xlabel="context: tokens read before the predicted one",
        ylabel="perplexity (1 is perfect; logarithmic)",
        yscale="log",
        xlim=(-0.1, None),
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    save_figure(figure, path, fontsize="medium", loc="upper left", bbox_to_anchor=(1, 1))


def parameters(path: Path, result: Json, names: Mapping[str, str]) -> None:
    """Size of each model over the length of its n-grams or windows."""
    counts, size = result["num_params_by_order"], result["corpus"]["vocab_size"]
    figure, [axes] = new_figure(
        f"Each token of context multiplies the possible n-grams by |V| = {size}; few of them occur in a text. It adds "
        "a block of weights to an MLP and nothing to a recurrent network."
    )
    axes.plot(counts["order"], counts["possible"], "--", color="black", label=f"possible n-grams, $|V|^n$ = {size}$^n$")
    plot_rows(
        axes, result["ngrams"], "order", "num_params", marker="o", color="gray", label="n-grams in the text (stored)"
    )
    for (name, shown), marker in zip(names.items(), "^sDvP", strict=False):
        pairs = [pair for pair in zip(counts["order"], counts[name], strict=True) if pair[1] is not None]
        axes.plot(*zip(*pairs, strict=True), marker=marker, markersize=3, label=f"{shown}: parameters")
    axes.set(
        title="Model size by context",
        xlabel="n: tokens of an n-gram, or time steps",
        ylabel="parameters or stored n-grams (logarithmic)",
        yscale="log",
    )
    save_figure(figure, path, fontsize="medium")


COMPARISON = {"perplexity_by_context": perplexity_by_context, "parameters": parameters}
