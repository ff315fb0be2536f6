"""Memory and time of a gradient through time: states stored, recomputed, or truncated."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.files import Json
from rnn_lm.nn.arrays import Carry, Tree
from rnn_lm.nn.models import RNNLM

MAX_BYTES = 4e9  # larger gradients are compiled but not run
TIME_LIMIT = 1.0  # seconds; calls are repeated until then

Loss = Callable[[nnx.State, Carry, Int[Array, "T B"]], tuple[Float[Array, ""], Carry]]


def loss_of(graphdef: nnx.GraphDef, *, remat: int | Literal["sqrt"] | None = None) -> Loss:
    """(parameters, carry, tokens) → the loss summed over all steps, and the last carry."""

    def loss(params: nnx.State, carry: Carry, tokens: Int[Array, "T B"]) -> tuple[Float[Array, ""], Carry]:
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, tokens, remat=remat)
        return model.nll(h, tokens).sum(), carry

    return loss


def gradient_in_segments(
    loss: Loss, segment: int, params: nnx.State, carry: Carry, tokens: Int[Array, "T B"]
) -> nnx.State:
    """Truncated backpropagation through time: the sum of the gradients of the segments.

    Memory is that of one segment. The state is carried to the next segment as a constant.
    """

    def one(state: tuple[Carry, nnx.State], tokens: Int[Array, "k B"]) -> tuple[tuple[Tree, Tree], None]:
        carry, total = state
        grads, carry = jax.grad(loss, has_aux=True)(params, carry, tokens)
        return (carry, jax.tree.map(jnp.add, total, grads)), None

    segments = tokens.reshape(-1, segment, *tokens.shape[1:])
    (_, total), _ = jax.lax.scan(one, (carry, jax.tree.map(jnp.zeros_like, params)), segments)
    return total


def ways_back(
    loss_with: Callable[..., Loss], *, remat: int | Literal["sqrt"], segment: int
) -> dict[str, Callable[..., Tree]]:
    """Three functions (parameters, carry, inputs) → gradient of `loss_with(remat=…)`.

    "cached" stores all states, "remat" recomputes most of them, "truncated" stops at each segment.
    """
    cached, recomputed = loss_with(remat=None), loss_with(remat=remat)
    return {
        "cached": lambda *args: jax.grad(cached, has_aux=True)(*args)[0],
        "remat": lambda *args: jax.grad(recomputed, has_aux=True)(*args)[0],
        "truncated": partial(gradient_in_segments, cached, segment),
    }


def step_costs(model: RNNLM, *, batch_size: int, segment: int, lengths: Sequence[int]) -> list[Json]:
    """Memory and time of each of `ways_back` over T steps, for each T in `lengths` (multiples of `segment`)."""
    graphdef, params = nnx.split(model, nnx.Param)
    ways = ways_back(partial(loss_of, graphdef), remat="sqrt", segment=segment)
    carry = model.initialize_carry(batch_size)
    return [
        {"steps": steps, "way": name} | measured(way, params, carry, jnp.zeros((steps, batch_size), jnp.int32))
        for steps in lengths
        for name, way in ways.items()
    ]


def measured(function: Callable[..., Tree], *arguments: Tree) -> Json:
    """Bytes of temporaries, as the compiled program reports them, and seconds of a function.

    The time is the fastest of up to three calls; None if the memory exceeds `MAX_BYTES`.
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
