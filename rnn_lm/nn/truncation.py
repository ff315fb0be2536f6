"""Truncated backpropagation through time: where the gradient stops inside a window. Forward values never change."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rnn_lm.nn.arrays import Tree


class _Argument:
    """A dataclass whose fields are the leaves of a pytree, so that compiled functions take it as an argument."""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(cls, lambda t: (list(vars(t).values()), tuple(vars(t))), cls._copy)

    @classmethod
    def _copy(cls, names: tuple[str, ...], leaves: Sequence[Tree]) -> "_Argument":
        """Without the checks: leaves may be anything while a function is traced."""
        made = object.__new__(cls)
        vars(made).update(zip(names, leaves, strict=True))
        return made


@dataclass(frozen=True)
class SegmentTruncation(_Argument):
    """Regular truncation: no gradient passes from one segment of `steps` steps to the segment before.

    Training does the same between windows.
    """

    steps: int | Int[Array, ""]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, jax.core.Tracer) and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a segment has at least 1")

    def passed(self, num_steps: int, *, reverse: bool = False) -> Float[Array, "T"]:
        """The factor on the gradient of the state before each step. Segments start at step 0."""
        boundary = jnp.arange(num_steps) + int(reverse)
        return jnp.where((boundary % self.steps == 0) & (boundary > 0) & (boundary < num_steps), 0.0, 1.0)


@jax.tree_util.register_static
@dataclass(frozen=True)
class WindowTruncation:
    """The loss of step t differentiates through the steps t − steps + 1 to t; the state before them is a constant.

    Steps past the end of a sequence do not count. In a stack a step is one of all layers together. The gradient takes
    `steps` times as long as that of the whole window. With `steps` = T, the loss of the last step still sends no
    gradient to the initial carry; with `steps` > T, this is the full gradient.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a window has at least 1")


@dataclass(frozen=True)
class RandomizedTruncation(_Argument):
    """The gradient from step t to step t − 1 is multiplied by a random ξ_t ∈ {0, 1/π}, P(ξ_t = 1/π) = π.

    Its expectation is the full gradient. All sequences and layers share one ξ_t.

    Reference: Tallec, Ollivier, Unbiasing truncated backpropagation through time, 2017.

    Args:
      keep_probability: π, one for all steps or one for each, [T].
      key: draws ξ.
    """

    keep_probability: float | Float[Array, "*T"]
    key: Key[Array, ""]

    def __post_init__(self) -> None:
        if not isinstance(self.keep_probability, jax.core.Tracer):
            with jax.ensure_compile_time_eval():
                probability = jnp.asarray(self.keep_probability)
                fits = bool(((probability > 0) & (probability <= 1)).all())
            if not fits:
                raise ValueError(f"keep_probability is {self.keep_probability}; it must be above 0 and at most 1")

    def passed(self, num_steps: int, *, reverse: bool = False) -> Float[Array, "T"]:
        """The factor on the gradient of the state before each step."""
        probability = jnp.broadcast_to(self.keep_probability, (num_steps,))
        scale = jnp.where(jax.random.bernoulli(self.key, probability), 1 / probability, 0.0)
        return scale.at[num_steps - 1 if reverse else 0].set(1.0)  # no step is before the first


Truncation = SegmentTruncation | WindowTruncation | RandomizedTruncation


def scale_gradient(tree: Tree, factor: Float[Array, "*batch"]) -> Tree:
    """The same values, with gradients multiplied by `factor`, which may have the leading axes of the arrays."""

    def scaled(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return _scaled(x, factor.astype(x.dtype).reshape(*factor.shape, *(1,) * (x.ndim - factor.ndim)))

    return jax.tree.map(scaled, tree)


@jax.custom_jvp
def _scaled(x: Array, factor: Array) -> Array:
    del factor
    return x


@_scaled.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], primals[1] * tangents[0]
