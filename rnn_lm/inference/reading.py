"""Texts, read side by side → the loss of each token."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.inference.dynamic import STEPS, Learned
from rnn_lm.members import ONE, Members
from rnn_lm.mesh import ONE_DEVICE, WHOLE, DataMesh, rows_at
from rnn_lm.nn.arrays import Carry, Tree
from rnn_lm.nn.models import LanguageModel

MAX_LOGITS = 2**22  # per call; limits the memory
MAX_TOKENS = 2**12  # of a model, per call on a CPU: for the states of more, each call would allocate memory anew
MAX_UPDATES = 256  # per call; progress is shown between calls


class Window(NamedTuple):
    """The result of reading a window."""

    carry: Carry | None  # after it; None once the result is on the host
    nats: Float[Array | np.ndarray, "T B"]  # of each valid token, 0 elsewhere
    max_abs: Mapping[str, Float[Array, ""] | float]  # the largest |h| and |c|


def nats_of(model: LanguageModel, ids: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N-1"]:
    """−ln P of each token of a text but the first, read as one stream from the initial state."""
    inputs, labels = ids[:-1, None], ids[1:, None]
    parts = read([model], inputs, labels, np.ones_like(labels, bool))
    return np.concatenate([window.nats[:, 0] for _, [window] in parts])


def read(
    models: Sequence[LanguageModel],
    inputs: Int[np.ndarray, "T B"],
    labels: Int[np.ndarray, "T B"],
    valid: Bool[np.ndarray, "T B"],
    carry: Carry | None = None,
    mesh: DataMesh = ONE_DEVICE,
) -> Iterator[tuple[slice, list[Window]]]:
    """Reads windows side by side, a few steps at a time, with one or several models that share a program.

    Yields the steps, and each model's result. All models start from `carry`, by default the initial state. The devices
    of a mesh, which have the models, divide B.
    """
    members = Members(len(models))
    graphdefs, states = zip(*(nnx.split(model) for model in models), strict=True)
    length, width = inputs.shape
    carry = models[0].initialize_carry(width) if carry is None else carry
    weights, carries = members.stack(states), members.stack(len(models) * [carry])
    carries = mesh.put(carries, rows_at(members.axes))
    steps = min(length, steps_of_call(width, len(models) * models[0].vocab_size))
    for part, chunk in _chunks(steps, inputs, labels, valid):
        chunk = mesh.put(chunk, rows_at(1))
        window = _read_window(graphdefs[0], members, mesh, weights, carries, *chunk)
        carries = window.carry
        yield part, _on_host(members, mesh, window, inputs[part])


def steps_of_call(width: int, numbers: int) -> int:
    """The most steps that are computed in one call, of `width` texts; one token takes `numbers` logits."""
    most = MAX_LOGITS // numbers
    return max(1, (min(MAX_TOKENS, most) if jax.default_backend() == "cpu" else most) // width)


def read_and_learn(
    model: LanguageModel,
    inputs: Int[np.ndarray, "T B"],
    labels: Int[np.ndarray, "T B"],
    valid: Bool[np.ndarray, "T B"],
) -> Iterator[tuple[slice, list[Window]]]:
    """`read` with one model that keeps training on the text. `model` itself is not changed."""
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    length, width = inputs.shape
    learned, carry = Learned.nothing(params), model.initialize_carry(width)
    updates = max(1, min(-(-length // STEPS), MAX_LOGITS // (width * model.vocab_size) // STEPS, MAX_UPDATES))
    for part, chunk in _chunks(STEPS * updates, inputs, labels, valid):
        learned, window = _learn_window(graphdef, rest, learned, carry, *chunk)
        carry = window.carry
        yield part, _on_host(ONE, ONE_DEVICE, window, inputs[part])


def _on_host(members: Members, mesh: DataMesh, window: Window, inputs: Int[np.ndarray, "t B"]) -> list[Window]:
    """Each member's result as NumPy arrays: without carry and padding, and with nats in float64, for exact sums."""
    results = members.unstack(mesh.get(window._replace(carry=None)))
    return [each._replace(nats=np.asarray(each.nats, np.float64)[: len(inputs)]) for each in results]


def _chunks(steps: int, *arrays: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Cuts arrays into chunks of `steps`. The last one is padded, so all chunks share a compilation."""
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
    carry: Carry,
    inputs: Int[Array, "T B"],
    labels: Int[Array, "T B"],
    valid: Bool[Array, "T B"],
) -> tuple[Learned, Window]:
    """Reads a window, then updates the parameters once from its loss."""
    tokens = valid.sum()

    def loss(params):
        model = nnx.merge(graphdef, params, rest)
        h, result = _predict(model, carry, inputs, labels, valid)
        return model.objective(h, labels, valid), result

    grads, result = jax.grad(loss, has_aux=True)(learned.params)
    return learned.update(grads, tokens), result


def _predict(
    model: LanguageModel, carry: Carry, inputs: Int[Array, "T B"], labels: Int[Array, "T B"], valid: Bool[Array, "T B"]
) -> tuple[Tree, Window]:
    """The output layer's input and the result."""
    carries, h = model.hidden(carry, inputs, return_carries=True)
    nats = jnp.where(valid, model.nll(h, labels), 0)
    max_abs = {
        letter: jnp.stack([jnp.max(jnp.abs(x), where=valid[..., None], initial=0) for x in states]).max()
        for letter, states in model.states(carries).items()
    }
    return h, Window(jax.tree.map(lambda c: c[-1], carries), nats, max_abs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read_window(
    graphdef: nnx.GraphDef, members: Members, mesh: DataMesh, weights: nnx.State, carry: Carry, *window: Array
) -> Window:
    def of_device(weights: nnx.State, carry: Carry, *window: Array) -> Window:
        def one(weights: nnx.State, carry: Carry) -> Window:
            result = _predict(nnx.merge(graphdef, weights), carry, *window)[1]
            return result._replace(max_abs=mesh.max(result.max_abs))

        return members.map(one)(mesh.own(weights), carry)

    of_carry, of_nats = rows_at(members.axes), rows_at(members.axes + 1)
    results = Window(of_carry, of_nats, WHOLE)  # type: ignore[arg-type]
    return mesh.map(of_device, (WHOLE, of_carry, *len(window) * [rows_at(1)]), results)(weights, carry, *window)


@partial(jax.jit, static_argnums=0)
def _learn_window(
    graphdef: nnx.GraphDef, rest: nnx.State, learned: Learned, carry: Carry, *window: Array
) -> tuple[Learned, Window]:
    """Reads a window with an update every `STEPS` tokens."""

    def step(state, part):
        learned, read = learn(graphdef, rest, *state, *part)
        return (learned, read.carry), (read.nats, read.max_abs)

    parts = [a.reshape(-1, STEPS, a.shape[1]) for a in window]
    (learned, carry), (nats, max_abs) = jax.lax.scan(step, (learned, carry), parts)
    return learned, Window(carry, nats.reshape(window[0].shape), jax.tree.map(jnp.max, max_abs))
