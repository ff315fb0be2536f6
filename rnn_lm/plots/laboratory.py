"""Plots of the sections of `inspect`."""

from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from rnn_lm.files import Json
from rnn_lm.plots.figure import new_figure, plain_ticks, plot_rows, save_figure

MAX_COLUMNS = 72  # of text


def gradients_by_lag(path: Path, section: Json) -> None:
    """Median and quantiles of ‖∂L_t/∂h_{t−k}‖ over k, and the rate predicted by the Jacobians."""
    figure, [axes] = new_figure(section["finding"])
    for (letter, quantiles), colour in zip(section["quantiles"].items(), ["tab:blue", "tab:green"], strict=False):
        q = {name: np.array(values) for name, values in quantiles.items()}
        first = 0 if letter == "h" else 1  # the loss of step t reads h_t itself, but c_t only through later steps
        lags = np.arange(first, len(q["0.5"]))
        axes.fill_between(lags, q["0.05"][first:], q["0.95"][first:], color=colour, alpha=0.12, linewidth=0)
        axes.fill_between(lags, q["0.25"][first:], q["0.75"][first:], color=colour, alpha=0.2, linewidth=0)
        axes.plot(lags, q["0.5"][first:], color=colour, label=f"{letter}: median; bands: 50 % and 90 % of positions")
    median, rate = np.array(section["quantiles"]["h"]["0.5"]), section["predicted_rate"]
    lags, later = np.arange(len(median)), section["later_lags"]
    if np.isfinite(rate) and later:
        anchor = np.mean(np.log(median[later]) - rate * np.array(later))
        predicted = f"predicted by the largest Lyapunov exponent: × {np.exp(rate):.3f} per step"
        axes.plot(lags, np.exp(anchor + rate * lags), "--", color="tab:red", label=predicted)
    axes.axhline(0.01 * median[0], color="gray", linestyle=":", label="1 % of the median at lag 0")
    if section["effective_memory"]:
        axes.axvline(section["effective_memory"], color="gray", linestyle="-.", label="effective memory")
    axes.set(
        title="Gradient norm by lag",
        xlabel="k: steps back from the loss",
        ylabel=r"$\|\partial L_t\,/\,\partial h_{t-k}\|$  (nats per unit of state, logarithmic)",
        yscale="log",
    )
    save_figure(figure, path, loc="lower left")


def jacobians(path: Path, section: Json) -> None:
    """Eigenvalues and singular values of W_hh, and Lyapunov exponents."""
    figure, [plane, values, exponents] = new_figure(section["finding"], columns=3, size=(15, 5))
    for gate in section["w_hh"]:
        name = f"$W_{{h{gate['gate']}}}$" + (f", layer {gate['layer']}" if section["w_hh"][-1]["layer"] > 1 else "")
        eigenvalues = np.array(gate["eigenvalues"])
        plane.scatter(eigenvalues[:, 0], eigenvalues[:, 1], s=6, label=f"{name} (radius {gate['spectral_radius']:.2f})")
        values.plot(np.arange(1, len(gate["singular_values"]) + 1), gate["singular_values"], label=name)
    turn = np.linspace(0, 2 * np.pi, 200)
    plane.plot(np.cos(turn), np.sin(turn), "k--", linewidth=1, label="unit circle")
    plane.set(title="Eigenvalues of $W_{hh}$", xlabel="real part", ylabel="imaginary part", aspect="equal")
    values.axhline(1, color="black", linestyle="--", linewidth=1)
    values.set(title="Singular values of $W_{hh}$", xlabel="rank", ylabel="singular value (logarithmic)", yscale="log")
    numbers = np.arange(1, len(section["lyapunov_exponents"]) + 1)
    exponents.errorbar(
        numbers, section["lyapunov_exponents"], yerr=section["standard_errors"], fmt="o", capsize=3, color="tab:red"
    )
    exponents.axhline(0, color="black", linestyle="--", linewidth=1, label="above: explodes, below: vanishes")
    exponents.set(title="Lyapunov exponents along the text", xlabel="rank", ylabel="nats per step (± standard error)")
    save_figure(figure, path, fontsize="x-small")


def truncated_gradients(path: Path, section: Json) -> None:
    """Cosine and bias of the truncated gradient over τ."""
    figure, [cosine, bias] = new_figure(section["finding"], columns=2)
    longest = max(row["steps"] for row in section["rows"])  # not truncated
    rows = [row for row in section["rows"] if row["steps"] < longest and row["bias"] > 1e-5]
    for kind, marker, colour in [("segment", "s", "tab:orange"), ("window", "o", "tab:blue")]:
        for name in dict.fromkeys(row["parameter"] for row in rows):
            line = [row for row in rows if (row["kind"], row["parameter"]) == (kind, name)]
            style = {"marker": marker, "label": f"{kind} truncation"} if name == "all" else {"alpha": 0.25}
            plot_rows(cosine, line, "steps", "cosine", color=colour, **style)
            plot_rows(bias, line, "steps", "bias", color=colour, **style)
    cosine.set(title="Direction", ylabel="cosine between truncated and full gradient")
    bias.set(title="Bias", ylabel="‖truncated − full‖ / ‖full‖ (logarithmic)", yscale="log")
    plain_ticks(bias.yaxis, subs=(1, 2, 5))
    for axes in (cosine, bias):
        axes.plot([], [], color="gray", alpha=0.4, label="pale: single parameters")
        axes.set_xlabel("τ: steps until the gradient stops")
        axes.set_xscale("log", base=2)
        plain_ticks(axes.xaxis)
    save_figure(figure, path)


