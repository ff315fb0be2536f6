"""Truncated backpropagation through time with overlapping windows, TBPTT(k₁, k₂): an update every k₁ tokens, each of
which looks back through k₂.

Reference: Williams, Peng, An efficient gradient-based algorithm for on-line training of recurrent network trajectories,
Neural Computation 2, 1990.
"""

from typing import Any

import jax
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.models import LanguageModel


def overlapping_loss(
    model: LanguageModel, carry: Carry, inputs: Int[Array, "T B"], labels: Int[Array, "T B"], new: int, **options: Any
) -> tuple[Float[Array, ""], Carry]:
    """The mean loss of the last `new` tokens of a window, and the state that the next window starts from.

    Only the last `new` tokens are new to training. The next window starts `new` steps later.
    """
    carries, h = model.hidden(carry, inputs, return_carries=True, **options)
    return model.mean_nll(h[-new:], labels[-new:]), jax.tree.map(lambda c: c[new - 1], carries)
