"""What a training step takes, in memory and in time, by how it goes back through time."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.nn.models import RNNLM

MAX_BYTES = 4e9  # of a gradient that is run, not only compiled
TIME_LIMIT = 1.0  # seconds, after which a call is not repeated

Loss = Callable[[Any, Any, Int[Array, "T B"]], tuple[Float[Array, ""], Any]]


def loss_of(graphdef: nnx.GraphDef, *, remat: int | Literal["sqrt"] | None = None) -> Loss:
    """(parameters, carry, tokens) → the language model's loss, summed over all steps, and the carry after the last."""

    def loss(params: Any, carry: Any, tokens: Int[Array, "T B"]) -> tuple[Float[Array, ""], Any]:
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, tokens, remat=remat)
        return model.nll(h, tokens).sum(), carry

    return loss


def gradient_in_segments(loss: Loss, segment: int, params: Any, carry: Any, tokens: Int[Array, "T B"]) -> Any:
    """Truncated backpropagation through time: the gradient of each segment, one after the other, summed.

    What a segment needs for its gradient is forgotten before the next; the state goes on as a constant.
    """

    def one(state: tuple[Any, Any], tokens: Int[Array, "k B"]) -> tuple[tuple[Any, Any], None]:
        carry, total = state
        grads, carry = jax.grad(loss, has_aux=True)(params, carry, tokens)
        return (carry, jax.tree.map(jnp.add, total, grads)), None

    segments = tokens.reshape(-1, segment, *tokens.shape[1:])
    (_, total), _ = jax.lax.scan(one, (carry, jax.tree.map(jnp.zeros_like, params)), segments)
    return total


def ways_back(
    loss_with: Callable[..., Loss], *, remat: int | Literal["sqrt"], segment: int
) -> dict[str, Callable[..., Any]]:
    """Three ways to the gradient of `loss_with(remat=…)`, each (parameters, carry, inputs) → gradient.

    All states "cached"; "remat", the states of every so many steps kept and the others computed again; "truncated" at
    segments.
    """
    cached, recomputed = loss_with(remat=None), loss_with(remat=remat)
    return {
        "cached": lambda *args: jax.grad(cached, has_aux=True)(*args)[0],
        "remat": lambda *args: jax.grad(recomputed, has_aux=True)(*args)[0],
        "truncated": partial(gradient_in_segments, cached, segment),
    }


def step_costs(model: RNNLM, *, batch_size: int, segment: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """What the gradient over T steps takes by each of `ways_back`, for each T of `lengths`, multiples of `segment`."""
    graphdef, params = nnx.split(model, nnx.Param)
    ways = ways_back(partial(loss_of, graphdef), remat="sqrt", segment=segment)
    carry = model.initialize_carry(batch_size)
    return [
        {"steps": steps, "way": name} | measured(way, params, carry, jnp.zeros((steps, batch_size), jnp.int32))
        for steps in lengths
        for name, way in ways.items()
    ]


def measured(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a function takes: bytes of temporaries, by the compiled program's own account, and seconds.

    The time is the fastest of a few calls within `TIME_LIMIT`; None where the memory would be more than `MAX_BYTES`.
    """
    compiled = jax.jit(function).lower(*arguments).compile()
    analysis: Any = compiled.memory_analysis()
    size = analysis.temp_size_in_bytes
    seconds: list[float] = []
    while size <= MAX_BYTES and len(seconds) < 3 and sum(seconds) < TIME_LIMIT:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return {"temporary_bytes": size, "seconds": min(seconds, default=None)}
