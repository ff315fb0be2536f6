"""What `inspect` asks of a trained model: one function a question, which returns its numbers and a sentence on them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rnn_lm.analysis.cost import step_costs
from rnn_lm.analysis.gradients import (
    Minibatch,
    compared,
    effective_memory,
    gradient,
    minibatch_of,
    norms_by_lag,
    randomized_gradients,
    rate_by_lag,
    windows_of,
)
from rnn_lm.analysis.jacobians import lyapunov_exponents, recurrent_spectra
from rnn_lm.keys import named_key
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation

POSITIONS = 128  # in the text, whose losses are followed back
TEXTS = 32  # side by side, for the Lyapunov exponents
MINIBATCH = 8  # windows, whose full and truncated gradients are compared
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEEP_PROBABILITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
DRAWS = 48  # of each
LENGTHS = (1, 4, 16)  # times segment_length: the T whose cost is measured
SHOWN, SHOWN_SEGMENT = 60, 12  # tokens in the picture of the strategies, and in one of its segments


@dataclass(frozen=True)
class Subject:
    """A trained model, a text to inspect it on, and the run that it comes from."""

    model: RNNLM
    ids: np.ndarray  # the text
    window: int  # steps that are looked back
    batch_size: int  # the run's, and so on
    segment_length: int
    clip_norm: float
    lines: list[dict[str, Any]]  # of its metrics.jsonl

    def minibatch(self, count: int) -> Minibatch:
        return minibatch_of(self.model, windows_of(self.ids, count, self.window))

    @cached_property
    def lyapunov(self) -> tuple[np.ndarray, np.ndarray]:
        """Exponents and standard errors."""
        return lyapunov_exponents(self.model, windows_of(self.ids, TEXTS, self.window), warm_up=self.window)


Section = dict[str, Any]


def inspect(subject: Subject, on_progress: Callable[[str], Any] = lambda question: None) -> dict[str, Section]:
    """All sections by name. `on_progress` is told the question that comes next.

    Raises:
      UserError: where the text is shorter than the window needs.
    """
    sections = {}
    for name, (question, section) in SECTIONS.items():
        on_progress(question)
        sections[name] = section(subject)
    return sections


def gradients_by_lag(subject: Subject) -> Section:
    """‖∂L_t/∂h_{t−k}‖ over k, and the rate at which the Jacobians along the text say that it must change."""
    norms = norms_by_lag(subject.model, subject.minibatch(POSITIONS))
    (exponent, *_), (error, *_) = subject.lyapunov
    memory, rate = effective_memory(norms["h"]), rate_by_lag(norms["h"])
    where = f"after {memory} steps" if memory else f"nowhere within {subject.window} steps"
    finding = (
        f"On its way back the median gradient falls below 1 % of its start {where}; later on it is multiplied by "
        f"{np.exp(rate):.3f} a step, where the largest Lyapunov exponent says {np.exp(exponent):.3f}."
    )
    if abs(rate - exponent) > max(0.02, 4 * error):
        finding += " (They part: what the state keeps longest, the loss hardly reads.)"
    return {
        "finding": finding,
        "positions": POSITIONS,
        "quantiles": {
            letter: {f"{q:g}": np.quantile(of_letter, q, axis=1).tolist() for q in QUANTILES}
            for letter, of_letter in norms.items()
        },
        "effective_memory": memory,
        "rate": rate,
        "predicted_rate": float(exponent),
    }


def jacobians(subject: Subject) -> Section:
    """Eigenvalues and singular values of W_hh, gate by gate, and the Lyapunov exponents along the text."""
    spectra = recurrent_spectra(subject.model)
    exponents, errors = subject.lyapunov
    radii = sorted(gate["spectral_radius"] for gate in spectra)
    which = f"{radii[0]:.2f} to {radii[-1]:.2f}, gate by gate" if len(radii) > 1 else f"{radii[0]:.2f}"
    return {
        "finding": f"The spectral radius of W_hh is {which}: by its powers alone gradients would "
        f"{'explode' if radii[-1] > 1 else 'vanish'}. What the slope of the activations and the gates make of it along "
        f"the text, the largest Lyapunov exponent, multiplies them by {np.exp(exponents[0]):.3f} "
        f"(± {np.exp(exponents[0]) * errors[0]:.3f}) a step.",
        "w_hh": spectra,
        "lyapunov_exponents": exponents.tolist(),
        "standard_errors": errors.tolist(),
        "texts": TEXTS,
    }


def truncated_gradients(subject: Subject) -> Section:
    """Segment and window truncation of 1, 2, 4, … steps beside the whole gradient, by parameter."""
    batch = subject.minibatch(MINIBATCH)
    full = gradient(subject.model, batch)
    rows = []
    for steps in [2**i for i in range(32) if 2**i < subject.window] + [subject.window]:
        for kind, truncation in (("segment", SegmentTruncation(steps)), ("window", WindowTruncation(steps))):
            by_name = compared(gradient(subject.model, batch, truncation), full)
            rows += [{"kind": kind, "steps": steps, "parameter": name} | row for name, row in by_name.items()]
    enough = {
        kind: min(r["steps"] for r in rows if r["kind"] == kind and r["parameter"] == "all" and r["bias"] < 0.1)
        for kind in ("segment", "window")
    }
    return {
        "finding": f"The truncated gradient is within 10 % of the one over {subject.window} steps if each loss looks "
        f"back {enough['window']} steps (window), or the text is cut every {enough['segment']} (segment).",
        "windows": MINIBATCH,
        "rows": rows,
    }


def randomized_truncation(subject: Subject) -> Section:
    """Mean and spread of randomized truncation over many draws, for several π, by parameter."""
    batch = subject.minibatch(MINIBATCH)
    full = gradient(subject.model, batch)
    rows = []
    for probability in KEEP_PROBABILITIES:
        mean, variance = randomized_gradients(subject.model, batch, probability, DRAWS)
        for name, row in compared(mean, full).items():
            of_name = list(full) if name == "all" else [name]
            total = sum(float(variance[n].sum()) for n in of_name)
            size = sum(float(np.square(full[n]).sum()) for n in of_name) ** 0.5
            spread = {"standard_deviation": total**0.5 / size, "standard_error": (total / DRAWS) ** 0.5 / size}
            rows.append({"keep_probability": probability, "parameter": name} | row | spread)
    quiet = [r["keep_probability"] for r in rows if r["parameter"] == "all" and r["standard_deviation"] < 1]
    return {
        "finding": "Randomized truncation is right in the mean and pays in noise: a single draw strays by less than "
        + (
            f"the gradient's own length from π = {min(quiet):g} on."
            if quiet
            else "the gradient's own length nowhere here."
        ),
        "draws": DRAWS,
        "rows": rows,
    }


def clipping(subject: Subject) -> Section:
    """The gradient's norm before and after clipping through the run, and the share of steps at which it acted."""
    names = ("step", "grad_norm", "clipped_norm", "clipped")
    lines = [{n: line[n] for n in names if n in line} for line in subject.lines if line["split"] == "train"]
    with_clipping = [line for line in lines if "clipped" in line]
    if with_clipping:
        ends = [0, *(line["step"] for line in with_clipping)]
        share = np.average([line["clipped"] for line in with_clipping], weights=np.diff(ends))
        finding = f"The gradient's norm was clipped to {subject.clip_norm:g} at {share:.1%} of the steps."
    else:
        share, finding = None, "No clipping: either clip_norm is 0 or the run is of a version that did not note it."
    return {"finding": finding, "clip_norm": subject.clip_norm, "share": share, "lines": lines}


