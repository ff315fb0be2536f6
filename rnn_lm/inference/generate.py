"""New text from a model, token by token, in a compiled scan."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from rnn_lm.nn.models import LanguageModel

CALL_STEPS = 2000  # tokens in one compiled call; between two of them a signal can end a long generation


def generate(
    model: LanguageModel,
    prompt: np.ndarray,
    length: int,
    *,
    key: Key[Array, ""],
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> np.ndarray:
    """New tokens after a prompt: ids [num_samples, length], never `<unk>`.

    Args:
      model: what predicts the next token.
      prompt: ids [P] of the text to go on from, P ≥ 1.
      length: how many tokens to add.
      key: sample number i is drawn with `fold_in(key, i)`, so more samples leave the first ones as they are.
      num_samples: how many texts, all after the same prompt.
      temperature: logits are divided by it; 0 takes the likeliest token each time.
      top_k: only the k likeliest tokens are drawn; 0 is all.
      top_p: only the likeliest tokens that together have at least this probability are drawn; 1 is all.
    """
    graphdef, weights = nnx.split(model)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_samples))
    steps = min(length, CALL_STEPS)
    draw = partial(_draw, graphdef, weights, keys, temperature, steps=steps, top_k=top_k, top_p=top_p)
    carry, logits = _read(graphdef, weights, jnp.asarray(prompt, jnp.int32), num_samples=num_samples)
    tokens = []
    for start in range(0, length, steps):
        (carry, logits), drawn = draw((carry, logits), start)
        tokens.append(np.asarray(drawn))
    return np.concatenate(tokens)[:length].T


def generate_side_by_side(
    models: Sequence[LanguageModel], prompt: np.ndarray, length: int, *, keys: Sequence[Key[Array, ""]]
) -> Int[np.ndarray, "M length"]:
    """`generate` of one text by each of several models that differ in their numbers only, several as one program."""
    if len(models) == 1:
        return generate(models[0], prompt, length, key=keys[0])
    graphdefs, weights = zip(*(nnx.split(model) for model in models), strict=True)
    together = jax.tree.map(lambda *lanes: jnp.stack(lanes), *weights)
    start = jnp.asarray(prompt, jnp.int32)
    return np.asarray(_generate_side_by_side(graphdefs[0], together, start, jnp.stack(keys), length=length))


def keep_likeliest(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """The logits with −∞ for all but the `top_k` likeliest tokens (0: all) and the nucleus of probability `top_p`.

    The likeliest token always stays; of equally likely ones those with the smaller ids go first.

    Reference: Holtzman et al., The curious case of neural text degeneration, ICLR 2020.
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    rank = jnp.argsort(order, axis=-1)
    keep = rank < (top_k or logits.shape[-1])
    if top_p < 1:
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
        before = jnp.cumsum(probs, axis=-1) - probs  # the probability of all that are likelier
        keep &= (rank == 0) | jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


@partial(jax.jit, static_argnames=("graphdef", "num_samples"))
def _read(
    graphdef: nnx.GraphDef, weights: nnx.State, prompt: Int[Array, " P"], *, num_samples: int
) -> tuple[Any, Float[Array, "B V"]]:
    """The state after the prompt and the logits of the next token, once for each sample."""
    model = nnx.merge(graphdef, weights)
    carry, logits = model(model.initialize_carry(1), prompt[:, None])
    return jax.tree.map(lambda a: jnp.repeat(a, num_samples, axis=0), (carry, logits[-1]))


@partial(jax.jit, static_argnames=("graphdef", "length"))
def _generate_side_by_side(
    graphdef: nnx.GraphDef, weights: nnx.State, prompt: Int[Array, " P"], keys: Key[Array, " M"], *, length: int
) -> Int[Array, "M length"]:
    def one(weights: nnx.State, key: Key[Array, ""]) -> Int[Array, " length"]:
        state, keys = _read(graphdef, weights, prompt, num_samples=1), jax.random.fold_in(key, 0)[None]
        return _draw(graphdef, weights, keys, 1.0, state, 0, steps=length, top_k=0, top_p=1.0)[1][:, 0]

    return jax.vmap(one)(weights, keys)


@partial(jax.jit, static_argnames=("graphdef", "steps", "top_k", "top_p"))
def _draw(
    graphdef: nnx.GraphDef,
    weights: nnx.State,
    keys: Key[Array, " B"],
    temperature: Float[Array, ""] | float,
    state: tuple[Any, Float[Array, "B V"]],
    start: Int[Array, ""] | int,
    *,
    steps: int,
    top_k: int,
    top_p: float,
) -> tuple[tuple[Any, Float[Array, "B V"]], Int[Array, "steps B"]]:
    """Draws tokens number `start` to `start + steps` by one scan."""
    model = nnx.merge(graphdef, weights)

    def uniform(t):
        return jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in, (0, None))(keys, t))

    def step(state, u):
        carry, logits = state
        logits = logits.at[:, 0].set(-jnp.inf)  # never <unk>
        logits -= jnp.max(logits, axis=-1, keepdims=True)  # so that no temperature, however small, overflows
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        if top_k or top_p < 1:
            scaled = keep_likeliest(scaled, top_k, top_p)
        tokens = jnp.where(temperature > 0, _at_quantile(jnp.exp(scaled), u), jnp.argmax(logits, axis=-1))
        carry, logits = model(carry, tokens[None])
        return (carry, logits[0]), tokens

    return jax.lax.scan(step, state, jax.vmap(uniform)(start + jnp.arange(steps)))


def _at_quantile(weights: Float[Array, "B V"], u: Float[Array, " B"]) -> Int[Array, " B"]:
    """Token v with probability ∝ its weight: the first at which the share of all weight so far passes u ∈ [0, 1).

    One random number a draw, where a maximum of Gumbel noise would take V.
    """
    so_far = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)  # rounding must not reach a token without weight
    return jnp.argmax(so_far > u[:, None] * so_far.max(axis=-1, keepdims=True), axis=-1)
