"""Dynamic evaluation: the model goes on learning from the text that it reads.

Each few tokens, once they have been predicted, its parameters take a step down the gradient of their loss, and a little
of the way back to where they started. What a text repeats, its names and its manner, is soon expected.

Reference: Krause, Kahembwe, Murray, Renals, Dynamic evaluation of neural sequence models, ICML 2018. Of its RMS update
three things differ: squared gradients are averaged on the way, not over the training text, so that nothing but the
model is needed; all parameters are pulled back alike; and the step grows with √(tokens of an update).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

STEPS = 16  # tokens (of each text that is read side by side) between two updates
RATE = 8e-5  # how far a parameter moves, times √(tokens that the gradient is a mean over)
RETURN = 2e-4  # of the distance to where it started, how much a parameter goes back with each update
MEMORY = 0.999  # of the running mean of squared gradients


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learned:
    """The parameters as they are by now, and what the next update needs."""

    params: nnx.State
    start: nnx.State
    squares: optax.OptState

    @classmethod
    def nothing(cls, params: nnx.State) -> "Learned":
        return cls(params, params, _scaling().init(params))

    def update(self, grads: nnx.State, tokens: Int[Array, ""]) -> "Learned":
        """A step down the gradient of the mean loss over so many tokens."""
        scaled, squares = _scaling().update(grads, self.squares)
        rate = RATE * jnp.sqrt(tokens.astype(jnp.float32))

        def moved(param: Array, start: Array, step: Array) -> Array:
            return param - (rate * step).astype(param.dtype) + RETURN * (start - param)

        return Learned(jax.tree.map(moved, self.params, self.start, scaled), self.start, squares)


def _scaling() -> optax.GradientTransformation:
    return optax.scale_by_rms(MEMORY, eps=1e-6, eps_in_sqrt=False, bias_correction=True)
