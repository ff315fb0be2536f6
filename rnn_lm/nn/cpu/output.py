"""The output layer and its loss, values and gradient, by the function of `output.cc`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import alike, rows


def is_for(layer: Any, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> bool:
    """Whether the machine code runs this `OutputLayer`: in float32. Nothing is sharded."""
    fits = jnp.can_cast(labels.dtype, jnp.int32)
    dtypes = {jnp.dtype(layer.dtype or jnp.float32), layer.w.dtype, layer.b.dtype, h.dtype}
    return fits and dtypes == {jnp.dtype(jnp.float32)} and layer.w.size > 0 and h.size > 0


def nats(layer: Any, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    return _call(layer, h, labels, _none(), (False, False, False))[0]


def gradient(
    layer: Any,
    h: Float[Array, "*batch H"],
    labels: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
    *,
    asked: tuple[bool, bool, bool],
) -> tuple[Float[Array, "*batch"], tuple[Array, ...]]:
    """Nats, and the gradient of Σ weights · nats in w, b and h: of those that are asked for."""
    made, *gradients = _call(layer, h, labels, weights, asked)
    return made, tuple(d for d, is_asked in zip(gradients, asked, strict=True) if is_asked)


def _call(layer: Any, h: Array, labels: Array, weights: Array, asked: tuple[bool, bool, bool]) -> list[Array]:
    arguments = rows(h), layer.w, layer.b, labels.reshape(-1).astype(jnp.int32), weights.reshape(-1)
    shapes = [x.shape if is_asked else (0,) for x, is_asked in zip((layer.w, layer.b, rows(h)), asked, strict=True)]
    kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (arguments[3].shape, *shapes)]
    made = alike((jax.ffi.ffi_call("rnn_lm_output", kinds)(*arguments, tied=layer.tied), arguments))[0]
    return [made[0].reshape(labels.shape), *made[1:3], made[3].reshape(h.shape) if asked[2] else made[3]]


def _none() -> Array:
    """Stands for an array that is not there."""
    return jnp.zeros((0,), jnp.float32)
