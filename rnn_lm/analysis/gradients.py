"""Gradients through time: their norm by lag, and their bias under truncation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.errors import UserError
from rnn_lm.nn.arrays import Carry, Tree, named_leaves
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import states_by_letter
from rnn_lm.nn.truncation import SegmentTruncation, Truncation, WindowTruncation

Gradient = dict[str, np.ndarray]  # by the parameter's name, such as "cell.w_hh"
AT_ONCE = 16  # maximum number of backward passes side by side
SMALLEST = 1e-30  # smaller norms are close to float32's limit


def windows_of(ids: Int[np.ndarray, "T"], count: int, window: int) -> Int[np.ndarray, "L N"]:
    """Evenly spaced windows of L = 2·window + 1 tokens: a warm-up, the window, and its last label.

    N is `count`, or fewer: a short text has T − L + 1 different windows.

    Raises:
      UserError: if the text is shorter than L.
    """
    length = 2 * window + 1
    if len(ids) < length:
        raise UserError(
            f"the text has {len(ids)} tokens; a window of {window} and a warm-up of the same length need {length}: "
            "give a longer text with --text=FILE or a smaller --window"
        )
    starts = np.unique(np.linspace(0, len(ids) - length, count).astype(int))
    return ids[starts + np.arange(length)[:, None]]


class Minibatch(NamedTuple):
    """N windows: the state before them, a constant, their tokens, and the next tokens."""

    carry: Carry
    inputs: Int[Array, "W N"]
    labels: Int[Array, "W N"]


def minibatch_of(model: RNNLM, windows: Int[np.ndarray, "L N"]) -> Minibatch:
    """The second halves of windows, with the states after the first halves."""
    window = len(windows) // 2
    tokens = jnp.asarray(windows)
    carry, _ = model.hidden(model.initialize_carry(windows.shape[1]), tokens[:window])
    return Minibatch(carry, tokens[window:-1], tokens[window + 1 :])


def norms_by_lag(model: RNNLM, batch: Minibatch) -> dict[str, Float[np.ndarray, "W N"]]:
    """‖∂L_t/∂h_{t−k}‖, and for LSTM cells also by c. Row k is lag k; in column n, t is the last step of window n.

    h is the state of all layers together. L_t = −ln P(token t+1) depends on the top layer's h_t. One backward pass per
    window gives all lags: the gradient with respect to a zero added to each h.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    return jax.device_get(_norms_by_lag(graphdef, params, batch))


@partial(jax.jit, static_argnames="graphdef")
def _norms_by_lag(graphdef: nnx.GraphDef, params: nnx.State, batch: Minibatch) -> dict[str, Float[Array, "W N"]]:
    model = nnx.merge(graphdef, params)

    def of_one(carry: Carry, tokens: Int[Array, "W"], label: Int[Array, ""]) -> dict[str, Float[Array, "W"]]:
        carry = jax.tree.map(lambda c: c[None], carry)
        inputs = tokens[:, None] if model.embedding is None else model.embedding[tokens][:, None]
        nothing = jax.tree.map(lambda c: jnp.zeros((len(tokens), *c.shape), c.dtype), carry)

        def loss(added: Carry) -> Float[Array, ""]:
            def step(carry: Carry, inputs: tuple[Array, Carry]) -> tuple[Carry, None]:
                x, added = inputs
                return jax.tree.map(jnp.add, model.cell(carry, x)[0], added), None

            last, _ = jax.lax.scan(step, carry, (inputs, added))
            return model.nll(model.cell.output(last), label[None]).sum()

        adjoints = states_by_letter(model.cell, jax.grad(loss)(nothing))
        return {letter: _norm(jnp.concatenate(layers, axis=2)[:, 0])[::-1] for letter, layers in adjoints.items()}

    each = batch.carry, batch.inputs.T, batch.labels[-1]
    return jax.tree.map(jnp.transpose, jax.lax.map(lambda one: of_one(*one), each, batch_size=AT_ONCE))


