"""New text from a model, token by token, in one compiled call."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from rnn_lm.errors import NotFinite
from rnn_lm.inference.sampling import draw
from rnn_lm.members import Members
from rnn_lm.nn import native
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
    weights, stacked_keys = members.stack(states), members.stack(list(keys))
    steps = min(length, CALL_STEPS)
    options: Any = {"steps": steps, "top_k": top_k, "top_p": top_p, "wanted": native.is_wanted()}
    state = _read(graphdefs[0], members, weights, np.asarray(prompt, np.int32), num_samples=num_samples)
    tokens = []
    for start in range(0, length, steps):
        state, drawn = _draw(graphdefs[0], members, weights, stacked_keys, state, temperature, start, **options)
        tokens.append(members.unstack(np.asarray(drawn)))
    return [np.concatenate(parts)[:length].T for parts in zip(*tokens, strict=True)]


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


@partial(jax.jit, static_argnames=("graphdef", "members", "steps", "top_k", "top_p", "wanted"))
def _draw(
    graphdef: nnx.GraphDef,
    members: Members,
    weights: nnx.State,
    keys: Key[Array, "*M"],
    state: tuple[Carry, Float[Array, "*M B V"]],
    temperature: Float[Array, ""] | float,
    start: Int[Array, ""] | int,
    *,
    steps: int,
    top_k: int,
    top_p: float,
    wanted: bool,
) -> tuple[tuple[Carry, Float[Array, "*M B V"]], Int[Array, "*M steps B"]]:
    """Draws tokens `start` to `start + steps`."""

    def one(weights: nnx.State, key: Key[Array, ""], state: tuple[Carry, Array]) -> tuple[tuple, Array]:
        model, (carry, logits) = nnx.merge(graphdef, weights), state
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(logits)))

        def uniform(t: Array) -> Array:
            of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            return jax.vmap(partial(jax.random.uniform, dtype=jnp.float32))(of_step)

        numbers = jax.vmap(uniform)(start + jnp.arange(steps))
        options: Any = {"top_k": top_k, "top_p": top_p, "wanted": wanted}
        carry, logits, tokens = draw(model, carry, logits, numbers, jnp.asarray(temperature, jnp.float32), **options)
        return (carry, logits), tokens

    return members.map(one)(weights, keys, state)
