"""The gradient of `WindowTruncation`: every step's loss looks back through the same number of steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from rnn_lm.nn.arrays import alike, shifted
from rnn_lm.nn.cells import Cell, Stack
from rnn_lm.nn.controls import Controls, controls_of, enter, initial_carry, keep, where, without_padding


def with_window_gradient(
    stack: Stack,
    steps: int,
    carry: tuple,
    inputs: Array,
    values: tuple[Any, Array],
    *,
    lengths: Array | None,
    resets: Array | None,
    reverse: bool,
    key: Array | None,
) -> tuple[Any, Array]:
    """`values`, the carries and outputs of `unroll`, with the gradient in which loss t passes through `steps` steps.

    One scan goes back in time with `steps` adjoints of the state side by side: lane a holds that of the losses a steps
    later, moves up by one at each step, and is dropped when it has passed through `steps` of them.
    """
    graphdef, params = nnx.split(stack)
    first, *_ = stack.cells
    hoisted = isinstance(first, Cell)
    controls = controls_of(len(inputs), lengths, resets)
    inputs = without_padding(inputs, controls)
    initial = None if resets is None else initial_carry(stack, inputs)
    # What dropout multiplies the inputs of the upper layers by.
    factors = [
        stack.drop(jnp.ones((*values[1].shape[:-1], below.hidden_features), values[1].dtype), layer, key)
        for layer, below in enumerate(stack.cells[:-1], start=1)
        if key is not None
    ]

    def step(
        params: Any, carry: tuple, x: Array, initial: Any, control: Controls, factors: list[Array]
    ) -> tuple[tuple, Array]:
        """All layers at one time step."""
        news = []
        for i, (cell, state) in enumerate(
            zip(nnx.merge(graphdef, params).cells, enter(carry, control, initial), strict=True)
        ):
            if i == 0 and hoisted:
                new = cell.step(state, x)
                x = cell.output(new)
            else:
                new, x = cell(state, x * factors[i - 1] if i and factors else x)
            news.append(new)
        return keep(tuple(news), carry, control), without_padding(x, control)

    @jax.custom_vjp
    def attach(*arguments: Any) -> tuple[Any, Array]:
        return arguments[-1]

    def forward(*arguments: Any) -> tuple[Any, tuple]:
        return arguments[-1], arguments

    def backward(saved: tuple, cotangents: tuple[Any, Array]) -> tuple:
        params, carry, xs, initial, controls, factors, (carries, _) = saved
        befores = jax.tree.map(partial(shifted, reverse=reverse), carry, carries)

        def back(state: tuple[Any, Any], inputs: tuple) -> tuple[tuple[Any, Any], Array]:
            lanes, d_params = state
            (d_new, d_output), before, x, control, factors = inputs
            d_new = jax.tree.map(lambda lanes, d: lanes.at[0].add(d), lanes, d_new)
            d_outputs = jnp.zeros((steps, *d_output.shape), d_output.dtype).at[0].set(d_output)
            _, pull = jax.vjp(lambda p, c, x: step(p, c, x, initial, control, factors), params, before, x)
            passed = jax.vmap(lambda *d: pull(d)[1])(d_new, d_outputs)
            d_params_t, _, d_x = pull((jax.tree.map(_total, d_new), d_output))
            lanes = jax.tree.map(_older, passed)
            if "valid" in control:  # a step past the end is none
                lanes = jax.tree.map(lambda a, b: where(control["valid"][None], a, b), lanes, passed)
            return (lanes, jax.tree.map(jnp.add, d_params, d_params_t)), d_x

        no_lanes = jax.tree.map(lambda c: jnp.zeros_like(c, shape=(steps, *c.shape)), carry)
        (lanes, d_params), d_xs = lax.scan(
            back,
            (no_lanes, jax.tree.map(jnp.zeros_like, params)),
            (cotangents, befores, xs, controls, factors),
            reverse=not reverse,
        )
        return d_params, jax.tree.map(_total, lanes), d_xs, None, None, None, None

    attach.defvjp(forward, backward)
    xs = first.project(inputs) if hoisted else inputs
    values = jax.tree.map(lax.stop_gradient, values)
    return attach(*alike((params, carry, xs, initial, controls, factors, values)))


def _older(lanes: Array) -> Array:
    """Each lane one place further; the last one is dropped."""
    return jnp.concatenate([jnp.zeros_like(lanes[:1]), lanes[:-1]])


def _total(lanes: Array) -> Array:
    return lanes.sum(0)
