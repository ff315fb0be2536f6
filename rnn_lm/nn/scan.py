"""The chapter's recurrence: a cell under `jax.lax.scan`, differentiated by JAX. Also a scan in blocks of steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree
from rnn_lm.nn.cell import Cell, is_hoisted, overrides
from rnn_lm.nn.controls import Controls, enter, keep, without_padding

# The signature of each way to unroll. It returns the last carry, all carries and all outputs,
# and depends on nothing past the end of a sequence.
Way = Callable[[Any, Carry, Carry, Array, Controls, bool], tuple[Carry, Carry, Array]]


Leaves = dict[int, Array]  # some leaves of a cell's state, by position


class Pieces(NamedTuple):
    """A cell taken apart."""

    graphdef: nnx.GraphDef
    tree: jax.tree_util.PyTreeDef
    leaves: Sequence[Any]  # the arrays of its state, or their shapes

    @classmethod
    def of(cls, cell: nnx.RNNCellBase) -> "Pieces":
        graphdef, state = nnx.split(cell)
        leaves, tree = jax.tree.flatten(state)
        return cls(graphdef, tree, leaves)

    def shapes(self) -> "Pieces":
        """The same with shapes for arrays, so that differentiated functions may close over it."""
        return self._replace(leaves=[jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves])

    def cell(self, leaves: Leaves) -> Any:
        """The cell with some leaves replaced, by position."""
        state = jax.tree.unflatten(self.tree, [leaves.get(i, leaf) for i, leaf in enumerate(self.leaves)])
        return nnx.merge(self.graphdef, state)


def plain_scan(
    cell: Any, initial: Carry, carry: Carry, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Carry, Carry, Array]:
    """Any cell, step by step. Other state of the cell, such as a count of draws, is carried along."""
    pieces, changing = Pieces.of(cell), changing_leaves(cell, carry, inputs[0])
    hoisted = is_hoisted(cell) and not changing
    inputs = without_padding(inputs, controls)

    def step(state: tuple[Carry, list[Array]], xs: tuple[Array, Controls]) -> tuple[tuple, tuple[Carry, Array]]:
        (carry, changed), (x, control) = state, xs
        entered = enter(carry, control, initial)
        if hoisted:
            new = cell.step(entered, x)
            output = cell.output(new)
        else:
            at_step = pieces.cell(dict(zip(changing, changed, strict=True))) if changing else cell
            new, output = at_step(entered, x)
            changed = [leaf for i, leaf in enumerate(jax.tree.leaves(nnx.state(at_step))) if i in changing]
        new = keep(new, carry, control)
        return (new, changed), (new, output)

    xs = projections(cell, inputs) if hoisted else inputs
    start = carry, [pieces.leaves[i] for i in changing]
    (last, changed), (carries, outputs) = lax.scan(step, start, (xs, controls), reverse=reverse)
    if changing:
        nnx.update(cell, nnx.state(pieces.cell(dict(zip(changing, changed, strict=True)))))
    return last, carries, without_padding(outputs, controls)


@jax.named_scope("projection")
def projections(cell: Cell, inputs: Array) -> Array:
    """`project` for all time steps at once. A user's own `project` sees one step at a time, as in a loop."""
    return (
        jax.vmap(cell.project)(inputs) if overrides(cell, "project", "product", "_normalized") else cell.project(inputs)
    )


def changing_leaves(cell: nnx.RNNCellBase, carry: Carry, x: Array) -> list[int]:
    """The positions of the leaves that a step changes; it never changes parameters."""
    if not nnx.to_flat_state(nnx.state(cell, nnx.Not(nnx.Param))):
        return []
    graphdef, state = nnx.split(cell)
    changing: list[int] = []

    def step(state: nnx.State, carry: Carry, x: Array) -> None:
        before, copy = jax.tree.leaves(state), nnx.merge(graphdef, state)
        copy(carry, x)
        changing[:] = changed_leaves(before, copy)

    jax.eval_shape(step, state, carry, x)
    return changing


def changed_leaves(before: list[Array], cell: nnx.RNNCellBase) -> dict[int, Array]:
    """The leaves of a cell's state that have been replaced, by position."""
    after = jax.tree.leaves(nnx.state(cell))
    return {i: new for i, (old, new) in enumerate(zip(before, after, strict=True)) if new is not old}


def in_blocks(
    run: Callable[..., tuple[Carry, Carry, Array]],
    block: int,
    params: Tree,
    carry: Carry,
    inputs: Array,
    controls: Controls,
    reverse: bool,
) -> tuple[Carry, Carry, Array]:
    """`run` block by block. Only the carries between blocks are stored; the rest is recomputed in the backward pass."""
    run = jax.checkpoint(run, prevent_cse=False)
    blocks = inputs.shape[0] // block
    whole = blocks * block
    first = jax.tree.map(lambda a: a[:whole].reshape(blocks, block, *a.shape[1:]), (inputs, controls))
    rest = jax.tree.map(lambda a: a[whole:], (inputs, controls))

    def one(carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
        last, *ys = run(params, carry, *xs)
        return last, ys

    def all_whole(carry: Carry, xs: Tree) -> tuple[Carry, Tree]:
        last, ys = lax.scan(one, carry, xs, reverse=reverse)
        return last, jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)

    parts = [(all_whole, first)] * (whole > 0) + [(one, rest)] * (whole < inputs.shape[0])
    done = []
    for run_part, xs in parts[::-1] if reverse else parts:
        carry, ys = run_part(carry, xs)
        done.append(ys)
    return carry, *jax.tree.map(lambda *ys: jnp.concatenate(ys), *(done[::-1] if reverse else done))
