"""The measurements of `inspect`: each function returns its numbers and a one-sentence finding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnn_lm.analysis.cost import step_costs
from rnn_lm.analysis.gradients import (
    Gradient,
    Minibatch,
    compared,
    effective_memory,
    gradient,
    later_lags,
    minibatch_of,
    norms_by_lag,
    rate_by_lag,
    windows_of,
)
from rnn_lm.analysis.jacobians import lyapunov_exponents, recurrent_spectra
from rnn_lm.analysis.randomized import randomized_spread
from rnn_lm.files import Json
from rnn_lm.keys import named_key
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation

POSITIONS = 128  # maximum number of losses to follow back
TEXTS = 32  # maximum number of texts for the Lyapunov exponents
MIN_TEXTS = 8  # to compare with their standard errors
MINIBATCH = 8  # maximum number of windows for comparing full and truncated gradients
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEEP_PROBABILITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
LENGTHS = (1, 4, 16)  # T / segment_length for measuring cost
SHOWN, SHOWN_SEGMENT = 60, 12  # tokens in the plot of the strategies, and in one segment


@dataclass(frozen=True)
class Subject:
    """A trained model, a text, and the fields and metrics of its run."""

    model: Any  # an RNNLM, or an MLPLM, which has the sections `WITHOUT_STATE` only
    ids: np.ndarray  # the text
    window: int  # number of steps to look back
    batch_size: int
    segment_length: int
    clip_norm: float
    lines: list[Json]  # metrics.jsonl

    def minibatch(self, count: int) -> Minibatch:
        return minibatch_of(self.model, windows_of(self.ids, count, self.window))

    @cached_property
    def batch(self) -> Minibatch:
        """The minibatch for comparing gradients."""
        return self.minibatch(MINIBATCH)

    @cached_property
    def full(self) -> Gradient:
        return gradient(self.model, self.batch)

    @property
    def num_texts(self) -> int:
        """Texts for the Lyapunov exponents, without overlap."""
        return max(1, min(TEXTS, len(self.ids) // (2 * self.window + 1)))

    @cached_property
    def lyapunov(self) -> tuple[np.ndarray, np.ndarray]:
        return lyapunov_exponents(self.model, windows_of(self.ids, self.num_texts, self.window), warm_up=self.window)


Section = Json


def inspect(subject: Subject, on_progress: Callable[[str], object] = lambda title: None) -> dict[str, Section]:
    """All sections that the model supports, by name. `on_progress` is called with the title of each section first.

    Raises:
      UserError: if the text is too short for the window.
    """
    sections = {}
    for name, (title, section) in SECTIONS.items():
        if _has_section(subject.model, name) and (subject.lines or name not in OF_A_LOG):
            on_progress(title)
            sections[name] = section(subject)
    return sections


def _has_section(model: Any, name: str) -> bool:
    if not isinstance(model, RNNLM):
        return name in WITHOUT_STATE
    carry = jax.eval_shape(lambda: model.initialize_carry(1))
    of_numbers = all(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim == 2 for leaf in jax.tree.leaves(carry))
    top = model.cell.cells[-1] if isinstance(model.cell, Stack) else model.cell
    return name not in OF_A_STATE or (of_numbers and hasattr(top, "output"))


def gradients_by_lag(subject: Subject) -> Section:
    """‖∂L_t/∂h_{t−k}‖ over k, its rate, and the rate predicted by the largest Lyapunov exponent."""
    norms = norms_by_lag(subject.model, subject.minibatch(POSITIONS))
    (exponent, *_), (error, *_) = subject.lyapunov
    memory, rate = effective_memory(norms["h"]), rate_by_lag(norms["h"])
    median = np.median(norms["h"], axis=1)
    if not median[0] > 0:  # nan too
        finding = "The gradient is 0 or not finite at the step of the loss, so there is nothing to measure."
    elif memory:
        finding = f"The median gradient falls below 1 % of its initial norm after {memory} steps back."
    elif np.isfinite(median).all():
        finding = f"The median gradient stays above 1 % of its initial norm over {subject.window} steps back."
    else:
        finding = f"The median gradient leaves float32's range after {np.isfinite(median).argmin()} steps back."
    if np.isfinite(rate) and np.isfinite(exponent):
        finding += f" At later lags gradients are multiplied by {np.exp(rate):.3f} per step; "
        finding += f"exp of the largest Lyapunov exponent predicts {np.exp(exponent):.3f}."
        # The rate is as uncertain as the exponent. 4 errors of one are 2.8 of the difference.
        if subject.num_texts >= MIN_TEXTS and exponent - rate > max(0.02, 4 * error):
            finding += " (They differ: the loss hardly depends on what the state keeps longest.)"
    return {
        "finding": finding,
        "positions": norms["h"].shape[1],
        "quantiles": {
            letter: {f"{q:g}": np.quantile(of_letter, q, axis=1).tolist() for q in QUANTILES}
            for letter, of_letter in norms.items()
        },
        "later_lags": later_lags(norms["h"]).tolist(),
        "effective_memory": memory,
        "rate": rate,
        "predicted_rate": float(exponent),
    }


def jacobians(subject: Subject) -> Section:
    """Eigenvalues and singular values of each gate of W_hh, and Lyapunov exponents along the text."""
    spectra = recurrent_spectra(subject.model)
    exponents, errors = subject.lyapunov
    radii = sorted(gate["spectral_radius"] for gate in spectra)
    ends = radii if len(radii) < 2 else [radii[0], radii[-1]]
    radius = " to ".join(f"{radius:.2f}" for radius in ends)
    finding = f"The spectral radius of W_hh is {radius}" if radii else "W_hh has no square blocks"
    if {gate["gate"] for gate in spectra} == {"h"}:  # an Elman cell, whose gradients are powers of W_hh
        changed = subject.window * np.log(max(radii[-1], 1e-30))
        fate = f"{'explode' if changed > 0 else 'vanish'} in the long run"
        fate = f"keep their size over {subject.window} steps" if abs(changed) < 0.1 else fate
        finding += f": by this factor alone, gradients would {fate}"
    if np.isfinite(exponents[0]):
        error = f" (± {np.exp(exponents[0]) * errors[0]:.3f})" if np.isfinite(errors[0]) else ""
        finding += (
            ". Including the derivatives of activations and gates, gradients are multiplied by "
            f"{np.exp(exponents[0]):.3f}{error} per step: exp of the largest Lyapunov exponent"
        )
    return {
        "finding": f"{finding}.",
        "w_hh": spectra,
        "lyapunov_exponents": exponents.tolist(),
        "standard_errors": errors.tolist(),
        "texts": subject.num_texts,
    }


def truncated_gradients(subject: Subject) -> Section:
    """Segment and window truncation of 1, 2, 4, … steps compared with the full gradient, by parameter."""
    rows = []
    for steps in [2**i for i in range(32) if 2**i < subject.window] + [subject.window]:
        for kind, truncation in (("segment", SegmentTruncation(steps)), ("window", WindowTruncation(steps))):
            by_name = compared(gradient(subject.model, subject.batch, truncation), subject.full)
            rows += [{"kind": kind, "steps": steps, "parameter": name} | row for name, row in by_name.items()]
    parts = []
    for kind, how in (
        ("window", "each loss looks back {} (window)"),
        ("segment", "the text is cut every {} (segment)"),
    ):
        # The last row is of the whole window, which is no truncation.
        *totals, _ = [row for row in rows if row["kind"] == kind and row["parameter"] == "all"]
        enough = _from_there_on([row["bias"] < 0.1 for row in totals])
        if enough is not None:
            parts.append("within 10 % of it if " + how.format(f"{totals[enough]['steps']} steps or more"))
        elif totals:
            parts.append(f"{100 * totals[-1]['bias']:.0f} % off if " + how.format(f"{totals[-1]['steps']} steps"))
    known = subject.window > 1 and all(np.isfinite(row["bias"]) for row in rows if row["parameter"] == "all")
    finding = f"Compared with the full gradient ({subject.window} steps), the truncated one is {', and '.join(parts)}."
    return {
        "finding": finding if known else "The gradient is 0 or not finite, so there is nothing to compare.",
        "windows": subject.batch.labels.shape[1],
        "rows": rows,
    }


def randomized_truncation(subject: Subject) -> Section:
    """The exact standard deviation of randomized truncation for several π, by parameter, over the full gradient."""
    names = {"all": list(subject.full)} | {name: [name] for name in subject.full}
    spread = randomized_spread(subject.model, subject.batch, KEEP_PROBABILITIES)
    rows: list[Json] = []
    for at, probability in enumerate(KEEP_PROBABILITIES):
        for name, parts in names.items():
            norm = np.linalg.norm([np.linalg.norm(subject.full[part]) for part in parts])
            with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is nan
                deviation = float(np.linalg.norm([spread[part][at] for part in parts]) / norm)
            rows.append({"keep_probability": probability, "parameter": name, "standard_deviation": deviation})
    totals = [row for row in rows if row["parameter"] == "all"]
    return {"finding": _spread_in_words(totals), "windows": subject.batch.labels.shape[1], "rows": rows}


def _spread_in_words(totals: Sequence[Json]) -> str:
    """The finding about the spread at each π, from small to large; the larger π, the smaller the spread."""
    times = {row["keep_probability"]: row["standard_deviation"] for row in totals}
    if not all(map(np.isfinite, times.values())):
        return "The gradient or its spread is 0 or not finite, so there is nothing to compare."
    least, most = min(times), max(times)
    quiet = min((probability for probability, spread in times.items() if spread < 1), default=None)
    one, norm = "the standard deviation of a single draw is", "the norm of the full gradient"
    if quiet is None:
        finding = f"Even at π = {most:g}, {one} {times[most]:.2g} times {norm}"
    else:
        finding = f"From π = {quiet:g}, {one} smaller than {norm} ({times[quiet]:.2g} times it)"
    rest = f"; at π = {least:g}, it is {times[least]:.2g} times that norm" if least != (quiet or most) else ""
    return f"{finding}{rest}."


def _from_there_on(fits: Sequence[Any]) -> int | None:
    """The index from which all are true; None if the last is false."""
    misfits = [i for i, fit in enumerate(fits) if not fit]
    start = misfits[-1] + 1 if misfits else 0
    return start if start < len(fits) else None


def clipping(subject: Subject) -> Section:
    """Gradient norms through the run, of clipped steps and of others, and the number and share of clipped steps.

    A train line has the means over its steps, before and after clipping. After it a clipped step has the norm
    `clip_norm`, so the two means give one of the clipped steps alone and one of the others.
    """
    names = ("step", "grad_norm", "clipped_norm", "clipped")
    lines = [{n: line[n] for n in names if n in line} for line in subject.lines if line["split"] == "train"]
    for line, steps in zip(lines, np.diff([0, *(line["step"] for line in lines)]).tolist(), strict=True):
        line["steps"] = steps
        if line.get("clipped") is not None and line.get("grad_norm") is not None:
            line |= _norms_apart(line, subject.clip_norm)
    noted = [line for line in lines if "clipped" in line]
    count, of = sum(line["clipped"] * line["steps"] for line in noted), sum(line["steps"] for line in noted)
    share = count / of if of else None
    if share is not None:
        finding = f"The gradient norm was clipped to {subject.clip_norm:g} at {100 * share:.1f} % of the steps "
        finding += f"({count:,.0f} of {of:,})"
        if acted := [line for line in noted if line.get("norm_of_clipped")]:
            mean = sum(line["norm_of_clipped"] * line["clipped"] * line["steps"] for line in acted) / count
            finding += f", the last by step {acted[-1]['step']:,}. Before clipping these had a mean norm of {mean:.3g}"
        finding += "."
    elif not subject.clip_norm:
        finding = "Gradients were not clipped: clip_norm is 0."
    else:
        finding = "The run has not logged clipping: it was stopped too early, or made by an older version."
    return {"finding": finding, "clip_norm": subject.clip_norm, "share": share, "lines": lines}


def _norms_apart(line: Json, limit: float) -> Json:
    """The mean norms of a line's clipped steps, before clipping, and of its other steps."""
    share = line["clipped"]
    return {
        "norm_of_clipped": limit + (line["grad_norm"] - line["clipped_norm"]) / share if share else None,
        "norm_of_others": (line["clipped_norm"] - share * limit) / (1 - share) if share < 1 else None,
    }


