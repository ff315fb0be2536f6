"""The gradient of `WindowTruncation`: every step's loss looks back through the same number of steps."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree, alike, divided_like, shifted
from rnn_lm.nn.cell import as_inputs, is_hoisted, overrides
from rnn_lm.nn.controls import Controls, Masks, controls_of, enter, initial_carry, keep, where, without_padding
from rnn_lm.nn.scan import Leaves, Pieces, changing_leaves, projections
from rnn_lm.nn.stack import Stack


def with_window_gradient(
    stack: Stack,
    steps: int,
    carry: tuple,
    inputs: Array,
    values: tuple[Carry, Array],
    masks: Masks,
    reverse: bool,
    key: Array | None,
) -> tuple[Carry, Array]:
    """`values`, the carries and outputs of `unroll`, with a gradient in which each loss goes back `steps` steps."""
    pieces = Pieces.of(stack)
    params = {i: leaf for i, leaf in enumerate(pieces.leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    fixed = {i: leaf for i, leaf in enumerate(pieces.leaves) if i not in params}
    first, *_ = stack.cells
    inputs, ids = as_inputs(first, carry[0], inputs, steps=1)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(carry)):
        raise ValueError("truncation: a WindowTruncation is for carries of floating-point numbers only")
    if changing_leaves(stack, carry, inputs[0]):
        raise ValueError("truncation: a WindowTruncation is not for cells that change their own state at each step")
    controls = controls_of(len(inputs), masks, reverse=reverse)
    inputs = without_padding(inputs, controls)
    initial = None if masks.resets is None else initial_carry(stack, carry, inputs, ids)
    carry, initial = divided_like((carry, initial), inputs, values[1].ndim - 2)
    is_learned = masks.resets is not None and any(overrides(cell, "initialize_carry") for cell in stack.cells)
    factors = [] if key is None else _dropout_factors(stack, carry, inputs, key)
    window = _Window(pieces.shapes(), steps, reverse, is_learned, is_hoisted(first))
    attach = jax.custom_vjp(lambda *arguments: arguments[-1])
    attach.defvjp(lambda *arguments: (arguments[-1], arguments), window.backward)
    xs = projections(first, inputs) if window.is_hoisted else inputs
    values = jax.tree.map(lax.stop_gradient, values)
    return attach(*alike((params, carry, xs, initial, fixed, controls, factors, values)))


def _dropout_factors(stack: Stack, carry: tuple, inputs: Array, key: Array) -> list[Array]:
    """The dropout masks of the upper layers' inputs."""
    factors, x = [], inputs[0]
    for layer, (below, state) in enumerate(zip(stack.cells[:-1], carry[:-1], strict=True), start=1):
        x = jax.eval_shape(below, state, x)[1]
        factors.append(stack.drop(jnp.ones((len(inputs), *x.shape), x.dtype), layer, key))
    return factors


@dataclass(frozen=True)
class _Window:
    """The backward scan. It carries `steps` adjoints of the state, one for each age.

    The adjoint of age a comes from the losses a steps later. Each step adds one to the age; after `steps` steps it is
    dropped.
    """

    pieces: Pieces  # the stack, with shapes in place of its leaves
    steps: int
    reverse: bool
    is_learned: bool  # whether the initial carry for resets has a gradient
    is_hoisted: bool  # whether the inputs are projected already

    def step(
        self, leaves: Leaves, carry: tuple, x: Array, initial: Carry, control: Controls, factors: list[Array]
    ) -> tuple[tuple, Array]:
        """All layers at one time step."""
        news = []
        cells = self.pieces.cell(leaves).cells
        for i, (cell, state) in enumerate(zip(cells, enter(carry, control, initial), strict=True)):
            if i == 0 and self.is_hoisted:
                new = cell.step(state, x)
                x = cell.output(new)
            else:
                new, x = cell(state, x * factors[i - 1] if i and factors else x)
            news.append(new)
        return keep(tuple(news), carry, control), without_padding(x, control)

    def backward(self, saved: tuple, cotangents: tuple[Carry, Array]) -> tuple:
        params, carry, xs, initial, fixed, controls, factors, (carries, _) = saved
        befores = jax.tree.map(partial(shifted, reverse=self.reverse), carry, carries)
        learned = initial if self.is_learned else None

        def back(state: tuple[Tree, Tree], inputs: tuple) -> tuple[tuple[Tree, Tree], Array]:
            ages, d_shared = state
            (d_new, d_output), before, x, control, factors = inputs
            d_new = jax.tree.map(lambda ages, d: jnp.concatenate([ages[:1] + d[None], ages[1:]]), ages, d_new)
            d_outputs = jnp.concatenate([d_output[None], _ages_of(d_output, self.steps - 1)])

            def here(shared: tuple[Leaves, Carry], before: Carry, x: Array) -> tuple[tuple, Array]:
                params, learned = shared
                started = learned if self.is_learned else initial
                return self.step(params | fixed, before, x, started, control, factors)

            _, pull = jax.vjp(here, (params, learned), before, x)
            passed = jax.vmap(lambda *d: pull(d)[1])(d_new, d_outputs)
            d_shared_t, _, d_x = pull((jax.tree.map(_total, d_new), d_output))
            ages = jax.tree.map(_older, passed)
            if "valid" in control:  # steps past the end do not count
                ages = jax.tree.map(lambda a, b: where(control["valid"][None], a, b), ages, passed)
            return (ages, jax.tree.map(jnp.add, d_shared, d_shared_t)), d_x

        none = jax.tree.map(partial(_ages_of, count=self.steps), carry)
        (ages, (d_params, d_learned)), d_xs = lax.scan(
            back,
            (none, jax.tree.map(jnp.zeros_like, (params, learned))),
            (cotangents, befores, xs, controls, factors),
            reverse=not self.reverse,
        )
        d_initial = d_learned if self.is_learned else None
        return d_params, jax.tree.map(_total, ages), d_xs, d_initial, None, None, None, None


def _ages_of(x: Array, count: int) -> Array:
    """Zeros, of so many ages, sharded as x is."""
    return jnp.broadcast_to(jnp.zeros_like(x)[None], (count, *x.shape))


def _older(ages: Array) -> Array:
    """Each one step older; the last one is dropped."""
    return jnp.concatenate([jnp.zeros_like(ages[:1]), ages[:-1]])


def _total(ages: Array) -> Array:
    return ages.sum(0)
