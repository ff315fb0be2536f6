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
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array

plgpu: Any = mosaic_gpu  # whose types change from version to version

ROWS = 64  # of a tile: the height of the tensor cores' product
MOST_IN_CLUSTER = 8  # blocks, on every GPU that has clusters
SHARED = 227 * 1024 - 2048  # bytes for one block
WIDEST = 256  # columns of one product
LARGEST = 512  # units of a layer: no larger one was tried
MOST_GATES = 192, 128  # units times gates of a block alone, and of one among others: what the registers hold
UNITS = 64, 32, 16  # of one block, the best first


Parts = list[Any]  # of one tile: one array a gate, or for a GRU's n one of the input and one of the state


def sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


class Kind(NamedTuple):
    """A cell as functions of tiles [rows, units]. Its state is (h,) or (h, c); its parts are what the gates are of.

    A part is a gate's two products summed; the n of a GRU has one part of the input and one of the state.
    """

    gates: int
    parts: int
    states: int
    reads: tuple[int, ...]  # the states that `pull` reads
    new: Callable  # state, parts → state
    pull: Callable  # state, parts, adjoints of the new state → those of the state, without h w_hh; those of the parts

    @property
    def splits(self) -> bool:
        return self.parts > self.gates

    def summed(self, projected: Parts, recurrent: Parts) -> Parts:
        sums = [a + b for a, b in zip(projected, recurrent, strict=True)]
        return [*sums[:-1], projected[-1], recurrent[-1]] if self.splits else sums


def _elman(activation: Callable, derivative: Callable) -> Kind:
    def new(state: tuple, parts: Parts) -> tuple:
        return (activation(parts[0]),)

    def pull(state: tuple, parts: Parts, d_new: tuple) -> tuple[tuple, Parts]:
        return (jnp.zeros_like(d_new[0]),), [derivative(d_new[0], parts[0])]

    return Kind(1, 1, 1, (), new, pull)


def _gru_gates(parts: Parts) -> tuple:
    r, z = sigmoid(parts[0]), sigmoid(parts[1])
    return r, z, jnp.tanh(parts[2] + r * parts[3])


def _gru_new(state: tuple, parts: Parts) -> tuple:
    _, z, n = _gru_gates(parts)
    return (n + z * (state[0] - n),)


def _gru_pull(state: tuple, parts: Parts, d_new: tuple) -> tuple[tuple, Parts]:
    (h,), (d,), (r, z, n) = state, d_new, _gru_gates(parts)
    d_n = d * (1.0 - z) * (1.0 - n * n)
    return (d * z,), [d_n * parts[3] * r * (1.0 - r), d * (h - n) * z * (1.0 - z), d_n, d_n * r]


def _lstm_gates(parts: Parts) -> tuple:
    return sigmoid(parts[0]), sigmoid(parts[1]), jnp.tanh(parts[2]), sigmoid(parts[3])


def _lstm_new(state: tuple, parts: Parts) -> tuple:
    i, f, g, o = _lstm_gates(parts)
    c = f * state[1] + i * g
    return o * jnp.tanh(c), c


def _lstm_pull(state: tuple, parts: Parts, d_new: tuple) -> tuple[tuple, Parts]:
    (_, c), (d_h, d_c), (i, f, g, o) = state, d_new, _lstm_gates(parts)
    shown = jnp.tanh(f * c + i * g)
    d_c = d_c + d_h * o * (1.0 - shown * shown)
    d_parts = [d_c * g * i * (1.0 - i), d_c * c * f * (1.0 - f), d_c * i * (1.0 - g * g), d_h * shown * o * (1.0 - o)]
    return (jnp.zeros_like(d_h), d_c * f), d_parts


def _d_tanh(d: Array, z: Array) -> Array:
    h = jnp.tanh(z)
    return d * (1.0 - h * h)


