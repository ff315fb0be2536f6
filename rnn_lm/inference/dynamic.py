"""Dynamic evaluation: the model keeps training on the text that it reads.

Every few tokens, once they have been predicted, the parameters take a step down the gradient of their loss and a small
step back to their initial values. The model adapts to what the text repeats, such as names and style.

Reference: Krause, Kahembwe, Murray, Renals, Dynamic evaluation of neural sequence models, ICML 2018. The RMS update
differs in three ways: squared gradients are averaged while reading, so the training text is not needed; all parameters
decay to their initial values at the same rate; and the step grows with √(tokens of an update).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

STEPS = 16  # tokens of each text between two updates
RATE = 8e-5  # learning rate per √(tokens of an update)
RETURN = 2e-4  # share of the distance to its initial value that a parameter goes back at each update
MEMORY = 0.999  # decay of the running mean of squared gradients


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learned:
    """The current parameters, their initial values and the state of the optimizer."""

    params: nnx.State
    start: nnx.State
    squares: optax.OptState

    @classmethod
    def nothing(cls, params: nnx.State) -> "Learned":
        return cls(params, params, _scaling().init(params))

    def update(self, grads: nnx.State, tokens: Int[Array, ""]) -> "Learned":
        """One update from the gradient of the mean loss over a number of tokens."""
        scaled, squares = _scaling().update(grads, self.squares)
        rate = RATE * jnp.sqrt(tokens.astype(jnp.float32))

        def moved(param: Array, start: Array, step: Array) -> Array:
            return param - (rate * step).astype(param.dtype) + RETURN * (start - param)

        return Learned(jax.tree.map(moved, self.params, self.start, scaled), self.start, squares)


def _scaling() -> optax.GradientTransformation:
    return optax.scale_by_rms(MEMORY, eps=1e-6, eps_in_sqrt=False, bias_correction=True)
