"""A layer's recurrence over all steps in one kernel: `w_hh` stays on the chip while time goes by.

The batch is cut into tiles of 64 rows, and each tile's units into blocks, one to a multiprocessor. A block keeps its
columns of `w_hh` in shared memory. On the way forward every block needs the whole state at each step: each writes its
units' to global memory, waits for the others, and reads all. On the way back each multiplies its own adjoints, and the
blocks exchange sums: a block's part of `d_h` is what all of them found for its units.

Blocks of a tile wait for each other, by a semaphore in global memory, so all of them must run at once. Where not all
blocks fit on the GPU, those of a tile are a cluster, which the GPU starts together; there may be eight of them.
What a block needs of the next step is fetched in the background.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from rnn_lm.nn.controls import enter, keep
from rnn_lm.nn.gpu.plan import ROWS, Plan
from rnn_lm.nn.gpu.tile import Tile, plgpu, shared, store, terms_of


def _run(
    plan: Plan,
    body: Callable,
    weights: Array,
    scratch: tuple,
    copies: int,
    exchange: Any,
    outputs: Sequence[tuple[int, ...]],
    *arguments: Any,
) -> list[Array]:
    """`body(tile, *inputs, *outputs)` by every block; `copies` tiles are fetched for a step."""
    kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in outputs]
    if plan.exchanges:
        kinds.append(exchange)
    flat, tree = jax.tree.flatten(arguments)
    scratches = [
        *scratch,
        shared(copies, ROWS, plan.units, jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=plan.slots),
        plgpu.Barrier(num_arrivals=copies),
    ]
    signs = plan.interpreted and plan.exchanges
    if signs:
        scratches.append(plgpu.ClusterBarrier(collective_axes=("block",)))

    def kernel(source: Any, *refs: Any) -> None:
        inputs, made, rest = refs[: len(flat)], refs[len(flat) : len(flat) + len(kinds)], refs[len(flat) + len(kinds) :]
        kept, factors, fetched, loaded, arrived, ready, *barrier = rest
        has_semaphore = plan.exchanges and not signs
        semaphore = pl.get_global(plgpu.SemaphoreType.REGULAR((plan.members * plan.tiles,))) if has_semaphore else None
        exchange = made[-1] if plan.exchanges else None
        of_cluster = barrier[0] if signs else None
        tile = Tile(plan, kept, factors, fetched, arrived, ready, of_cluster, semaphore, exchange)
        for k in range(kept.shape[0]):
            plgpu.copy_gmem_to_smem(source.at[tile.member(), lax.axis_index("block"), k], kept.at[k], loaded)
            plgpu.barrier_wait(loaded)
        body(tile, *jax.tree.unflatten(tree, inputs), *made[: len(outputs)])

    grid: dict[str, Any] = {"grid": (plan.members * plan.tiles, plan.blocks), "grid_names": ("tile", "block")}
    if plan.in_cluster or signs:
        grid = {"grid": (plan.members * plan.tiles,), "grid_names": ("tile",)}
        grid |= {"cluster": (plan.blocks,), "cluster_names": ("block",)}
    run = plgpu.kernel(kernel, out_type=kinds, scratch_types=scratches, **grid)
    return run(weights, *flat)[: len(outputs)]


def forward(
    plan: Plan, w_hh: Array, projected: Array, b_hn: Any, starts: tuple, initial: Any, masks: dict, *, saving: bool
) -> tuple[list[Array], Array | None]:
    """All states, each [T, B, H], and what the way back needs of the gates, [T, B, parts·H].

    The members of w_hh [M, H, gates·H] and b_hn [M, H] have their rows of the batch one after the other.
    """
    rows, cell = plan.rows, plan.cell
    every = (plan.steps, rows, plan.hidden)
    outputs = cell.states * [every] + saving * [(plan.steps, rows, cell.parts * plan.hidden)]
    weights = w_hh.reshape(plan.members, plan.hidden, cell.gates, plan.blocks, plan.units).transpose(0, 3, 2, 4, 1)
    weights = weights.reshape(plan.members, plan.blocks, -1, plan.hidden)
    weights = jnp.stack(terms_of(weights, plan), axis=2)
    scratch = (
        shared(plan.terms, cell.gates * plan.units, plan.hidden, plan.dtype),
        shared(plan.slots, ROWS, plan.chunk, plan.dtype),
    )

    def body(tile: Tile, projected: Any, b_hn: Any, starts: Any, initial: Any, masks: Any, *made: Any) -> None:
        at_reset = tuple(tile.load(ref) for ref in initial or ())
        bias = None
        if b_hn is not None:
            row = b_hn.at[tile.member(), tile.units()]
            column = plgpu.load(row, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
            bias = lax.broadcast_in_dim(column, (ROWS, plan.units), [1])

        at = partial(plan.time, back=False)

        def fetch(i: Any) -> None:
            for g in range(cell.gates):
                tile.fetch(g, projected, at(i), piece=g)

        def control(name: str, i: Any) -> dict:
            return {name: tile.row(masks[name], at(i))} if name in masks else {}

        def on(control: dict) -> dict:
            return {name: tile.is_on(row) for name, row in control.items()}

        def step(i: Any, states: tuple) -> tuple:
            state, old = states
            valid, reset = control("valid", i), control("resets", i + 1)
            recurrent = tile.recurrent(i)
            plgpu.barrier_wait(tile.ready)
            x = [tile.read(g) for g in range(cell.gates)]
            fetch(i + 1)
            if bias is not None:
                recurrent[-1] = recurrent[-1] + bias
            parts = cell.summed(x, recurrent)
            new = keep(cell.new(state, parts), old, on(valid))
            following = enter(new, on(reset), at_reset)
            tile.send_state(i + 1, following[0])
            for ref, value in zip(made, new, strict=False):
                store(tile.at(ref, at(i)), value)
            for k, part in enumerate(parts if saving else []):
                store(tile.at(made[-1], at(i), piece=k), part)
            return following, (new if plan.valid else ())

        fetch(jnp.int32(0))
        start = tuple(tile.load(ref) for ref in starts)
        first = enter(start, on(control("resets", jnp.int32(0))), at_reset)
        tile.send_state(jnp.int32(0), first[0])
        lax.fori_loop(0, plan.steps, step, (first, start if plan.valid else ()))
        plgpu.barrier_wait(tile.ready)  # what was fetched for a step that is not there
        if tile.barrier is not None:  # the last state was told of too
            plgpu.barrier_wait(tile.barrier)

    exchange = jax.ShapeDtypeStruct((2, plan.terms, rows, plan.hidden), plan.dtype)
    given = projected, b_hn, starts, initial, masks
    made = _run(plan, body, weights, scratch, cell.gates, exchange, outputs, *given)
    return made[: cell.states], made[-1] if saving else None


def backward(
    plan: Plan, w_hh: Array, parts: Array, starts: tuple, states: tuple, initial: Any, masks: dict, d_states: tuple,
    d_last: tuple,
) -> tuple[list[Array], list[Array], list[Array]]:  # fmt: skip
    """Adjoints of the projected inputs [T, B, gates·H], of a GRU's n of the state [T, B, H], of start and initial."""
    plan = dataclasses.replace(plan, adjoints=sum(d is not None for d in d_states))
    rows, cell = plan.rows, plan.cell
    outputs: list[tuple[int, ...]] = [(plan.steps, rows, cell.gates * plan.hidden)]
    outputs += cell.splits * [(plan.steps, rows, plan.hidden)]
    outputs += (1 + plan.resets) * cell.states * [(rows, plan.hidden)]
    weights = w_hh.reshape(plan.members, plan.hidden, cell.gates, plan.blocks, plan.units).transpose(0, 3, 2, 1, 4)
    weights = jnp.stack(terms_of(weights, plan), axis=3)
    weights = weights.reshape(plan.members, plan.blocks, -1, plan.hidden, plan.units)
    scratch = (
        shared(cell.gates * plan.terms, plan.hidden, plan.units, plan.dtype),
        shared(cell.gates * plan.terms, ROWS, plan.units, plan.dtype),
    )
    given = parts, starts, [states[k] for k in cell.reads], initial, masks, d_states, d_last

    def body(
        tile: Tile,
        parts: Any,
        starts: Any,
        befores: Any,
        initial: Any,
        masks: Any,
        d_states: Any,
        d_last: Any,
        *made: Any,
    ) -> None:
        d_parts_refs, made = made[: 1 + cell.splits], made[1 + cell.splits :]
        at_reset = tuple(tile.load(ref) for ref in initial or ())

        at = partial(plan.time, back=True)

        def fetch(i: Any) -> None:
            """What the i-th step back needs."""
            for k in range(cell.parts):
                tile.fetch(k, parts, at(i), piece=k)
            for k, (which, ref) in enumerate(zip(cell.reads, befores, strict=True)):

                @pl.when(i >= plan.steps - 1)
                def _(k: int = k, which: int = which) -> None:
                    tile.fetch(cell.parts + k, starts[which])

                @pl.when(i < plan.steps - 1)
                def _(k: int = k, ref: Any = ref) -> None:
                    tile.fetch(cell.parts + k, ref, at(i + 1))

            k = cell.parts + len(cell.reads)
            for ref in d_states:
                if ref is not None:
                    tile.fetch(k, ref, at(i))
                    k += 1

        def rows_of(i: Any) -> dict:
            return {name: tile.row(masks[name], at(i)) for name in ("resets", "valid") if name in masks}

        def step(i: Any, carried: tuple) -> tuple:
            d_new, d_initial, rows = carried
            plgpu.barrier_wait(tile.ready)
            given = [tile.read(k) for k in range(cell.parts)]
            old: list[Any] = cell.states * [None]
            for k, which in enumerate(cell.reads):
                old[which] = tile.read(cell.parts + k)
            fetched = iter(range(cell.parts + len(cell.reads), plan.fetched))
            d_new = tuple(
                d if ref is None else d + tile.read(next(fetched)) for d, ref in zip(d_new, d_states, strict=True)
            )
            fetch(i + 1)
            entered = old
            if plan.resets:
                reset = tile.is_on(rows["resets"])
                entered = [o if o is None else jnp.where(reset, n, o) for n, o in zip(at_reset, old, strict=True)]
            d_old = None
            if plan.valid:
                valid = tile.is_on(rows["valid"])
                d_old = tuple(jnp.where(valid, 0.0, d) for d in d_new)
                d_new = tuple(jnp.where(valid, d, 0.0) for d in d_new)
            d_entered, d_parts = cell.pull(entered, given, d_new)
            for k in range(cell.gates):
                store(tile.at(d_parts_refs[0], at(i), piece=k), d_parts[k])
            if cell.splits:
                store(tile.at(d_parts_refs[1], at(i)), d_parts[-1])
            rows = rows_of(i + 1)
            pulled = tile.pull(i, [*d_parts[: cell.gates - 1], d_parts[-1]])
            d_entered = (d_entered[0] + pulled, *d_entered[1:])
            if plan.resets:
                d_initial = tuple(t + jnp.where(reset, d, 0.0) for t, d in zip(d_initial, d_entered, strict=True))
                d_entered = tuple(jnp.where(reset, 0.0, d) for d in d_entered)
            if "passed" in masks:
                d_entered = tuple(masks["passed"][tile.member(), at(i)] * d for d in d_entered)
            if d_old is not None:
                d_entered = tuple(a + b for a, b in zip(d_entered, d_old, strict=True))
            return d_entered, d_initial, rows

        fetch(jnp.int32(0))
        d_last = tuple(tile.load(ref) for ref in d_last)
        zeros = tuple(jnp.zeros_like(d) for d in d_last) if plan.resets else ()
        start = d_last, zeros, rows_of(jnp.int32(0))
        d_start, d_initial, _ = lax.fori_loop(0, plan.steps, step, start)
        plgpu.barrier_wait(tile.ready)  # what was fetched for a step that is not there
        for ref, value in zip(made, (*d_start, *d_initial), strict=True):
            store(tile.at(ref), value)

    exchange = jax.ShapeDtypeStruct((2, plan.blocks, rows, plan.hidden), jnp.float32)
    made = _run(plan, body, weights, scratch, plan.fetched, exchange, outputs, *given)
    adjoints, made = made[: 1 + cell.splits], made[1 + cell.splits :]
    return adjoints, made[: cell.states], made[cell.states :]