KINDS = {
    "tanh": _elman(jnp.tanh, _d_tanh),
    "relu": _elman(lambda z: jnp.maximum(z, 0.0), lambda d, z: jnp.where(z > 0.0, d, 0.0)),
    "identity": _elman(lambda z: z, lambda d, z: d),
    "gru": Kind(3, 4, 1, (0,), _gru_new, _gru_pull),
    "lstm": Kind(4, 4, 2, (1,), _lstm_new, _lstm_pull),
}


@dataclass(frozen=True)
class Plan:
    """How a layer is divided over blocks, and in which precision it multiplies."""

    kind: str
    steps: int
    tiles: int  # of ROWS rows, in each member
    hidden: int  # padded
    units: int  # of one block
    dtype: Any  # of the factors of products
    terms: int  # 2: each factor is a sum of two, which three products multiply
    reverse: bool
    resets: bool
    valid: bool
    cores: int  # of the GPU
    members: int = 1  # layers of this kind side by side
    adjoints: int = 1  # of states, on the way back
    interpreted: bool = False  # by Pallas on a CPU, which knows the barriers of clusters, and no semaphores

    @property
    def cell(self) -> Kind:
        return KINDS[self.kind]

    @property
    def blocks(self) -> int:
        return self.hidden // self.units

    @property
    def rows(self) -> int:
        return self.members * self.tiles * ROWS

    @property
    def at_once(self) -> bool:
        return self.members * self.tiles * self.blocks <= self.cores

    @property
    def in_cluster(self) -> bool:
        """Not where all blocks run at once: the GPU puts several of a cluster on one core, while others idle."""
        return 1 < self.blocks <= MOST_IN_CLUSTER and not self.at_once

    @property
    def chunk(self) -> int:
        """Columns of the state that arrive at once."""
        return 64 if self.hidden % 64 == 0 else 32

    @property
    def chunks(self) -> list[tuple[int, int]]:
        return [(c, p) for c in range(self.hidden // self.chunk) for p in range(self.terms)]

    @property
    def fetched(self) -> int:
        """Tiles that the way back fetches for a step."""
        return self.cell.parts + len(self.cell.reads) + self.adjoints

    @property
    def slots(self) -> int:
        """Chunks of the state that there is room for on the way forward; 0 if it is too little."""
        most = len(self.chunks)
        free = SHARED - self._weights() - 4 * ROWS * self.units * self.cell.gates
        fit = min(most, free // (ROWS * self.chunk * jnp.dtype(self.dtype).itemsize))
        return fit if fit == most or (self.blocks > 1 and fit > 1) else 0

    @property
    def fits(self) -> bool:
        size, most = jnp.dtype(self.dtype).itemsize, dataclasses.replace(self, adjoints=self.cell.states).fetched
        back = self._weights() + ROWS * self.units * (4 * most + size * self.terms * self.cell.gates)
        return self.hidden <= LARGEST and self.slots > 0 and back <= SHARED

    @property
    def runs(self) -> bool:
        """Whether all blocks that wait for each other run at once."""
        return self.at_once or self.blocks <= MOST_IN_CLUSTER

    def _weights(self) -> int:
        return jnp.dtype(self.dtype).itemsize * self.terms * self.cell.gates * self.units * self.hidden


def plan_of(kind: str, *, steps: int, batch: int, hidden: int, **options: Any) -> Plan | None:
    """The division into as few blocks as fit into shared memory, and onto the GPU; None where none does."""
    cell, tiles = KINDS[kind], -(-batch // ROWS)
    for units in UNITS:
        padded = -(-hidden // max(units, 32)) * max(units, 32)
        plan = Plan(kind, steps, tiles, padded, units, **options)
        if plan.fits and plan.runs and cell.gates * units <= MOST_GATES[plan.blocks > 1]:
            return plan
    return None


def swizzled(columns: int, dtype: Any) -> tuple:
    size = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * size * 8)
    return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)


def shared(count: int, rows: int, columns: int, dtype: Any) -> Any:
    return plgpu.SMEM((count, rows, columns), dtype, transforms=swizzled(columns, dtype))


def terms_of(x: Array, plan: Plan) -> list[Array]:
    """`x` rounded to the factors' precision, and what is left of it."""
    if plan.dtype != jnp.float32:
        return [x.astype(plan.dtype)]
    first = rounded(x)
    return [first, x - first][: plan.terms]


def rounded(x: Array) -> Array:
    """A float32 to the 11 bits that tensor cores read of it, to nearest: they would cut the others off."""
    bits = lax.bitcast_convert_type(x, jnp.int32) + 0x1000
    nearest = lax.bitcast_convert_type(bits & ~0x1FFF, jnp.float32)
    return jnp.where(x == x, nearest, x)  # the sum turns a GPU's NaN, 0x7fffffff, into −0


def _fence(instruction: str) -> None:
    @plgpu.inline_mgpu()
    def emit(_: Any) -> None:
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)

    emit()


def _fence_proxies() -> None:
    """Orders what threads read and write before and after copies in the background of the same memory."""
    _fence("fence.proxy.async;")


class Tile(NamedTuple):
    """One block's part of the batch and of the units, and what it has of shared memory."""

    plan: Plan
    weights: Any
    factors: Any  # the left factors of products: the state in chunks, or the block's own adjoints
    fetched: Any  # tiles of the next step, in the background
    arrived: Any  # barriers: of factors,
    ready: Any  # of the fetched tiles,
    barrier: Any  # of the cluster, or
    semaphore: Any  # of each tile
    exchange: Any  # global memory, twice, as some blocks are a step ahead

    def member(self) -> Any:
        return lax.div(lax.axis_index("tile"), self.plan.tiles) if self.plan.members > 1 else 0

    def at(self, ref: Any, *index: Any, piece: int = 0) -> Any:
        tile, block = lax.axis_index("tile"), lax.axis_index("block")
        columns = pl.ds(piece * self.plan.hidden + block * self.plan.units, self.plan.units)
        return ref.at[(*index, pl.ds(tile * ROWS, ROWS), columns)]

    def load(self, ref: Any, *index: Any) -> Array:
        return plgpu.load(self.at(ref, *index), layout=plgpu.Layout.WGMMA, optimized=False)

    def row(self, ref: Any, t: Any) -> Array:
        rows = pl.ds(lax.axis_index("tile") * ROWS, ROWS)
        return plgpu.load(ref.at[t, rows], layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)

    def is_on(self, row: Array) -> Array:
        return lax.broadcast_in_dim(row, (ROWS, self.plan.units), [0]) > 0.5

    def fetch(self, k: int, ref: Any, *index: Any, piece: int = 0) -> None:
        plgpu.copy_gmem_to_smem(self.at(ref, *index, piece=piece), self.fetched.at[k], self.ready)

    def read(self, k: int) -> Array:
        return plgpu.load(self.fetched.at[k], layout=plgpu.Layout.WGMMA)

    def tell(self) -> None:
        """What this block has written to the exchange may be read.

        Each thread waits for its own writes, not only the one that signals. This is a guess at the cause of wrong rows
        that were seen at one size (benchmarks/NOTES.md); it has not run on a GPU.
        """
        _fence("fence.acq_rel.gpu;")
        if self.barrier is not None:
            plgpu.barrier_arrive(self.barrier)
        else:
            plgpu.semaphore_signal(self.semaphore.at[lax.axis_index("tile")], memory_scope="gpu")

    def hear(self, i: Any) -> None:
        """Waits until all blocks have told for the (i + 1)-th time."""
        if self.barrier is not None:
            plgpu.barrier_wait(self.barrier)
        else:
            told = (i + 1) * self.plan.blocks
            semaphore = self.semaphore.at[lax.axis_index("tile")]
            plgpu.semaphore_wait(semaphore, told, decrement=False, memory_scope="gpu")

    def send_state(self, i: Any, h: Array) -> None:
        """The block's part of the state before step i."""
        plan, terms = self.plan, terms_of(h, self.plan)
        if plan.blocks == 1:
            for slot, (c, p) in enumerate(plan.chunks):
                self.factors[slot] = terms[p][:, c * plan.chunk : (c + 1) * plan.chunk]
            plgpu.commit_smem()
            return
        for p, term in enumerate(terms):
            self.at(self.exchange, lax.rem(i, 2), p)[...] = term
        _fence_proxies()
        self.tell()

    def recurrent(self, i: Any) -> list[Array]:
        """`h w_hh` of step i: the block's units, gate by gate."""
        plan, many = self.plan, self.plan.blocks > 1

        def fetch(n: int) -> None:
            c, p = plan.chunks[n]
            rows, slot = pl.ds(lax.axis_index("tile") * ROWS, ROWS), n % plan.slots
            source = self.exchange.at[lax.rem(i, 2), p, rows, pl.ds(c * plan.chunk, plan.chunk)]
            plgpu.copy_gmem_to_smem(source, self.factors.at[slot], self.arrived.at[slot])

        if many:
            self.hear(i)
            _fence_proxies()
            for n in range(plan.slots):
                fetch(n)

        def multiply(acc: Any) -> Array:
            for n, (c, p) in enumerate(plan.chunks):
                if many:
                    plgpu.barrier_wait(self.arrived.at[n % plan.slots])
                for q in range(plan.terms - p):
                    weights = self.weights.at[q, :, pl.ds(c * plan.chunk, plan.chunk)]
                    plgpu.wgmma(acc, self.factors.at[n % plan.slots], weights.transpose((1, 0)))
                if n + plan.slots < len(plan.chunks):
                    plgpu.wgmma_wait(0)
                    fetch(n + plan.slots)
            return acc[...]

        u = plan.units
        z = pl.run_scoped(multiply, plgpu.ACC((ROWS, plan.cell.gates * u), jnp.float32))
        return [z[:, k * u : (k + 1) * u] for k in range(plan.cell.gates)]

    def pull(self, i: Any, d_recurrent: Sequence[Array]) -> Array:
        """`d_recurrent w_hhᵀ` of the i-th step back: the block's units of it."""
        plan, slot = self.plan, lax.rem(i, 2)
        for g, d in enumerate(d_recurrent):
            for p, term in enumerate(terms_of(d, plan)):
                self.factors[g * plan.terms + p] = term
        plgpu.commit_smem()

        def multiply(columns: Any, acc: Any) -> Array:
            for g in range(plan.cell.gates):
                for p in range(plan.terms):
                    for q in range(plan.terms - p):
                        weights = self.weights.at[g * plan.terms + q, columns]
                        plgpu.wgmma(acc, self.factors.at[g * plan.terms + p], weights.transpose((1, 0)))
            return acc[...]

        width = next(w for w in range(min(WIDEST, plan.hidden), 0, -8) if plan.hidden % w == 0)
        for start in range(0, plan.hidden, width):
            columns = pl.ds(start, width)
            found = pl.run_scoped(lambda acc, c=columns: multiply(c, acc), plgpu.ACC((ROWS, width), jnp.float32))
            if plan.blocks == 1:
                return found
            rows = pl.ds(lax.axis_index("tile") * ROWS, ROWS)
            self.exchange.at[slot, lax.axis_index("block"), rows, columns][...] = found
        self.tell()
        self.hear(i)
        total = self.load(self.exchange, slot, 0)
        for other in range(1, plan.blocks):
            total = total + self.load(self.exchange, slot, other)
        return total


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
    many = plan.blocks > 1
    if many:
        kinds.append(exchange)
    flat, tree = jax.tree.flatten(arguments)
    scratches = [
        *scratch,
        shared(copies, ROWS, plan.units, jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=plan.slots),
        plgpu.Barrier(num_arrivals=copies),
    ]
    if plan.interpreted and many:
        scratches.append(plgpu.ClusterBarrier(collective_axes=("block",)))

    def kernel(source: Any, *refs: Any) -> None:
        inputs, made, rest = refs[: len(flat)], refs[len(flat) : len(flat) + len(kinds)], refs[len(flat) + len(kinds) :]
        kept, factors, fetched, loaded, arrived, ready, *barrier = rest
        has_semaphore = many and not barrier
        semaphore = pl.get_global(plgpu.SemaphoreType.REGULAR((plan.members * plan.tiles,))) if has_semaphore else None
        exchange = made[-1] if many else None
        of_cluster = barrier[0] if barrier else None
        tile = Tile(plan, kept, factors, fetched, arrived, ready, of_cluster, semaphore, exchange)
        for k in range(kept.shape[0]):
            plgpu.copy_gmem_to_smem(source.at[tile.member(), lax.axis_index("block"), k], kept.at[k], loaded)
            plgpu.barrier_wait(loaded)
        body(tile, *jax.tree.unflatten(tree, inputs), *made[: len(outputs)])

    grid: dict[str, Any] = {"grid": (plan.members * plan.tiles, plan.blocks), "grid_names": ("tile", "block")}
    if plan.in_cluster or (plan.interpreted and many):
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
            units = pl.ds(lax.axis_index("block") * plan.units, plan.units)
            column = plgpu.load(b_hn.at[tile.member(), units], layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
            bias = lax.broadcast_in_dim(column, (ROWS, plan.units), [1])

        def at(i: Any) -> Any:
            i = jnp.minimum(i, plan.steps - 1)
            return plan.steps - 1 - i if plan.reverse else i

        def fetch(i: Any) -> None:
            for g in range(cell.gates):
                tile.fetch(g, projected, at(i), piece=g)

        def entered(state: tuple, reset: Any) -> tuple:
            if reset is None:
                return state
            is_on = tile.is_on(reset)
            return tuple(jnp.where(is_on, new, old) for new, old in zip(at_reset, state, strict=True))

        def row(name: str, i: Any) -> Any:
            return tile.row(masks[name], at(i)) if name in masks else None

        def step(i: Any, states: tuple) -> tuple:
            state, old = states
            valid, reset = row("valid", i), row("resets", i + 1)
            recurrent = tile.recurrent(i)
            plgpu.barrier_wait(tile.ready)
            x = [tile.read(g) for g in range(cell.gates)]
            fetch(i + 1)
            if bias is not None:
                recurrent[-1] = recurrent[-1] + bias
            parts = cell.summed(x, recurrent)
            new = cell.new(state, parts)
            if valid is not None:
                is_on = tile.is_on(valid)
                new = tuple(jnp.where(is_on, n, o) for n, o in zip(new, old, strict=True))
            following = entered(new, reset)
            tile.send_state(i + 1, following[0])
            for ref, value in zip(made, new, strict=False):
                tile.at(ref, at(i))[...] = value
            for k, part in enumerate(parts if saving else []):
                tile.at(made[-1], at(i), piece=k)[...] = part
            return following, (new if plan.valid else ())

        fetch(jnp.int32(0))
        start = tuple(tile.load(ref) for ref in starts)
        first = entered(start, row("resets", jnp.int32(0)))
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

        def at(i: Any) -> Any:
            i = jnp.minimum(i, plan.steps - 1)
            return i if plan.reverse else plan.steps - 1 - i

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
                tile.at(d_parts_refs[0], at(i), piece=k)[...] = d_parts[k]
            if cell.splits:
                tile.at(d_parts_refs[1], at(i))[...] = d_parts[-1]
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
            tile.at(ref)[...] = value

    exchange = jax.ShapeDtypeStruct((2, plan.blocks, rows, plan.hidden), jnp.float32)
    made = _run(plan, body, weights, scratch, plan.fetched, exchange, outputs, *given)
    adjoints, made = made[: 1 + cell.splits], made[1 + cell.splits :]
    return adjoints, made[: cell.states], made[cell.states :]
