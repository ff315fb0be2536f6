"""What `inspect` asks of a trained model: one function a question, which returns its numbers and a sentence on them."""

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
    randomized_gradients,
    rate_by_lag,
    windows_of,
)
from rnn_lm.analysis.jacobians import lyapunov_exponents, recurrent_spectra
from rnn_lm.keys import named_key
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation

POSITIONS = 128  # in the text, whose losses are followed back
TEXTS = 32  # side by side at most, for the Lyapunov exponents
MINIBATCH = 8  # windows, whose full and truncated gradients are compared
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEEP_PROBABILITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
DRAWS = 48  # of each
LENGTHS = (1, 4, 16)  # times segment_length: the T whose cost is measured
SHOWN, SHOWN_SEGMENT = 60, 12  # tokens in the picture of the strategies, and in one of its segments


@dataclass(frozen=True)
class Subject:
    """A trained model, a text to inspect it on, and the run that it comes from."""

    model: Any  # an RNNLM; of an MLPLM only `WITHOUT_STATE` can be asked
    ids: np.ndarray  # the text
    window: int  # steps that are looked back
    batch_size: int  # the run's, and so on
    segment_length: int
    clip_norm: float
    lines: list[dict[str, Any]]  # of its metrics.jsonl

    def minibatch(self, count: int) -> Minibatch:
        return minibatch_of(self.model, windows_of(self.ids, count, self.window))

    @cached_property
    def batch(self) -> Minibatch:
        """What truncated gradients are compared on."""
        return self.minibatch(MINIBATCH)

    @cached_property
    def full(self) -> Gradient:
        """What they are compared with."""
        return gradient(self.model, self.batch)

    @property
    def num_texts(self) -> int:
        """For the Lyapunov exponents: as many as do not overlap."""
        return max(1, min(TEXTS, len(self.ids) // (2 * self.window + 1)))

    @cached_property
    def lyapunov(self) -> tuple[np.ndarray, np.ndarray]:
        """Exponents and standard errors."""
        return lyapunov_exponents(self.model, windows_of(self.ids, self.num_texts, self.window), warm_up=self.window)


Section = dict[str, Any]


def inspect(subject: Subject, on_progress: Callable[[str], Any] = lambda question: None) -> dict[str, Section]:
    """All sections by name that a model has. `on_progress` is told the question that comes next.

    Raises:
      UserError: where the text is shorter than the window needs.
    """
    sections = {}
    for name, (question, section) in SECTIONS.items():
        if not _has_section(subject.model, name):
            continue
        on_progress(question)
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
    """‖∂L_t/∂h_{t−k}‖ over k, and the rate at which the Jacobians along the text say that it must change."""
    norms = norms_by_lag(subject.model, subject.minibatch(POSITIONS))
    (exponent, *_), (error, *_) = subject.lyapunov
    memory, rate = effective_memory(norms["h"]), rate_by_lag(norms["h"])
    if not np.median(norms["h"][0]) > 0:  # nan too
        finding = "The gradient is 0 or no number already at the step of the loss: there is nothing to follow back."
    else:
        where = f"after {memory} steps" if memory else f"nowhere within {subject.window} steps"
        finding = f"On its way back the median gradient falls below 1 % of its start {where}."
    if np.isfinite(rate) and np.isfinite(exponent):
        finding += f" Later on gradients are multiplied by {np.exp(rate):.3f} a step; "
        finding += f"the largest Lyapunov exponent says {np.exp(exponent):.3f}."
        if exponent - rate > max(0.02, 4 * np.nan_to_num(error)):
            finding += " (They part: what the state keeps longest, the loss hardly reads.)"
    return {
        "finding": finding,
        "positions": POSITIONS,
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
    """Eigenvalues and singular values of W_hh, gate by gate, and the Lyapunov exponents along the text."""
    spectra = recurrent_spectra(subject.model)
    exponents, errors = subject.lyapunov
    radii = sorted(gate["spectral_radius"] for gate in spectra)
    which = f"{radii[0]:.2f} to {radii[-1]:.2f}" if len(radii) > 1 else f"{radii[0]:.2f}" if radii else ""
    finding = f"The spectral radius of W_hh is {which}" if radii else "The cell has no W_hh of square parts"
    if {gate["gate"] for gate in spectra} == {"h"}:  # an Elman cell: its own powers are the gradient's
        fate = "keep their size" if abs(radii[-1] - 1) < 0.005 else "explode" if radii[-1] > 1 else "vanish"
        finding += f": by its powers alone gradients would {fate}"
    if np.isfinite(exponents[0]):
        error = f" (± {np.exp(exponents[0]) * errors[0]:.3f})" if np.isfinite(errors[0]) else ""
        finding += (
            ". Counting in the slopes of activations and gates along the text, gradients are multiplied by "
            f"{np.exp(exponents[0]):.3f}{error} a step: the largest Lyapunov exponent"
        )
    return {
        "finding": f"{finding}.",
        "w_hh": spectra,
        "lyapunov_exponents": exponents.tolist(),
        "standard_errors": errors.tolist(),
        "texts": subject.num_texts,
    }


def truncated_gradients(subject: Subject) -> Section:
    """Segment and window truncation of 1, 2, 4, … steps beside the whole gradient, by parameter."""
    rows = []
    for steps in [2**i for i in range(32) if 2**i < subject.window] + [subject.window]:
        for kind, truncation in (("segment", SegmentTruncation(steps)), ("window", WindowTruncation(steps))):
            by_name = compared(gradient(subject.model, subject.batch, truncation), subject.full)
            rows += [{"kind": kind, "steps": steps, "parameter": name} | row for name, row in by_name.items()]
    parts = []
    for kind, how in (("window", "each loss looks back {} steps (window)"), ("segment", "the text is cut every {}")):
        totals = [row for row in rows if row["kind"] == kind and row["parameter"] == "all"]
        enough = _from_there_on([row["bias"] < 0.1 for row in totals])
        parts += [how.format(totals[enough]["steps"])] if enough is not None else []
    finding = f"The truncated gradient is within 10 % of the one over {subject.window} steps if {' or '.join(parts)}."
    return {
        "finding": finding if parts else "The gradient is 0 or no number here: there is nothing to compare.",
        "windows": MINIBATCH,
        "rows": rows,
    }


def randomized_truncation(subject: Subject) -> Section:
    """Mean and spread of randomized truncation over many draws, for several π, by parameter."""
    full = subject.full
    rows: list[dict[str, Any]] = []
    for probability in KEEP_PROBABILITIES:
        mean, variance = randomized_gradients(subject.model, subject.batch, probability, DRAWS)
        for name, row in compared(mean, full).items():
            names = list(full) if name == "all" else [name]
            with np.errstate(divide="ignore", invalid="ignore"):
                deviation = np.sqrt(
                    sum(variance[n].sum() for n in names) / sum(np.square(full[n]).sum() for n in names)
                )
            spread = {"standard_deviation": float(deviation), "standard_error": float(deviation) / DRAWS**0.5}
            rows.append({"keep_probability": probability, "parameter": name} | row | spread)
    totals = [row for row in rows if row["parameter"] == "all"]
    quiet = _from_there_on([row["standard_deviation"] < 1 for row in totals])
    where = f"from π = {totals[quiet]['keep_probability']:g} on" if quiet is not None else "for no π here"
    rare = [f"{row['keep_probability']:g}" for row in totals if row["bias"] > 3 * row["standard_error"]]
    finding = f"A single draw strays from the full gradient by less than that one's own length {where}."
    if rare:
        finding += f" At π = {', '.join(rare)} the mean rests on rare large draws: {DRAWS} are too few to show it."
    return {"finding": finding, "draws": DRAWS, "rows": rows}


def _from_there_on(fits: Sequence[Any]) -> int | None:
    """The place from which on all fit; None where the last does not."""
    misfits = [i for i, fit in enumerate(fits) if not fit]
    start = misfits[-1] + 1 if misfits else 0
    return start if start < len(fits) else None


def clipping(subject: Subject) -> Section:
    """The gradient's norm before and after clipping through the run, and the share of steps at which it acted."""
    names = ("step", "grad_norm", "clipped_norm", "clipped")
    lines = [{n: line[n] for n in names if n in line} for line in subject.lines if line["split"] == "train"]
    since = np.diff([0, *(line["step"] for line in lines)])
    noted = [(line["clipped"] * steps, steps) for line, steps in zip(lines, since, strict=True) if "clipped" in line]
    share = float(sum(n for n, _ in noted) / sum(steps for _, steps in noted)) if noted else None
    if share is not None:
        finding = f"The gradient's norm was clipped to {subject.clip_norm:g} at {100 * share:.1f} % of the steps."
    elif not subject.clip_norm:
        finding = "Nothing was clipped: clip_norm is 0."
    else:
        finding = "The run has not logged what clipping does: it was stopped too early, or is of an older version."
    return {"finding": finding, "clip_norm": subject.clip_norm, "share": share, "lines": lines}


def cost(subject: Subject) -> Section:
    """Memory and time of the gradient against T: all states kept, some computed again, or truncated."""
    lengths = [subject.segment_length * factor for factor in LENGTHS]
    rows = step_costs(subject.model, batch_size=subject.batch_size, segment=subject.segment_length, lengths=lengths)
    cached, remat, truncated = (f"{row['temporary_bytes'] / 1e6:.3g}" for row in rows[-3:])
    return {
        "finding": f"Over {lengths[-1]:,} steps the gradient takes {cached} MB with all states kept, {remat} with most "
        f"of them computed again, and {truncated} truncated every {subject.segment_length}.",
        "batch_size": subject.batch_size,
        "segment_length": subject.segment_length,
        "rows": rows,
    }


def strategies(subject: Subject) -> Section:
    """The three ways to cut a text, on the first tokens of this one: where the gradient stops."""
    shown = min(SHOWN, len(subject.ids))
    regular = SegmentTruncation(SHOWN_SEGMENT).passed(shown)
    randomized = RandomizedTruncation(1 - 1 / SHOWN_SEGMENT, named_key(0, "strategies")).passed(shown)
    passed = {"randomized": randomized, "regular": regular, "full": np.ones(shown)}
    return {
        "finding": "Within a box gradients flow from right to left; at its left edge they stop. Regular truncation "
        f"cuts every {SHOWN_SEGMENT} tokens, randomized as often in the mean, full never.",
        "tokens": subject.ids[:shown].tolist(),
        "cuts": {name: np.flatnonzero(np.asarray(p) == 0).tolist() for name, p in passed.items()},
    }


SECTIONS: Mapping[str, tuple[str, Callable[[Subject], Section]]] = {
    "gradients_by_lag": ("how far back does the loss look?", gradients_by_lag),
    "jacobians": ("what do W_hh and the text do to gradients?", jacobians),
    "truncated_gradients": ("what does truncation change?", truncated_gradients),
    "randomized_truncation": ("what does randomized truncation cost?", randomized_truncation),
    "clipping": ("how often did clipping act?", clipping),
    "cost": ("what does a training step take?", cost),
    "strategies": ("where does each strategy cut?", strategies),
}
WITHOUT_STATE = ("clipping",)  # asks nothing about time
OF_A_STATE = ("gradients_by_lag", "jacobians")  # follow it through a cell that says what of it is its output
