"""The scan with a backward pass of its own: one recurrent product in each direction, and dW_hh as one product after it.

It serves every cell whose step is `gates` of one product `h w_hh`: the scan back in time differentiates `gates` (and
`output`) alone and stacks the adjoints. No cell has a hand-written derivative.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from rnn_lm.nn import cpu
from rnn_lm.nn.arrays import product, shifted, summed_product
from rnn_lm.nn.cell import is_hoisted, overrides
from rnn_lm.nn.cells import GRUCell
from rnn_lm.nn.controls import Controls, enter, keep
from rnn_lm.nn.scan import changing_leaves, projections


def is_fused(cell: Any, carry: Any, inputs: Array) -> bool:
    """Whether a cell may be unrolled so: its step must be `gates` of one product, its carry differentiable."""
    return (
        is_hoisted(cell)
        and not overrides(cell, "step", "recur", "product")
        and not (isinstance(cell, GRUCell) and not cell.reset_after)  # before the product, it takes two
        and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(carry))
        and not changing_leaves(cell, carry, inputs[0])
    )


def fused_scan(
    cell: Any, initial: Any, carry: Any, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Any, Any, Array]:
    """Returns the last carry, all carries and all outputs."""
    graphdef, state = nnx.split(cell)
    leaves, tree = jax.tree.flatten(state)
    absent = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    w_hh, projected, dtype = cell.w_hh[...], projections(cell, inputs), cell.dtype
    is_learned = bool(controls) and overrides(cell, "initialize_carry")

    def cell_with(read: dict[int, Array]) -> Any:
        """The cell with those of its parameters that are read here; the others have their own ways through."""
        return nnx.merge(graphdef, jax.tree.unflatten(tree, [read.get(i, a) for i, a in enumerate(absent)]))

    read = _read_leaves(lambda leaves: cell_with(dict(enumerate(leaves))), leaves, carry, projected[0])
    small = {i: leaves[i] for i in read if jnp.issubdtype(leaves[i].dtype, jnp.floating)}
    fixed = {i: leaves[i] for i in read if i not in small}

    def finish(
        small: Any, fixed: Any, carry: Any, entered: Any, projected: Array, recurrent: Array, control: Controls
    ) -> Any:
        return keep(cell_with(small | fixed).gates(entered, projected, recurrent), carry, control)

    def scan(saving: bool, *arguments: Any) -> tuple[Any, tuple[Any, Array | None]]:
        small, w_hh, carry, projected, initial, fixed, controls = arguments

        def step(carry: Any, inputs: tuple[Array, Controls]) -> tuple[Any, tuple[Any, Array | None]]:
            projected, control = inputs
            entered = enter(carry, control, initial)
            recurrent = product(cell_with(small | fixed).output(entered), w_hh, dtype)
            new = finish(small, fixed, carry, entered, projected, recurrent, control)
            return new, (new, recurrent if saving else None)

        return lax.scan(step, carry, (projected, controls), reverse=reverse)

    @jax.custom_vjp
    def run(*arguments: Any) -> tuple[Any, Any]:
        last, (carries, _) = scan(False, *arguments)
        return last, carries

    def forward(*arguments: Any) -> tuple[tuple[Any, Any], tuple]:
        last, (carries, recurrent) = scan(True, *arguments)
        return (last, carries), (*arguments, carries, recurrent)

    def backward(saved: tuple, cotangents: tuple[Any, Any]) -> tuple:
        small, w_hh, carry, projected, initial, fixed, controls, carries, recurrent = saved
        d_last, d_carries = cotangents
        befores = jax.tree.map(partial(shifted, reverse=reverse), carry, carries)
        learned = initial if is_learned else None
        one_adjoint = False

        def step(state: tuple[Any, Any, Any], inputs: tuple) -> tuple[tuple[Any, Any, Any], tuple[Array, ...]]:
            nonlocal one_adjoint
            d_carry, d_small, d_learned = state
            d_new, before, projected, recurrent, control = inputs
            d_new = jax.tree.map(jnp.add, d_carry, d_new)
            entered, leave = jax.vjp(lambda c, i: enter(c, control, i if is_learned else initial), before, learned)

            def of_gates(small: Any, before: Any, entered: Any, projected: Array, recurrent: Array) -> Any:
                return finish(small, fixed, before, entered, projected, recurrent, control)

            _, pull = jax.vjp(of_gates, small, before, entered, projected, recurrent)
            d_small_t, d_before, d_entered, d_projected, d_recurrent = pull(d_new)
            # Cells that add the two products hand back one and the same adjoint: it is stacked once.
            one_adjoint = d_projected is d_recurrent
            _, of_output = jax.vjp(lambda small, c: cell_with(small | fixed).output(c), small, entered)
            d_small_o, d_from_output = of_output(product(d_recurrent, w_hh.T, dtype))
            d_through, d_learned_t = leave(jax.tree.map(jnp.add, d_entered, d_from_output))
            d_carry = jax.tree.map(jnp.add, d_before, d_through)
            d_small = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), d_small, d_small_t, d_small_o)
            d_learned = jax.tree.map(jnp.add, d_learned, d_learned_t)
            return (d_carry, d_small, d_learned), ((d_projected,) if one_adjoint else (d_projected, d_recurrent))

        (d_carry, d_small, d_learned), adjoints = lax.scan(
            step,
            (d_last, *jax.tree.map(jnp.zeros_like, (small, learned))),
            (d_carries, befores, projected, recurrent, controls),
            reverse=not reverse,
        )

        def output(before: Any, control: Controls) -> Array:
            return cell_with(small | fixed).output(enter(before, control, initial))

        h = jax.vmap(output)(befores, controls)
        d_w_hh = summed_product(h, adjoints[-1], w_hh, dtype)
        return d_small, d_w_hh, d_carry, adjoints[0], d_learned if is_learned else None, None, None

    run.defvjp(forward, backward)

    arguments = small, w_hh, carry, projected
    others = initial, fixed, controls
    if not controls and cpu.is_for(cell, arguments):

        def on_cpu(*arguments: Any) -> tuple[Any, Any]:
            carries = cpu.accelerated(lambda *a: scan(False, *a, *others)[1][0], cell, reverse)(*arguments)
            return jax.tree.map(lambda a: a[0 if reverse else -1], carries), carries

        last, carries = lax.platform_dependent(*arguments, cpu=on_cpu, default=lambda *a: run(*a, *others))
    else:
        last, carries = run(*arguments, *others)
    if overrides(cell, "output"):
        return last, carries, jax.vmap(cell.output)(carries)
    return last, carries, cell.output(carries)


def _read_leaves(cell_with: Any, leaves: list[Array], carry: Any, x_t: Array) -> list[int]:
    """Which leaves of a cell's state `gates` and `output` read."""

    def reading(leaves: list[Array], carry: Any, x_t: Array) -> Any:
        cell = cell_with(leaves)
        return cell.gates(carry, x_t, x_t), cell.output(carry)

    jaxpr = jax.make_jaxpr(reading)(leaves, carry, x_t).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars} | {id(x) for x in jaxpr.outvars}
    return [i for i, variable in enumerate(jaxpr.invars[: len(leaves)]) if id(variable) in used]