def cost(subject: Subject) -> Section:
    """Memory and time of the gradient against T: all states kept, some computed again, or truncated."""
    lengths = [subject.segment_length * factor for factor in LENGTHS]
    rows = step_costs(subject.model, batch_size=subject.batch_size, segment=subject.segment_length, lengths=lengths)
    longest = {row["way"]: row for row in rows[-3:]}
    megabytes = {way: row["temporary_bytes"] / 1e6 for way, row in longest.items()}
    return {
        "finding": f"Over {rows[-1]['steps']} steps the gradient takes {megabytes['cached']:,.0f} MB with all states "
        f"kept, {megabytes['remat']:,.0f} with most computed again, and {megabytes['truncated']:,.0f} truncated every "
        f"{subject.segment_length}, which does not grow with T.",
        "batch_size": subject.batch_size,
        "segment_length": subject.segment_length,
        "rows": rows,
    }


def strategies(subject: Subject) -> Section:
    """The three ways to cut a text, on the first tokens of this one: where the gradient stops."""
    shown = min(SHOWN, len(subject.ids))
    segment = SegmentTruncation(SHOWN_SEGMENT)
    randomized = RandomizedTruncation(1 - 1 / SHOWN_SEGMENT, named_key(0, "strategies"))
    cuts = {
        "randomized": np.flatnonzero(np.asarray(randomized.passed(shown)) == 0).tolist(),
        "regular": np.flatnonzero(np.asarray(segment.passed(shown)) == 0).tolist(),
        "full": [],
    }
    return {
        "finding": "Within a box gradients flow from right to left; at its left edge they stop. Regular truncation "
        f"cuts every {SHOWN_SEGMENT} tokens, randomized as often in the mean, full never.",
        "tokens": subject.ids[:shown].tolist(),
        "cuts": cuts,
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
