"""The probability of given continuations of a text."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rnn_lm.errors import NotFinite
from rnn_lm.inference.evaluate import MAX_WINDOWS
from rnn_lm.inference.reading import read, steps_of_call
from rnn_lm.nn.models import LanguageModel

MAX_PADDING = 2**14  # tokens; reading them takes about as long as compiling one more shape


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
    lengths = np.array([len(ids) for ids in continuations])
    for group, shape in _groups(lengths, model.vocab_size):
        inputs, labels, valid = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
        for column, (i, size) in enumerate(zip(group, lengths[group], strict=True)):
            inputs[0, column], inputs[1:size, column] = prompt[-1], continuations[i][:-1]
            labels[:size, column] = continuations[i]
            valid[:size, column] = True
        start = jax.tree.map(partial(jnp.repeat, repeats=shape[1], axis=0), carry)
        columns = np.concatenate([windows[0].nats for _, windows in read([model], inputs, labels, valid, start)]).T
        for i, column in zip(group, columns, strict=False):
            nats[i] = column[: lengths[i]].copy()  # not a view, which would keep the padding
    if not all(np.isfinite(each).all() for each in nats):
        raise NotFinite()
    return nats


def _groups(lengths: Int[np.ndarray, "N"], vocab_size: int) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Groups of continuations of similar length, and the shape of each, [T, B]: few shapes, few compilations.

    All shapes together have at most twice as many tokens as the continuations, and `MAX_PADDING` more.
    """
    group: list[int] = []
    shape, spare = (0, 0), MAX_PADDING  # of the group, and how many tokens of padding may still be added
    for i in np.argsort(lengths, kind="stable").tolist():
        length = int(lengths[i])
        wider = _shape(length, len(group) + 1, vocab_size)
        left = spare + 2 * length - (math.prod(wider) - math.prod(shape))
        if len(group) == MAX_WINDOWS or left < 0:
            yield group, shape
            group, wider = [], _shape(length, 1, vocab_size)
            left = min(spare, MAX_PADDING) + 2 * length - math.prod(wider)
        group.append(i)
        shape, spare = wider, left
    if group:
        yield group, shape


def _shape(length: int, count: int, vocab_size: int) -> tuple[int, int]:
    """T and B of a group: B a power of two, T one too if a call of `read` takes all steps, or else some whole calls."""
    width = _power_of_two(count)
    steps = steps_of_call(width, vocab_size)
    return -(-length // steps) * steps if length > steps else min(_power_of_two(length), steps), width


def _power_of_two(n: int) -> int:
    """The smallest power of two ≥ n."""
    return 1 << (n - 1).bit_length()
