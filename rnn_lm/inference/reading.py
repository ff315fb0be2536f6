"""Texts, read side by side → what each token cost, in steps that bound the memory."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.inference.dynamic import STEPS, Learned
from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.models import LanguageModel

MAX_LOGITS = 2**22  # in one call, which bounds the memory
MAX_UPDATES = 256  # in one call, after which progress is shown


def nats_of(model: LanguageModel, ids: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N-1"]:
    """−ln P of each token of a text but the first, read as one stream from the initial state."""
    inputs, labels = ids[:-1, None], ids[1:, None]
    parts = read(model, model.initialize_carry(1), inputs, labels, np.ones_like(labels, bool))
    return np.concatenate([nats[:, 0] for _, nats, _ in parts])


def read(
    model: LanguageModel,
    carry: Any,
    inputs: Int[np.ndarray, "T B"],
    labels: Int[np.ndarray, "T B"],
    valid: Bool[np.ndarray, "T B"],
    *,
    dynamic: bool = False,
) -> Iterator[tuple[slice, Float[np.ndarray, "t B"], dict[str, float]]]:
    """Reads windows side by side, a few steps at a time; `dynamic`: and learns from them.

    Yields which steps, the nats of each label (0 where it is not `valid`), and the largest |h| (and |c|) among them.
    """
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    learned = Learned.nothing(params) if dynamic else None
    length, width = inputs.shape
    steps = max(1, min(length, MAX_LOGITS // (width * model.vocab_size)))
    if learned is not None:
        steps = STEPS * max(1, min(-(-length // STEPS), steps // STEPS, MAX_UPDATES))
    for part, chunk in _chunks(steps, inputs, labels, valid):
        if learned is not None:
            learned, result = _learn_window(graphdef, rest, learned, carry, *chunk)
        else:
            result = _read_window(graphdef, rest, params, carry, *chunk)
        carry = result.carry
        largest = {letter: float(value) for letter, value in result.max_abs.items()}
        yield part, np.asarray(result.nats, np.float64)[: len(inputs[part])], largest


def read_side_by_side(
    models: Sequence[LanguageModel],
    inputs: Int[np.ndarray, "T B"],
    labels: Int[np.ndarray, "T B"],
    valid: Bool[np.ndarray, "T B"],
) -> Iterator[tuple[slice, Float[np.ndarray, "M t B"], dict[str, Float[np.ndarray, " M"]]]]:
    """The same by M models that differ in their numbers only, as one program; each begins with its initial state."""
    graphdefs, states = zip(*(nnx.split(model) for model in models), strict=True)
    length, width = inputs.shape
    numbers = jax.tree.map(lambda *lanes: jnp.stack(lanes), *states)
    carry = jax.tree.map(lambda h: jnp.stack(len(models) * [h]), models[0].initialize_carry(width))
    steps = max(1, min(length, MAX_LOGITS // (len(models) * width * models[0].vocab_size)))
    for part, chunk in _chunks(steps, inputs, labels, valid):
        result = _read_window_side_by_side(graphdefs[0], numbers, carry, *chunk)
        carry = result.carry
        largest = {letter: np.asarray(values, np.float64) for letter, values in result.max_abs.items()}
        yield part, np.asarray(result.nats, np.float64)[:, : len(inputs[part])], largest


def _chunks(steps: int, *arrays: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """So many steps at a time. The last chunk is filled up, so that one compilation serves all."""
    length = len(arrays[0])
    for start in range(0, length, steps):
        missing = max(0, start + steps - length)
        part = slice(start, start + steps)
        yield part, [np.pad(array[part], ((0, missing), (0, 0))) for array in arrays]


@partial(jax.jit, static_argnums=0)
def learn(
    graphdef: nnx.GraphDef,
    rest: nnx.State,
    learned: Learned,
    carry: Any,
    inputs: Int[Array, "T B"],
    labels: Int[Array, "T B"],
    valid: Bool[Array, "T B"],
) -> tuple[Learned, "Window"]:
    """Reads a window and then takes one step down the gradient of what it cost."""
    tokens = valid.sum()

    def loss(params):
        model = nnx.merge(graphdef, params, rest)
        h, result = _predict(model, carry, inputs, labels, valid)
        return jnp.sum(model.objective(h, labels), where=valid) / jnp.maximum(tokens, 1), result

    grads, result = jax.grad(loss, has_aux=True)(learned.params)
    return learned.update(grads, tokens), result


class Window(NamedTuple):
    """What is known of a window once it is read."""

    carry: Any  # after it
    nats: Float[Array, "T B"]  # of each valid token, 0 elsewhere
    max_abs: dict[str, Float[Array, ""]]  # the largest |h| and |c|


def _predict(
    model: LanguageModel, carry: Any, inputs: Int[Array, "T B"], labels: Int[Array, "T B"], valid: Bool[Array, "T B"]
) -> tuple[Any, Window]:
    """What the output layer reads, and what comes of it."""
    carries, h = model.hidden(carry, inputs, return_carries=True)
    nats = jnp.where(valid, cross_entropy(model.output(h), labels), 0)
    max_abs = {
        letter: jnp.stack([jnp.max(jnp.abs(x), where=valid[..., None], initial=0) for x in states]).max()
        for letter, states in model.states(carries).items()
    }
    return h, Window(jax.tree.map(lambda c: c[-1], carries), nats, max_abs)


@partial(jax.jit, static_argnums=0)
def _read_window(graphdef: nnx.GraphDef, rest: nnx.State, params: nnx.State, carry: Any, *window: Array) -> Window:
    return _predict(nnx.merge(graphdef, params, rest), carry, *window)[1]


@partial(jax.jit, static_argnums=0)
def _read_window_side_by_side(graphdef: nnx.GraphDef, numbers: nnx.State, carry: Any, *window: Array) -> Window:
    """Of several models, whose numbers and carries have an axis in front."""
    return jax.vmap(lambda numbers, carry: _predict(nnx.merge(graphdef, numbers), carry, *window)[1])(numbers, carry)


@partial(jax.jit, static_argnums=0)
def _learn_window(
    graphdef: nnx.GraphDef, rest: nnx.State, learned: Learned, carry: Any, *window: Array
) -> tuple[Learned, Window]:
    """The same, with an update after every few tokens."""

    def step(state, part):
        learned, read = learn(graphdef, rest, *state, *part)
        return (learned, read.carry), (read.nats, read.max_abs)

    parts = [a.reshape(-1, STEPS, a.shape[1]) for a in window]
    (learned, carry), (nats, max_abs) = jax.lax.scan(step, (learned, carry), parts)
    return learned, Window(carry, nats.reshape(window[0].shape), jax.tree.map(jnp.max, max_abs))
