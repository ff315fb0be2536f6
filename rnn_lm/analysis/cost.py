"""What a training step takes, in memory and in time, by how it goes back through time."""

import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.models import RNNLM

Loss = Callable[[Any, Any, Int[Array, "T B"]], tuple[Float[Array, ""], Any]]


def loss_of(graphdef: nnx.GraphDef, *, remat: int | Literal["sqrt"] | None = None) -> Loss:
    """(parameters, carry, tokens) → the language model's loss, summed over all steps, and the carry after the last."""

    def loss(params: Any, carry: Any, tokens: Int[Array, "T B"]) -> tuple[Float[Array, ""], Any]:
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, tokens, remat=remat)
        return cross_entropy(model.output(h), tokens).sum(), carry

    return loss


def gradient_in_segments(loss: Loss, params: Any, carry: Any, tokens: Int[Array, "T B"], segment: int) -> Any:
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


def step_costs(
    model: RNNLM,
    *,
    batch_size: int,
    segment: int,
    lengths: list[int],
    max_seconds: float = 3.0,
    on_progress: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """Bytes of temporaries and seconds of the gradient over T steps, for each T of `lengths`, multiples of `segment`.

    Three ways: all states "cached"; "remat", the states of every √T-th step kept and the others computed again;
    "truncated" at segments. Bytes are the compiled program's own account, beyond parameters and gradients. A T that
    would take longer than `max_seconds`, by the one before it, is left out.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    cached, remat = loss_of(graphdef), loss_of(graphdef, remat="sqrt")
    ways: dict[str, Callable[..., Any]] = {
        "cached": lambda *args: jax.grad(cached, has_aux=True)(*args)[0],
        "remat": lambda *args: jax.grad(remat, has_aux=True)(*args)[0],
        "truncated": lambda *args: gradient_in_segments(cached, *args, segment),
    }
    costs: list[dict[str, Any]] = []
    carry = model.initialize_carry(batch_size)
    for steps in lengths:
        before = [cost["seconds"] / cost["steps"] * steps for cost in costs[-len(ways) :]]
        for name, way in ways.items():
            if max(before, default=0.0) < max_seconds:
                tokens = jnp.zeros((steps, batch_size), jnp.int32)
                costs.append({"steps": steps, "way": name} | measured(way, params, carry, tokens))
            on_progress()
    return costs


def measured(function: Callable[..., Any], *arguments: Any, repeats: int = 3) -> dict[str, Any]:
    """Bytes of temporaries of the compiled function, and the seconds of its fastest call."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes, "seconds": min(seconds)}
