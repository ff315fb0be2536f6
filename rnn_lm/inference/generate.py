"""New text from a model, token by token, in a compiled scan."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from rnn_lm.errors import NotFinite
from rnn_lm.members import Members
from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.models import LanguageModel

CALL_STEPS = 2000  # tokens in one compiled call; a signal can stop a generation between two calls


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
      model: predicts the next token.
      prompt: ids [P] of the text to continue, P ≥ 1.
      length: number of tokens to add.
      key: sample i uses `fold_in(key, i)`, so more samples do not change the first ones.
      num_samples: number of continuations.
      temperature: divides the logits; 0 always takes the likeliest token.
      top_k: sample from the k likeliest tokens; 0: from all.
      top_p: sample from the likeliest tokens whose total probability reaches `top_p`; 1: from all.

    Raises:
      NotFinite: the model's logits are not finite.
    """
    options: Any = {"num_samples": num_samples, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    [ids] = generate_members([model], prompt, length, keys=[key], **options)
    if not ids.all():  # `<unk>` is drawn where no other token has a probability
        raise NotFinite()
    return ids


def generate_members(
    models: Sequence[LanguageModel],
    prompt: np.ndarray,
    length: int,
    *,
    keys: Sequence[Key[Array, ""]],
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[np.ndarray]:
    """`generate` for models that share a program, each with its own key."""
    members = Members(len(models))
    graphdefs, states = zip(*(nnx.split(model) for model in models), strict=True)
    weights = members.stack(states)
    sample_keys = members.stack([jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_samples)) for key in keys])
    steps = min(length, CALL_STEPS)
    draw = partial(_draw, graphdefs[0], members, steps=steps, top_k=top_k, top_p=top_p)
    state = _read(graphdefs[0], members, weights, jnp.asarray(prompt, jnp.int32), num_samples=num_samples)
    tokens = []
    for start in range(0, length, steps):
        state, drawn = draw(weights, sample_keys, state, temperature, start)
        tokens.append(members.unstack(np.asarray(drawn)))
    return [np.concatenate(parts)[:length].T for parts in zip(*tokens, strict=True)]


def keep_likeliest(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Sets logits to −∞ outside the `top_k` likeliest tokens (0: all) and outside the nucleus of probability `top_p`.

    The likeliest token always stays. Ties are broken in favour of smaller ids.

    Reference: Holtzman et al., The curious case of neural text degeneration, ICLR 2020.
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    rank = jnp.argsort(order, axis=-1)
    keep = rank < (top_k or logits.shape[-1])
    if top_p < 1:
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
        before = jnp.cumsum(probs, axis=-1) - probs  # total probability of likelier tokens
        keep &= (rank == 0) | jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


@partial(jax.jit, static_argnames=("graphdef", "members", "num_samples"))
def _read(
    graphdef: nnx.GraphDef, members: Members, weights: nnx.State, prompt: Int[Array, " P"], *, num_samples: int
) -> tuple[Carry, Float[Array, "*M B V"]]:
    """The state after the prompt and the next token's logits, repeated for each sample."""

    def one(weights: nnx.State) -> tuple[Carry, Float[Array, "B V"]]:
        model = nnx.merge(graphdef, weights)
        carry, logits = model(model.initialize_carry(1), prompt[:, None])
        return jax.tree.map(lambda a: jnp.repeat(a, num_samples, axis=0), (carry, logits[-1]))

    return members.map(one)(weights)


@partial(jax.jit, static_argnames=("graphdef", "members", "steps", "top_k", "top_p"))
def _draw(
    graphdef: nnx.GraphDef,
    members: Members,
    weights: nnx.State,
    keys: Key[Array, "*M B"],
    state: tuple[Carry, Float[Array, "*M B V"]],
    temperature: Float[Array, ""] | float,
    start: Int[Array, ""] | int,
    *,
    steps: int,
    top_k: int,
    top_p: float,
) -> tuple[tuple[Carry, Float[Array, "*M B V"]], Int[Array, "*M steps B"]]:
    """Draws tokens `start` to `start + steps` in one scan."""

    def one(weights: nnx.State, keys: Key[Array, " B"], state: tuple[Carry, Array]) -> tuple[tuple, Array]:
        model = nnx.merge(graphdef, weights)

        def uniform(t):
            return jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in, (0, None))(keys, t))

        def step(state, u):
            carry, logits = state
            logits = logits.at[:, 0].set(-jnp.inf)  # never <unk>
            logits -= jnp.max(logits, axis=-1, keepdims=True)  # no temperature can overflow then
            scaled = logits / jnp.where(temperature > 0, temperature, 1)
            if top_k or top_p < 1:
                scaled = keep_likeliest(scaled, top_k, top_p)
            tokens = jnp.where(temperature > 0, _at_quantile(jnp.exp(scaled), u), jnp.argmax(logits, axis=-1))
            carry, logits = model(carry, tokens[None])
            return (carry, logits[0]), tokens

        return jax.lax.scan(step, state, jax.vmap(uniform)(start + jnp.arange(steps)))

    return members.map(one)(weights, keys, state)


def _at_quantile(weights: Float[Array, "B V"], u: Float[Array, " B"]) -> Int[Array, " B"]:
    """Token v with probability ∝ its weight: the first whose cumulative share exceeds u ∈ [0, 1).

    Takes one random number per draw; the Gumbel-max trick takes V.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)  # rounding never selects a weight of 0
    return jnp.argmax(cumulative > u[:, None] * cumulative.max(axis=-1, keepdims=True), axis=-1)
