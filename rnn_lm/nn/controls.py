"""Per-step controls: resets, truncation, and the ends of sequences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.truncation import scale_gradient

# By name, with a leading time axis. Absent controls do nothing.
Controls = dict[str, Array]  # "resets" [T, B], "passed" [T] or [T, B], "valid" [T, B]


class Masks(NamedTuple):
    """The arguments of `unroll` that controls are made of."""

    lengths: Array | None
    resets: Array | None
    passed: Array | None  # the factor on the gradient between two steps; all layers share one draw


def controls_of(num_steps: int, masks: Masks, *, reverse: bool) -> Controls:
    """The controls of each step."""
    lengths, resets, passed = masks
    controls = {name: mask for name, mask in (("resets", resets), ("passed", passed)) if mask is not None}
    if lengths is not None:
        steps = jnp.arange(num_steps, dtype=jnp.int32).reshape(-1, *(1,) * lengths.ndim)
        controls["valid"] = steps < lengths.astype(jnp.int32)[None]
        if reverse and passed is not None:  # no step of a sequence is before its first one, here the last
            is_first = steps == lengths.astype(jnp.int32)[None] - 1
            controls["passed"] = jnp.where(is_first, 1.0, passed.reshape(steps.shape))
    return controls


def enter(carry: Carry, control: Controls, initial: Carry) -> Carry:
    """The carry that a step starts from: reset, or with its gradient scaled."""
    if "passed" in control:
        carry = scale_gradient(carry, control["passed"])
    if "resets" in control:
        carry = jax.tree.map(lambda c, i: where(control["resets"], i, c), carry, initial)
    return carry


def keep(new: Carry, old: Carry, control: Controls) -> Carry:
    """The new carry, or the old one past the end of a sequence."""
    if "valid" not in control:
        return new
    return jax.tree.map(lambda n, o: where(control["valid"], n, o), new, old)


def where(mask: Array, x: Array, y: Array) -> Array:
    """`jnp.where` with a mask that has only the leading axes of x and y."""
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, y)


def without_padding(x: Array, controls: Controls) -> Array:
    """`x` with zeros past the end of each sequence, so that padding, even NaN, reaches no gradient."""
    return where(controls["valid"], x, jnp.zeros_like(x)) if "valid" in controls else x


def initial_carry(cell: nnx.RNNCellBase, carry: Carry, inputs: Array, ids: bool) -> Carry:
    """The state after a reset."""
    made = cell.initialize_carry((*inputs.shape[1:], 1) if ids else inputs.shape[1:], nnx.Rngs(0))  # flax's want rngs
    return jax.tree.unflatten(jax.tree.structure(carry), jax.tree.leaves(made))  # a plain pair is an LSTM's carry too