def _norm(x: Float[Array, "W H"]) -> Float[Array, "W"]:
    """The norm of each row, without overflow or underflow of its square in float32."""
    largest = jnp.abs(x).max(1, keepdims=True)
    return largest[:, 0] * jnp.linalg.norm(x / jnp.where(largest > 0, largest, 1), axis=1)


def effective_memory(norms: Float[np.ndarray, "W N"], share: float = 0.01) -> int | None:
    """The first lag at which the median norm is below `share` of the median at lag 0.

    None if there is no such lag, or the median at lag 0 is 0 or not finite.
    """
    median = np.median(norms, axis=1)
    below = np.flatnonzero(median < share * median[0])
    return int(below[0]) if len(below) else None


def later_lags(norms: Float[np.ndarray, "W N"]) -> Int[np.ndarray, "K"]:
    """The second half of the lags whose median norm is finite and above `SMALLEST`."""
    median = np.median(norms, axis=1)
    usable = np.flatnonzero(np.isfinite(median) & (median > SMALLEST))
    return usable[len(usable) // 2 :]


def rate_by_lag(norms: Float[np.ndarray, "W N"]) -> float:
    """The slope of the mean of log ‖∂L_t/∂h_{t−k}‖ over `later_lags`; nan if there are too few."""
    lags = later_lags(norms)
    held = norms[lags][:, (norms[lags] > SMALLEST).all(0)]  # a loss of exactly 0 has no gradient
    return float(np.polyfit(lags, np.log(held).mean(1), 1)[0]) if len(lags) > 1 and held.size else float("nan")


def gradient(
    model: RNNLM, batch: Minibatch, truncation: SegmentTruncation | WindowTruncation | None = None
) -> Gradient:
    """The full or truncated gradient of the mean loss over all steps of all windows."""
    graphdef, params = nnx.split(model, nnx.Param)
    if isinstance(truncation, SegmentTruncation):  # one compilation for all lengths
        return _named(_segment_gradient(graphdef, params, batch, truncation.steps))
    return _named(_whole_or_window_gradient(graphdef, params, batch, truncation))


def _gradient(graphdef: nnx.GraphDef, params: nnx.State, batch: Minibatch, truncation: Truncation | None) -> nnx.State:
    def loss(params: nnx.State) -> Float[Array, ""]:
        model = nnx.merge(graphdef, params)
        _, h = model.hidden(batch.carry, batch.inputs, truncation=truncation)
        return model.mean_nll(h, batch.labels)

    return jax.grad(loss)(params)


_whole_or_window_gradient = jax.jit(_gradient, static_argnames=("graphdef", "truncation"))


@partial(jax.jit, static_argnames="graphdef")
def _segment_gradient(graphdef: nnx.GraphDef, params: nnx.State, batch: Minibatch, steps: Int[Array, ""]) -> nnx.State:
    return _gradient(graphdef, params, batch, SegmentTruncation(steps))


def compared(truncated: Gradient, full: Gradient) -> dict[str, dict[str, float]]:
    """Cosine, norm ratio and relative bias ‖g_τ − g‖ / ‖g‖ of all parameters together ("all") and of each."""
    both = {"all": (_flat(truncated), _flat(full))} | {name: (truncated[name], full[name]) for name in full}
    rows = {}
    for name, (a, b) in both.items():
        norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is nan
            rows[name] = {
                "cosine": float(np.vdot(a, b) / (norm_a * norm_b)),
                "norm_ratio": float(norm_a / norm_b),
                "bias": float(np.linalg.norm(a - b) / norm_b),
            }
    return rows


def _flat(gradient: Gradient) -> np.ndarray:
    return np.concatenate([part.ravel() for part in gradient.values()])


def _named(params: Tree) -> Gradient:
    """By name, in float64, where no square overflows or underflows."""
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
