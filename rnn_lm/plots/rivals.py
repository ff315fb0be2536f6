"""Plots of `compare`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rnn_lm.files import Json
from rnn_lm.plots.figure import REFERENCE, new_figure, plain_ticks, plot_rows, save_figure, style


def perplexity_by_context(path: Path, result: Json, names: Mapping[str, str], *, of: str) -> None:
    """Perplexity of each model over the number of tokens that it has read."""
    figure, [axes] = new_figure(
        f"Perplexity by context: {of}",
        what_context_brings(result, names),
        "Each context length takes its own n-gram model. A network serves all of them: from its initial state it reads "
        "that many tokens and predicts the next.",
    )
    grams = REFERENCE | {"marker": "o", "label": "n-grams, one model each"}
    plot_rows(axes, result["ngrams"], "context", "perplexity", **grams)
    for number, (name, shown) in enumerate(names.items()):
        rows = result["by_context"][name]
        axes.plot(rows["context"], np.exp(rows["nll"]), **style(number), label=shown)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(
        xlabel="context: tokens read before the predicted one",
        ylabel="perplexity (1 is perfect; logarithmic)",
        yscale="log",
        xlim=(-0.1, None),
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis, subs=(1, 2, 3, 5))
    save_figure(figure, path)


def what_context_brings(result: Json, names: Mapping[str, str]) -> str:
    """The context from which on each model is within 1 % of its lowest perplexity, and that perplexity."""
    grams = [(row["context"], row["perplexity"]) for row in result["ngrams"]]
    curves = {"n-grams": grams} | {
        shown: list(zip(result["by_context"][name]["context"], np.exp(result["by_context"][name]["nll"]), strict=True))
        for name, shown in names.items()
    }
    parts = []
    for name, points in curves.items():
        points = [(context, perplexity) for context, perplexity in points if perplexity is not None]
        lowest = min(perplexity for _, perplexity in points)
        enough = min(context for context, perplexity in points if perplexity <= 1.01 * lowest)
        parts.append(f"{name} {enough:.0f} ({lowest:.2f})")
    return f"Tokens of context until the perplexity is within 1 % of its lowest, in parentheses: {', '.join(parts)}."


def parameters(path: Path, result: Json, names: Mapping[str, str], *, of: str) -> None:
    """Size of each model over the length of its n-grams or windows."""
    counts, size = result["num_params_by_order"], result["corpus"]["vocab_size"]
    figure, [axes] = new_figure(
        f"Model size by context: {of}",
        where_ngrams_are_larger(result, names),
        f"Each token of context multiplies the possible n-grams by |V| = {size}, adds a block of weights to an MLP and "
        "nothing to a recurrent network.",
    )
    possible = REFERENCE | {"linestyle": "--", "label": f"possible n-grams, $|V|^n$ = {size}$^n$"}
    axes.plot(counts["order"], counts["possible"], **possible)
    grams = REFERENCE | {"marker": "o", "label": "n-grams in the text (stored)"}
    plot_rows(axes, result["ngrams"], "order", "num_params", **grams)
    for number, (name, shown) in enumerate(names.items()):
        pairs = [pair for pair in zip(counts["order"], counts[name], strict=True) if pair[1] is not None]
        label = f"{shown}: parameters ({pairs[-1][1]:,})"
        axes.plot(*zip(*pairs, strict=True), **style(number), label=label)
    axes.set(xlabel="n: tokens of an n-gram, or time steps", ylabel="parameters or n-grams (logarithmic)", yscale="log")
    save_figure(figure, path)


def where_ngrams_are_larger(result: Json, names: Mapping[str, str]) -> str:
    """The order from which on the text's n-grams outnumber the parameters of every network, and their share."""
    counts, last = result["num_params_by_order"], result["ngrams"][-1]
    largest = {order: max(counts[name][i] or 0 for name in names) for i, order in enumerate(counts["order"])}
    orders = [row["order"] for row in result["ngrams"] if row["num_params"] <= largest[row["order"]]]
    first = max(orders, default=0) + 1
    share = last["num_params"] / last["num_possible"]
    has = f"the text has {share:.2g} of the possible {last['order']}-grams"
    if first > last["order"]:
        return f"At n = {last['order']} the largest network still has more parameters than the text has n-grams; {has}."
    return f"From n = {first} on, the text has more n-grams than any network has parameters; {has}."


COMPARISON = {"perplexity_by_context": perplexity_by_context, "parameters": parameters}
