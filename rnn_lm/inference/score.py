"""The probability of given continuations of a text."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rnn_lm.errors import NotFinite
from rnn_lm.inference.evaluate import MAX_WINDOWS
from rnn_lm.inference.reading import read
from rnn_lm.nn.models import LanguageModel


def score(
    model: LanguageModel, prompt: Int[np.ndarray, "P"], continuations: Sequence[Int[np.ndarray, "..."]]
) -> list[Float[np.ndarray, "..."]]:
    """−ln P of each token of each continuation, in nats, given the prompt and the tokens before it.

    The prompt is read once, from the initial state. Continuations of similar length are computed side by side.

    Args:
      model: predicts the next token.
      prompt: ids [P], P ≥ 1.
      continuations: ids [N] of each continuation, N ≥ 1.

    Raises:
      NotFinite: the model's logits are not finite.
    """
    carry = model.initialize_carry(1)
    if len(prompt) > 1:
        carry, _ = model.hidden(carry, jnp.asarray(prompt[:-1, None], jnp.int32))
    nats: list[np.ndarray] = [np.empty(0)] * len(continuations)
    by_length = np.argsort([len(ids) for ids in continuations], kind="stable")
    for group in np.split(by_length, range(MAX_WINDOWS, len(by_length), MAX_WINDOWS)):
        # Powers of two: few shapes, few compilations.
        shape = _power_of_two(max(len(continuations[i]) for i in group)), _power_of_two(len(group))
        inputs, labels, valid = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
        for column, i in enumerate(group):
            size = len(continuations[i])
            inputs[:size, column] = [prompt[-1], *continuations[i][:-1]]
            labels[:size, column] = continuations[i]
            valid[:size, column] = True
        start = jax.tree.map(partial(jnp.repeat, repeats=shape[1], axis=0), carry)
        columns = np.concatenate([windows[0].nats for _, windows in read([model], inputs, labels, valid, start)]).T
        for i, column in zip(group, columns, strict=False):
            nats[i] = column[: len(continuations[i])]
    if not all(np.isfinite(each).all() for each in nats):
        raise NotFinite()
    return nats


def _power_of_two(n: int) -> int:
    """The smallest power of two ≥ n."""
    return 1 << (n - 1).bit_length()
