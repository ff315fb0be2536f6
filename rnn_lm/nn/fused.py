"""The scan with a backward pass of its own: one recurrent product in each direction, and dW_hh as one product after it.

It serves every cell whose step is `gates` of one product `h w_hh`. The backward scan differentiates only `gates` (and
`output`) and stacks the adjoints, so no cell needs a hand-written derivative.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array

from rnn_lm.nn import native
from rnn_lm.nn.arrays import Carry, Tree, product, shifted, summed_product
from rnn_lm.nn.cell import Cell, overrides
from rnn_lm.nn.cells import takes_one_product
from rnn_lm.nn.controls import Controls, enter, keep, without_padding
from rnn_lm.nn.scan import Leaves, Pieces, changing_leaves, projections


def is_fused(cell: nnx.RNNCellBase, carry: Carry, inputs: Array) -> bool:
    """Whether a cell fits: its step must be `gates` of one product, and its carry differentiable."""
    return (
        takes_one_product(cell)
        and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(carry))
        and not changing_leaves(cell, carry, inputs[0])
    )


def fused_scan(
    cell: Cell, initial: Carry, carry: Carry, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Carry, Carry, Array]:
    """Returns the last carry, all carries and all outputs."""
    pieces, projected = Pieces.of(cell), jax.eval_shape(lambda: projections(cell, inputs))
    one = jax.ShapeDtypeStruct(projected.shape[1:], projected.dtype)
    read = {i: pieces.leaves[i] for i in _read_leaves(pieces, carry, one)}
    small = {i: leaf for i, leaf in read.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    fixed = {i: leaf for i, leaf in read.items() if i not in small}
    is_learned = bool(controls) and overrides(cell, "initialize_carry")
    scan = _Scan(pieces.shapes(), cell.dtype, reverse, is_learned)
    by_sequence = "passed" in controls and controls["passed"].ndim > 1  # which only the scan can
    run = None if by_sequence else native.on_gpu(scan, cell, small, carry, projected, controls)
    if run is None:
        run = jax.custom_vjp(scan.values)
        run.defvjp(scan.forward, scan.backward)

    def by_scan() -> tuple[Carry, Carry, Array]:
        projected = projections(cell, without_padding(inputs, controls))
        last, carries = run(small, cell.w_hh[...], carry, projected, initial, fixed, controls)
        outputs = jax.vmap(cell.output)(carries) if overrides(cell, "output") else cell.output(carries)
        return last, carries, without_padding(outputs, controls)

    if by_sequence or not native.is_wanted():
        return by_scan()
    layer = native.cpu.Layer.of(cell, small, carry, initial, inputs, controls)
    if not native.cpu.is_for(cell, layer):
        return by_scan()

    def reference(layer: Any) -> tuple[Carry, Carry]:
        last, carries = scan.values(
            layer.small, layer.w_hh, layer.carry, layer.projected(), layer.initial, fixed, layer.controls
        )
        return last, jax.tree.map(lambda c: without_padding(c, layer.controls), carries)

    def on_cpu(layer: Any) -> tuple[Carry, Carry, Array]:
        last, states = native.cpu.accelerated(reference, cell, reverse)(layer)
        past_the_ends = jax.tree.map(lambda c: c[None], carry if reverse else last)
        return last, keep(states, past_the_ends, controls), cell.output(states)

    return lax.platform_dependent(layer, cpu=on_cpu, default=lambda _: by_scan())


@dataclass(frozen=True)
class _Scan:
    """The scan and its backward pass as functions of arrays.

    The arrays are `small`, the cell's floats that `gates` and `output` read; w_hh; the first carry; the projected
    inputs; the initial carry for resets; `fixed`, the other leaves that are read; and the controls.
    """

    pieces: Pieces  # the cell, with shapes in place of its leaves
    dtype: Dtype | None
    reverse: bool
    is_learned: bool  # whether the initial carry for resets has a gradient

    def values(self, *arguments: Tree) -> tuple[Carry, Carry]:
        """The last carry and all carries."""
        last, (carries, _) = self._scan(False, *arguments)
        return last, carries

    def forward(self, *arguments: Tree) -> tuple[tuple[Carry, Carry], tuple]:
        last, (carries, recurrent) = self._scan(True, *arguments)
        return (last, carries), (*arguments, carries, recurrent)

    def _scan(self, saving: bool, *arguments: Tree) -> tuple[Carry, tuple[Carry, Array | None]]:
        small, w_hh, carry, projected, initial, fixed, controls = arguments

        def step(carry: Carry, inputs: tuple[Array, Controls]) -> tuple[Carry, tuple[Carry, Array | None]]:
            projected, control = inputs
            entered = enter(carry, control, initial)
            recurrent = product(self.pieces.cell(small | fixed).output(entered), w_hh, self.dtype)
            new = self._finish(small | fixed, carry, entered, projected, recurrent, control)
            return new, (new, recurrent if saving else None)

        return lax.scan(step, carry, (projected, controls), reverse=self.reverse)

    def _finish(
        self, read: Leaves, carry: Carry, entered: Carry, projected: Array, recurrent: Array, control: Controls
    ) -> Carry:
        return keep(self.pieces.cell(read).gates(entered, projected, recurrent), carry, control)

    def backward(self, saved: tuple, cotangents: tuple[Carry, Carry]) -> tuple:
        small, w_hh, carry, projected, initial, fixed, controls, carries, recurrent = saved
        d_last, d_carries = cotangents
        befores = jax.tree.map(partial(shifted, reverse=self.reverse), carry, carries)
        learned = initial if self.is_learned else None

        def step(state: tuple[Carry, Leaves, Carry], inputs: tuple) -> tuple[tuple, tuple[Array, ...]]:
            d_new, *at_step = inputs
            d_new = jax.tree.map(jnp.add, state[0], d_new)
            d_carry, d_small, d_learned, adjoints = self._step_back((small, w_hh, initial, fixed), d_new, *at_step)
            d_small = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), state[1], *d_small)
            return (d_carry, d_small, jax.tree.map(jnp.add, state[2], d_learned)), adjoints

        (d_carry, d_small, d_learned), adjoints = lax.scan(
            step,
            (d_last, *jax.tree.map(jnp.zeros_like, (small, learned))),
            (d_carries, befores, projected, recurrent, controls),
            reverse=not self.reverse,
        )

        def output(before: Carry, control: Controls) -> Array:
            return self.pieces.cell(small | fixed).output(enter(before, control, initial))

        d_w_hh = summed_product(jax.vmap(output)(befores, controls), adjoints[-1], w_hh, self.dtype)
        return d_small, d_w_hh, d_carry, adjoints[0], d_learned if self.is_learned else None, None, None

    def _step_back(
        self,
        constants: tuple[Leaves, Array, Carry, Leaves],
        d_new: Carry,
        before: Carry,
        projected: Array,
        recurrent: Array,
        control: Controls,
    ) -> tuple[Carry, tuple[Leaves, Leaves], Carry, tuple[Array, ...]]:
        """One step back: given d_new, the adjoints of the old carry, `small`, `initial` and the products."""
        small, w_hh, initial, fixed = constants
        learned = initial if self.is_learned else None
        entered, leave = jax.vjp(lambda c, i: enter(c, control, i if self.is_learned else initial), before, learned)

        def of_gates(small: Leaves, before: Carry, entered: Carry, projected: Array, recurrent: Array) -> Carry:
            return self._finish(small | fixed, before, entered, projected, recurrent, control)

        _, pull = jax.vjp(of_gates, small, before, entered, projected, recurrent)
        d_small, d_before, d_entered, d_projected, d_recurrent = pull(d_new)
        _, of_output = jax.vjp(lambda small, c: self.pieces.cell(small | fixed).output(c), small, entered)
        d_small_of_output, d_from_output = of_output(product(d_recurrent, w_hh.T, self.dtype))
        d_through, d_learned = leave(jax.tree.map(jnp.add, d_entered, d_from_output))
        # Cells that add the two products return the same adjoint for both: it is stacked once.
        adjoints = (d_projected,) if d_projected is d_recurrent else (d_projected, d_recurrent)
        return jax.tree.map(jnp.add, d_before, d_through), (d_small, d_small_of_output), d_learned, adjoints


def _read_leaves(pieces: Pieces, carry: Carry, x_t: jax.ShapeDtypeStruct) -> list[int]:
    """The positions of the leaves that `gates` and `output` read."""

    def reading(leaves: list[Array], carry: Carry, x_t: Array) -> tuple[Carry, Array]:
        cell = pieces.cell(dict(enumerate(leaves)))
        return cell.gates(carry, x_t, x_t), cell.output(carry)

    jaxpr = jax.make_jaxpr(reading)(pieces.leaves, carry, x_t).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars} | {id(x) for x in jaxpr.outvars}
    return [i for i, variable in enumerate(jaxpr.invars[: len(pieces.leaves)]) if id(variable) in used]
