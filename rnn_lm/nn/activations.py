"""Element-wise functions, written as XLA's CPU code is fast with them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rnn_lm.nn.arrays import along_last


def sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / (1 + exp(−z)), as the tanh that it is: one polynomial, which compilers vectorise on CPU."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def activated(z: Float[Array, "*batch GH"], *kinds: str) -> list[Float[Array, "*batch H"]]:
    """Splits `z` into gates and applies "sigmoid" or "tanh" to each.

    It takes one tanh over the whole block, since σ(z) = ½ tanh(½ z) + ½, and splits afterwards: XLA's CPU code does not
    vectorise gates that are split first.
    """
    size = z.shape[-1] // len(kinds)
    scale = jnp.repeat(jnp.array([1.0 if kind == "tanh" else 0.5 for kind in kinds], z.dtype), size)
    shift = jnp.repeat(jnp.array([0.0 if kind == "tanh" else 0.5 for kind in kinds], z.dtype), size)
    scale, shift = along_last(scale, z), along_last(shift, z)
    return jnp.split(scale * jnp.tanh(scale * z) + shift, len(kinds), axis=-1)


ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}


def standardized(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Mean 0 and variance 1 over the last axis: layer normalisation before its scale and shift."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