def randomized_truncation(path: Path, section: Json) -> None:
    """Error of a single draw, and of the mean over draws, relative to the full gradient, over π."""
    figure, [axes] = new_figure(section["finding"])
    rows = [row for row in section["rows"] if row["parameter"] == "all"]
    names = {
        "standard_deviation": ("one draw", "o"),
        "bias": (f"the mean of {section['draws']} draws", "s"),
        "standard_error": ("standard error of that mean", ""),
    }
    rows = [row | {"steps": 1 / (1 - row["keep_probability"])} for row in rows]
    for what, (name, marker) in names.items():
        plot_rows(axes, rows, "steps", what, marker=marker, linestyle="-" if marker else "--", label=name)
    axes.axhline(1, color="gray", linestyle=":", label="norm of the full gradient")
    axes.set(
        title="Randomized truncation: no bias, but noise",
        xlabel="π: probability that the gradient continues to the step before (mean steps in parentheses)",
        ylabel="error / norm of the full gradient (logarithmic)",
        xscale="log",
        yscale="log",
    )
    ticks = [f"{row['keep_probability']:g}\n({row['steps']:.0f})" for row in rows]
    axes.set_xticks([row["steps"] for row in rows], ticks)
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_ticks(axes.yaxis, subs=(1, 2, 5))
    save_figure(figure, path)


def clipping(path: Path, section: Json) -> None:
    """Gradient norm before and after clipping, and the share of clipped steps, through the run."""
    figure, [norms, share] = new_figure(section["finding"], rows=2, ratios=[3, 1])
    for what, name in [("grad_norm", "before clipping"), ("clipped_norm", "after")]:
        plot_rows(norms, [line for line in section["lines"] if line.get(what)], "step", what, label=name)
    if section["clip_norm"]:
        norms.axhline(section["clip_norm"], color="gray", linestyle=":", label=f"clip_norm = {section['clip_norm']:g}")
    norms.set(title="Gradient norms through the run", ylabel="global norm (logarithmic)", yscale="log")
    plain_ticks(norms.yaxis, subs=(1, 2, 5))
    clipped = [{"step": line["step"], "%": 100 * line["clipped"]} for line in section["lines"] if "clipped" in line]
    plot_rows(share, clipped, "step", "%", color="tab:red")
    share.set(xlabel="step", ylabel="steps clipped (%)", ylim=(-5, 105))
    save_figure(figure, path)


def cost(path: Path, section: Json) -> None:
    """Memory and time of a gradient over T steps, stored, recomputed and truncated."""
    figure, [memory, seconds] = new_figure(section["finding"], columns=2)
    names = {"cached": "all states stored", "remat": "recomputation (remat)", "truncated": "truncated"}
    for (way, name), marker in zip(names.items(), "os^", strict=True):
        rows = [row | {"MB": row["temporary_bytes"] / 1e6} for row in section["rows"] if row["way"] == way]
        timed = [row | {"ms": 1e3 * row["seconds"]} for row in rows if row["seconds"] is not None]
        plot_rows(memory, rows, "steps", "MB", marker=marker, label=name)
        plot_rows(seconds, timed, "steps", "ms", marker=marker, label=name)
    memory.set(title="Memory of one gradient", ylabel="temporaries (MB, logarithmic)")
    seconds.set(title="Time of one gradient", ylabel="milliseconds (logarithmic)")
    for axes in (memory, seconds):
        axes.set(xlabel=f"T: steps, of {section['batch_size']} sequences", yscale="log")
        axes.set_xscale("log", base=2)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis, subs=(1, 2, 5))
    save_figure(figure, path)


def strategies(path: Path, section: Json) -> None:
    """The book's figure of three truncation strategies: a text, cut where the gradient stops."""
    figure, [axes] = new_figure(section["finding"], size=(12, 3.2))
    shown = [token.replace("\n", "↵").replace("\t", "→") for token in section["tokens"]]
    font = get_font(findfont("monospace"))
    lefts = np.cumsum([0, *(len(token) + (len(token) > 1) for token in shown)])
    tokens = shown[: np.searchsorted(lefts, MAX_COLUMNS, side="right") - 1]
    for row, (name, cuts) in enumerate(section["cuts"].items()):
        edges = [0, *(cut for cut in cuts if cut < len(tokens)), len(tokens)]
        for number, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
            colour = ["tab:blue", "tab:orange", "tab:green"][row]
            box = Rectangle((lefts[start] + 0.08, -row - 0.35), lefts[end] - lefts[start] - 0.16, 0.7)
            box.set(facecolor=colour, alpha=0.15 + 0.12 * (number % 2), edgecolor="none")
            axes.add_patch(box)
        for token, left, right in zip(tokens, lefts, lefts[1:], strict=False):
            token = "".join(c if font.get_char_index(ord(c)) else "□" for c in token)
            axes.text((left + right) / 2, -row, token, ha="center", va="center", family="monospace", fontsize=9)
        axes.text(-1, -row, name, ha="right", va="center")
    axes.set(title="Three kinds of truncation", xlim=(-9, lefts[len(tokens)] + 0.5), ylim=(-2.6, 0.6))
    axes.set_axis_off()
    save_figure(figure, path)


INSPECTION = {
    "gradients_by_lag": gradients_by_lag,
    "jacobians": jacobians,
    "truncated_gradients": truncated_gradients,
    "randomized_truncation": randomized_truncation,
    "clipping": clipping,
    "cost": cost,
    "strategies": strategies,
}