def cost(subject: Subject) -> Section:
    """Memory and time of a gradient over T steps: states stored, recomputed, or truncated."""
    lengths = [subject.segment_length * factor for factor in LENGTHS]
    rows = step_costs(subject.model, batch_size=subject.batch_size, segment=subject.segment_length, lengths=lengths)
    cached, remat, truncated = (f"{row['temporary_bytes'] / 1e6:.3g}" for row in rows[-3:])
    return {
        "finding": f"A gradient over {lengths[-1]:,} steps needs {cached} MB with all states stored, {remat} MB with "
        f"recomputation, {truncated} MB truncated every {subject.segment_length} steps.",
        "batch_size": subject.batch_size,
        "segment_length": subject.segment_length,
        "rows": rows,
    }


def strategies(subject: Subject) -> Section:
    """Where full, regular and randomized truncation stop the gradient, on the first tokens of the text."""
    shown = min(SHOWN, len(subject.ids))
    regular = SegmentTruncation(SHOWN_SEGMENT).passed(shown)
    randomized = RandomizedTruncation(1 - 1 / SHOWN_SEGMENT, named_key(0, "strategies")).passed(shown)
    passed = {"randomized": randomized, "regular": regular, "full": np.ones(shown)}
    return {
        "finding": "Gradients flow from right to left and stop where the text is cut: by regular truncation every "
        f"{SHOWN_SEGMENT} tokens, by randomized truncation as often on average, by full backpropagation never.",
        "tokens": subject.ids[:shown].tolist(),
        "cuts": {name: np.flatnonzero(np.asarray(p) == 0).tolist() for name, p in passed.items()},
    }


SECTIONS: Mapping[str, tuple[str, Callable[[Subject], Section]]] = {
    "gradients_by_lag": ("gradient norm by lag", gradients_by_lag),
    "jacobians": ("spectra of W_hh and Lyapunov exponents", jacobians),
    "truncated_gradients": ("bias of truncated gradients", truncated_gradients),
    "randomized_truncation": ("noise of randomized truncation", randomized_truncation),
    "clipping": ("gradient clipping", clipping),
    "cost": ("memory and time of a gradient", cost),
    "strategies": ("truncation strategies", strategies),
}
WITHOUT_STATE = ("clipping",)  # for any model
OF_A_LOG = ("clipping",)  # for a model that was trained as a run
# These need a floating-point carry and a cell with `output`.
OF_A_STATE = ("gradients_by_lag", "jacobians", "randomized_truncation")
