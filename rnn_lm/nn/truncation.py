"""Truncated backpropagation through time: where the gradient stops inside a window. Forward values never change."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class SegmentTruncation:
    """Regular truncation: the state that is carried over each `steps`-th step is a constant for the gradient.

    That is what training does between one window and the next.
    """

    steps: int

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a segment has at least 1")

    def passed(self, num_steps: int, *, reverse: bool = False) -> Float[Array, "T"]:
        """What the gradient of the state that step t starts from is multiplied by; the segments start at step 0."""
        boundary = jnp.arange(num_steps) + int(reverse)
        return jnp.where((boundary % self.steps == 0) & (boundary > 0) & (boundary < num_steps), 0.0, 1.0)


def scale_gradient(tree: Any, factor: Float[Array, ""]) -> Any:
    """The same values, their gradient multiplied by `factor`."""

    def scaled(x: jax.Array) -> jax.Array:
        constant = jax.lax.stop_gradient(x)
        return constant + factor.astype(x.dtype) * (x - constant)

    return jax.tree.map(scaled, tree)
