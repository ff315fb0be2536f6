"""The gradient of `WindowTruncation`: every step's loss looks back through the same number of steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from rnn_lm.nn.arrays import alike, divided_like, shifted
from rnn_lm.nn.cell import Cell, are_ids, as_inputs, is_hoisted, overrides
from rnn_lm.nn.controls import Controls, controls_of, enter, initial_carry, keep, where, without_padding
from rnn_lm.nn.scan import changing_leaves, projections
from rnn_lm.nn.stack import Stack


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
    graphdef, state = nnx.split(stack)
    leaves, tree = jax.tree.flatten(state)
    params = {i: leaf for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    fixed = {i: leaf for i, leaf in enumerate(leaves) if i not in params}
    first, *_ = stack.cells
    hoisted = is_hoisted(first)
    if isinstance(first, Cell):
        inputs = as_inputs(first, carry[0], inputs, steps=1)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(carry)):
        raise ValueError("truncation: a WindowTruncation is for carries of floating-point numbers only")
    if changing_leaves(stack, carry, inputs[0]):
        raise ValueError("truncation: a WindowTruncation is not for cells that change their own state at each step")
    controls = controls_of(len(inputs), lengths, resets)
    inputs = without_padding(inputs, controls)
    ids = are_ids(first, carry[0], inputs, steps=1)
    initial = None if resets is None else initial_carry(stack, carry, inputs, ids)
    carry, initial = divided_like((carry, initial), inputs, values[1].ndim - 2)
    is_learned = resets is not None and any(overrides(cell, "initialize_carry") for cell in stack.cells)
    # What dropout multiplies the inputs of the upper layers by.
    factors: list[Array] = []
    x = inputs[0]
    for layer, (below, state_below) in enumerate(zip(stack.cells[:-1], carry[:-1], strict=True), start=1):
        x = jax.eval_shape(below, state_below, x)[1]
        if key is not None:
            factors.append(stack.drop(jnp.ones((len(inputs), *x.shape), x.dtype), layer, key))

    def step(
        params: Any, carry: tuple, x: Array, initial: Any, fixed: Any, control: Controls, factors: list[Array]
    ) -> tuple[tuple, Array]:
        """All layers at one time step."""
        merged = params | fixed
        cells = nnx.merge(graphdef, jax.tree.unflatten(tree, [merged[i] for i in sorted(merged)])).cells
        news = []
        for i, (cell, state) in enumerate(zip(cells, enter(carry, control, initial), strict=True)):
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
        params, carry, xs, initial, fixed, controls, factors, (carries, _) = saved
        befores = jax.tree.map(partial(shifted, reverse=reverse), carry, carries)
        learned = initial if is_learned else None

        def back(state: tuple[Any, Any], inputs: tuple) -> tuple[tuple[Any, Any], Array]:
            lanes, d_shared = state
            (d_new, d_output), before, x, control, factors = inputs
            d_new = jax.tree.map(lambda lanes, d: jnp.concatenate([lanes[:1] + d[None], lanes[1:]]), lanes, d_new)
            d_outputs = jnp.concatenate([d_output[None], _lanes_of(d_output, steps - 1)])

            def here(shared: tuple[Any, Any], before: Any, x: Array) -> Any:
                params, learned = shared
                return step(params, before, x, learned if is_learned else initial, fixed, control, factors)

            _, pull = jax.vjp(here, (params, learned), before, x)
            passed = jax.vmap(lambda *d: pull(d)[1])(d_new, d_outputs)
            d_shared_t, _, d_x = pull((jax.tree.map(_total, d_new), d_output))
            lanes = jax.tree.map(_older, passed)
            if "valid" in control:  # a step past the end is none
                lanes = jax.tree.map(lambda a, b: where(control["valid"][None], a, b), lanes, passed)
            return (lanes, jax.tree.map(jnp.add, d_shared, d_shared_t)), d_x

        no_lanes = jax.tree.map(partial(_lanes_of, count=steps), carry)
        (lanes, (d_params, d_learned)), d_xs = lax.scan(
            back,
            (no_lanes, jax.tree.map(jnp.zeros_like, (params, learned))),
            (cotangents, befores, xs, controls, factors),
            reverse=not reverse,
        )
        return d_params, jax.tree.map(_total, lanes), d_xs, d_learned if is_learned else None, None, None, None, None

    attach.defvjp(forward, backward)
    xs = projections(first, inputs) if hoisted else inputs
    values = jax.tree.map(lax.stop_gradient, values)
    return attach(*alike((params, carry, xs, initial, fixed, controls, factors, values)))


def _lanes_of(x: Array, count: int) -> Array:
    """So many lanes of zeros, sharded as x is."""
    return jnp.broadcast_to(jnp.zeros_like(x)[None], (count, *x.shape))


def _older(lanes: Array) -> Array:
    """Each lane one place further; the last one is dropped."""
    return jnp.concatenate([jnp.zeros_like(lanes[:1]), lanes[:-1]])


def _total(lanes: Array) -> Array:
    return lanes.sum(0)
