"""A model's probabilities for several texts side by side, as integers for the range coder."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.inference.dynamic import STEPS, Learned
from rnn_lm.inference.reading import learn
from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.models import LanguageModel

TOTAL = 2**22  # the sum of all frequencies; shares of it are exact in float32

# (frequencies [L, V], ln P [L, V]) of the next tokens → (the tokens [L], which of them are real [L])
Choose = Callable[[Int[np.ndarray, "L V"], Float[np.ndarray, "L V"]], tuple[np.ndarray, np.ndarray]]


class State(NamedTuple):
    """The model's state between two blocks."""

    learned: Learned
    carry: Carry
    last: Int[np.ndarray, "L"]  # last tokens read


class Lanes:
    """A model that reads L texts side by side, token by token, in one compiled step.

    Encoding and decoding run the same steps: a difference in the last bit of one probability would corrupt the rest.

    Args:
      model: predicts the next token.
      size: L, the number of texts.
      first: the token before each text.
      escape: the probability of id 0, the unknown symbols.
      dynamic: whether the model keeps training on the texts.
    """

    def __init__(self, model: LanguageModel, size: int, *, first: int, escape: float, dynamic: bool):
        self._graphdef, *states = nnx.split(model, nnx.Param, ...)
        params, self._rest = states
        self._escape = np.log(np.maximum([escape, 1 - escape], 1e-30)).astype(np.float32)
        self._dynamic = dynamic
        self.start = State(Learned.nothing(params), model.initialize_carry(size), np.full(size, first, np.int32))

    def read(self, state: State, steps: int, choose: Choose) -> State:
        """Reads `steps` more tokens of each text."""
        learned, carry, last = state
        window: list[tuple[np.ndarray, ...]] = []
        for _ in range(steps):
            if not window:
                window_carry = carry
            carry, frequencies, log_probs = _step(self._graphdef, self._rest, learned.params, carry, last, self._escape)
            tokens, real = choose(np.asarray(frequencies), np.asarray(log_probs))
            # Unknown symbols are masked out of training: their probability comes from the file's counts.
            window.append((last, tokens, real & (tokens > 0)))
            last = tokens
            if len(window) == STEPS:
                if self._dynamic:
                    texts = map(np.stack, zip(*window, strict=True))
                    learned, _ = learn(self._graphdef, self._rest, learned, window_carry, *texts)
                window = []
        return State(learned, carry, last)


def frequencies_of(probs: Float[Array, "L V"]) -> Int[Array, "L V"]:
    """Probabilities as integers that sum to `TOTAL`, each at least 1, so that every token can be coded.

    The likeliest token gets the rounding remainder.
    """
    free = TOTAL - probs.shape[-1]
    frequencies = 1 + jnp.floor(jnp.nan_to_num(probs) * free).astype(jnp.int32)
    rows = jnp.arange(len(probs))
    return frequencies.at[rows, probs.argmax(axis=-1)].add(TOTAL - frequencies.sum(axis=-1))


@partial(jax.jit, static_argnums=0)
def _step(
    graphdef: nnx.GraphDef,
    rest: nnx.State,
    params: nnx.State,
    carry: Carry,
    tokens: Int[Array, " L"],
    escape: Float[Array, "2"],
) -> tuple[Carry, Int[Array, "L V"], Float[Array, "L V"]]:
    carry, logits = nnx.merge(graphdef, params, rest)(carry, tokens[None])
    known = jax.nn.log_softmax(logits[0, :, 1:].astype(jnp.float32)) + escape[1]
    log_probs = jnp.concatenate([jnp.full_like(known[:, :1], escape[0]), known], axis=-1)
    return carry, frequencies_of(jnp.exp(log_probs)), log_probs
