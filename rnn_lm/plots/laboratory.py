"""Plots of the sections of `inspect`. `of` names what was inspected, for the title."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from rnn_lm.files import Json
from rnn_lm.plots.figure import (
    COLOURS,
    REFERENCE,
    band,
    new_figure,
    plain_ticks,
    plot_rows,
    save_figure,
    style,
)

MAX_COLUMNS = 72  # of text


def gradients_by_lag(path: Path, section: Json, *, of: str) -> None:
    """Median and quantiles of ‖∂L_t/∂h_{t−k}‖ over k, and the rate predicted by the Jacobians."""
    figure, [axes] = new_figure(f"Gradient norm by lag: {of}", section["finding"])
    for (letter, quantiles), colour in zip(section["quantiles"].items(), COLOURS, strict=False):
        q = {name: np.array(values) for name, values in quantiles.items()}
        first = 0 if letter == "h" else 1  # the loss of step t reads h_t itself, but c_t only through later steps
        lags = np.arange(first, len(q["0.5"]))
        for share, low, high, alpha in (("90", "0.05", "0.95", 0.1), ("50", "0.25", "0.75", 0.2)):
            name = f"{letter}: middle {share} % of positions"
            band(axes, lags, q[low][first:], q[high][first:], label=name, color=colour, alpha=alpha)
        axes.plot(lags, q["0.5"][first:], color=colour, label=f"{letter}: median")
    median, rate = np.array(section["quantiles"]["h"]["0.5"]), section["predicted_rate"]
    lags, later = np.arange(len(median)), section["later_lags"]
    if np.isfinite(rate) and later:
        anchor = np.mean(np.log(median[later]) - rate * np.array(later))
        predicted = f"predicted slope: × {np.exp(rate):.3f} per step (exp of the largest Lyapunov exponent)"
        axes.plot(lags, np.exp(anchor + rate * lags), "--", color=COLOURS[1], label=predicted)
    axes.axhline(0.01 * median[0], **REFERENCE, linestyle=":", label="1 % of the median at lag 0")
    if section["effective_memory"]:
        label = f"effective memory: {section['effective_memory']} steps"
        axes.axvline(section["effective_memory"], **REFERENCE, linestyle="-.", label=label)
    axes.set(
        xlabel="k: steps back from the loss",
        ylabel=r"$\|\partial L_t\,/\,\partial h_{t-k}\|$  (nats per unit of state, logarithmic)",
        yscale="log",
    )
    save_figure(figure, path)


def jacobians(path: Path, section: Json, *, of: str) -> None:
    """Eigenvalues and singular values of W_hh, and the growth per step along the text."""
    figure, [plane, values, growth] = new_figure(
        f"$W_{{hh}}$ and growth along the text: {of}",
        section["finding"],
        "Dashed: the factor 1. Gradients that are multiplied by less vanish, by more explode.",
        columns=3,
        size=(15, 5.5),
    )
    for number, gate in enumerate(section["w_hh"]):
        name = f"$W_{{h{gate['gate']}}}$" + (f", layer {gate['layer']}" if section["w_hh"][-1]["layer"] > 1 else "")
        eigenvalues, how = np.array(gate["eigenvalues"]), style(number)
        radius = f"{name} (radius {gate['spectral_radius']:.2f})"
        plane.plot(*eigenvalues.T, **how | {"linestyle": "", "markersize": 3, "label": radius})
        singular = gate["singular_values"]
        values.plot(np.arange(1, len(singular) + 1), singular, **how | {"marker": ""}, label=name)
    turn = np.linspace(0, 2 * np.pi, 200)
    plane.plot(np.cos(turn), np.sin(turn), "k--", linewidth=1, label="unit circle", zorder=3)
    plane.set(title="Eigenvalues of $W_{hh}$", xlabel="real part", ylabel="imaginary part", aspect="equal")
    plane.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    values.set(title="Singular values of $W_{hh}$", xlabel="rank", ylabel="singular value (logarithmic)", yscale="log")
    factors = np.exp(np.array(section["lyapunov_exponents"], float))
    errors = factors * np.array(section["standard_errors"], float)
    growth.errorbar(np.arange(1, len(factors) + 1), factors, yerr=errors, fmt="o", capsize=3, color=COLOURS[1])
    growth.set(title="Growth per step along the text", xlabel="rank", ylabel="exp of Lyapunov exponent (± s.e.)")
    growth.xaxis.set_major_locator(MaxNLocator(integer=True))
    growth.margins(x=0.05)
    for axes in (values, growth):
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
    save_figure(figure, path)


def truncated_gradients(path: Path, section: Json, *, of: str) -> None:
    """Cosine and bias of the truncated gradient over τ."""
    figure, [cosine, bias] = new_figure(
        f"Truncated gradients: {of}",
        section["finding"],
        "Thick: the whole gradient. Thin, in the same colour: that of each parameter alone.",
        columns=2,
    )
    longest = max(row["steps"] for row in section["rows"])  # not truncated
    rows = [row for row in section["rows"] if row["steps"] < longest and row["bias"] > 1e-5]
    for number, kind in enumerate(("segment", "window")):
        for name in dict.fromkeys(row["parameter"] for row in rows):
            line = [row for row in rows if (row["kind"], row["parameter"]) == (kind, name)]
            how = style(number) | ({"label": f"{kind} truncation"} if name == "all" else {"marker": "", "lw": 0.5})
            plot_rows(cosine, line, "steps", "cosine", **how)
            plot_rows(bias, line, "steps", "bias", **how)
    cosine.set(title="Direction", ylabel="cosine between truncated and full gradient")
    bias.set(title="Bias", ylabel="‖truncated − full‖ / ‖full‖ (logarithmic)", yscale="log")
    plain_ticks(bias.yaxis, subs=(1, 2, 5))
    for axes in (cosine, bias):
        axes.set_xlabel("τ: steps until the gradient stops")
        axes.set_xscale("log", base=2)
        plain_ticks(axes.xaxis)
    save_figure(figure, path)


def randomized_truncation(path: Path, section: Json, *, of: str) -> None:
    """The standard deviation of a single draw, relative to the full gradient, over π."""
    figure, [axes] = new_figure(
        f"Randomized truncation: {of}",
        section["finding"],
        "Thick: the whole gradient. Thin: that of each parameter alone, over its own norm.",
    )
    rows = [row | {"steps": 1 / (1 - row["keep_probability"])} for row in section["rows"] if row["standard_deviation"]]
    for name in dict.fromkeys(row["parameter"] for row in rows):
        how = style(0) | ({"label": "whole gradient"} if name == "all" else {"marker": "", "lw": 0.5})
        plot_rows(axes, [row for row in rows if row["parameter"] == name], "steps", "standard_deviation", **how)
    axes.axhline(1, **REFERENCE, linestyle=":", label="norm of the full gradient")
    axes.set(
        xlabel="π: probability that the gradient continues to the step before (mean steps in parentheses)",
        ylabel="standard deviation / ‖full gradient‖ (logarithmic)",
        xscale="log",
        yscale="log",
    )
    ticks = {row["steps"]: f"{row['keep_probability']:g}\n({row['steps']:.0f})" for row in rows}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    save_figure(figure, path)


def clipping(path: Path, section: Json, *, of: str) -> None:
    """Gradient norms of clipped and other steps, and the number of clipped steps, through the run."""
    figure, [norms, count] = new_figure(
        f"Gradient clipping: {of}",
        section["finding"],
        "Each point is a mean over the steps of a train line; clipped steps are shown before clipping.",
        rows=2,
        ratios=[3, 1],
    )
    lines = [{"norm_of_others": line.get("grad_norm")} | line for line in section["lines"]]
    others = [line for line in lines if line["norm_of_others"]]
    acted = [line for line in lines if line.get("norm_of_clipped")]
    plot_rows(norms, others, "step", "norm_of_others", color=COLOURS[0], label="steps that were not clipped")
    if acted:
        plot_rows(norms, acted, "step", "norm_of_clipped", color=COLOURS[1], ls="", marker="^", label="clipped steps")
    if section["clip_norm"]:
        label = f"clip_norm = {section['clip_norm']:g}"
        norms.axhline(section["clip_norm"], **REFERENCE, linestyle="--", label=label)
    norms.set(ylabel="global norm (logarithmic)", yscale="log")
    plain_ticks(norms.yaxis, subs=(1, 2, 5))
    rows = [{"step": line["step"], "clipped": line["clipped"] * line["steps"]} for line in acted]
    count.vlines([row["step"] for row in rows], 0, [row["clipped"] for row in rows], color=COLOURS[1])
    plot_rows(count, rows, "step", "clipped", color=COLOURS[1], ls="", marker="^")
    count.set(xlabel="step", ylabel="clipped steps", ylim=(0, 1.2 * max([1, *(row["clipped"] for row in rows)])))
    count.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    save_figure(figure, path)


def cost(path: Path, section: Json, *, of: str) -> None:
    """Memory and time of a gradient over T steps, stored, recomputed and truncated."""
    figure, [memory, seconds] = new_figure(f"Cost of one gradient: {of}", section["finding"], columns=2)
    names = {"cached": "all states stored", "remat": "recomputation (remat)", "truncated": "truncated"}
    for number, (way, name) in enumerate(names.items()):
        rows = [row | {"MB": row["temporary_bytes"] / 1e6} for row in section["rows"] if row["way"] == way]
        timed = [row | {"ms": 1e3 * row["seconds"]} for row in rows if row["seconds"] is not None]
        plot_rows(memory, rows, "steps", "MB", **style(number), label=name)
        plot_rows(seconds, timed, "steps", "ms", **style(number), label=name)
    memory.set(title="Memory", ylabel="temporaries (MB, logarithmic)")
    seconds.set(title="Time", ylabel="milliseconds (logarithmic)")
    lengths = sorted({row["steps"] for row in section["rows"]})
    for axes in (memory, seconds):
        axes.set(xlabel=f"T: steps, of {section['batch_size']} sequences", yscale="log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, map(str, lengths))
        plain_ticks(axes.yaxis, subs=(1, 2, 5))
    save_figure(figure, path)


def strategies(path: Path, section: Json, *, of: str) -> None:
    """The book's figure of three truncation strategies: a text, cut where the gradient stops."""
    figure, [axes] = new_figure(f"Three kinds of truncation: {of}", section["finding"], size=(13, 3.2))
    shown = [token.replace("\n", "↵").replace("\t", "→") for token in section["tokens"]]
    font = get_font(findfont("monospace"))
    lefts = np.cumsum([0, *(len(token) + (len(token) > 1) for token in shown)])
    tokens = shown[: np.searchsorted(lefts, MAX_COLUMNS, side="right") - 1]
    for row, (name, cuts) in enumerate(section["cuts"].items()):
        edges = [0, *(cut for cut in cuts if cut < len(tokens)), len(tokens)]
        _draw_boxes(axes, lefts[edges], -row, COLOURS[row])
        for token, left, right in zip(tokens, lefts, lefts[1:], strict=False):
            token = "".join(c if font.get_char_index(ord(c)) else "□" for c in token)
            axes.text((left + right) / 2, -row, token, ha="center", va="center", family="monospace", fontsize=8)
        axes.text(-1, -row, name, ha="right", va="center")
    axes.set(xlim=(-9, lefts[len(tokens)] + 0.5), ylim=(-2.6, 0.6))
    axes.set_axis_off()
    save_figure(figure, path)


def _draw_boxes(axes: Any, edges: np.ndarray, y: float, colour: str) -> None:
    for start, end in zip(edges, edges[1:], strict=False):
        for fill in (True, False):  # a pale area and its outline
            box = Rectangle((start + 0.12, y - 0.35), end - start - 0.24, 0.7, fill=fill)
            box.set(facecolor=(colour, 0.12) if fill else "none", edgecolor="none" if fill else colour)
            axes.add_patch(box)


INSPECTION = {
    "gradients_by_lag": gradients_by_lag,
    "jacobians": jacobians,
    "truncated_gradients": truncated_gradients,
    "randomized_truncation": randomized_truncation,
    "clipping": clipping,
    "cost": cost,
    "strategies": strategies,
}
