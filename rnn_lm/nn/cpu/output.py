"""The output layer and its loss, values and gradient, by the function of `output.cc`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import rows
from rnn_lm.nn.cpu.library import absent, call


def is_for(layer: Any, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> bool:
    """Whether the machine code runs this `OutputLayer`: in float32. Nothing is sharded."""
    fits = jnp.can_cast(labels.dtype, jnp.int32)
    dtypes = {jnp.dtype(layer.dtype or jnp.float32), layer.w.dtype, layer.b.dtype, h.dtype}
    return fits and dtypes == {jnp.dtype(jnp.float32)} and layer.w.size > 0 and h.size > 0


def nats(layer: Any, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    return _call(layer, h, labels, absent(), (False, False, False))[0]


def gradient(
    layer: Any,
    h: Float[Array, "*batch H"],
    labels: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
    *,
    asked: tuple[bool, bool, bool],
) -> tuple[Float[Array, "*batch"], tuple[Array, ...]]:
    """Nats, and the gradient of Σ weights · nats in w, b and h: of those that are asked for."""
    made, *gradients = _call(layer, h, labels, weights.reshape(-1), asked)
    of = zip(gradients, (layer.w, layer.b, h), asked, strict=True)
    return made, tuple(d.reshape(x.shape) for d, x, is_asked in of if is_asked)


def _call(layer: Any, h: Array, labels: Array, weights: Array, asked: tuple[bool, bool, bool]) -> list[Array]:
    given = rows(h), layer.w, layer.b, labels.reshape(-1).astype(jnp.int32), weights
    gradients = [x.shape if is_asked else (0,) for x, is_asked in zip((layer.w, layer.b, given[0]), asked, strict=True)]
    made, *more = call("rnn_lm_output", [given[3].shape, *gradients], *given, tied=layer.tied)
    return [made.reshape(labels.shape), *more]
