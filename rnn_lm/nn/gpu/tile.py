"""One block of a kernel: its part of the batch and of the units, and what it tells the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array

from rnn_lm.nn.gpu.plan import ROWS, Plan

plgpu: Any = mosaic_gpu  # whose types change from version to version
ptx: Any = utils

WIDEST = 256  # columns of one product


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


def store(ref: Any, value: Array) -> None:
    """To global memory. From jax 0.12 on, an assignment refuses tiles narrower than a cache line: 16 units."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def _fence(instruction: str) -> None:
    plgpu.inline_mgpu()(lambda _: ptx.inline_ptx(instruction, has_side_effects=True))()


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

    def rows(self) -> Any:
        return pl.ds(lax.axis_index("tile") * ROWS, ROWS)

    def units(self, piece: int = 0) -> Any:
        return pl.ds(piece * self.plan.hidden + lax.axis_index("block") * self.plan.units, self.plan.units)

    def at(self, ref: Any, *index: Any, piece: int = 0) -> Any:
        return ref.at[(*index, self.rows(), self.units(piece))]

    def load(self, ref: Any, *index: Any) -> Array:
        return plgpu.load(self.at(ref, *index), layout=plgpu.Layout.WGMMA, optimized=False)

    def row(self, ref: Any, t: Any) -> Array:
        return plgpu.load(ref.at[t, self.rows()], layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)

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
        if not plan.exchanges:
            for slot, (c, p) in enumerate(plan.chunks):
                self.factors[slot] = terms[p][:, c * plan.chunk : (c + 1) * plan.chunk]
            plgpu.commit_smem()
            return
        for p, term in enumerate(terms):
            store(self.at(self.exchange, lax.rem(i, 2), p), term)
        _fence_proxies()
        self.tell()

    def recurrent(self, i: Any) -> list[Array]:
        """`h w_hh` of step i: the block's units, gate by gate."""
        plan = self.plan

        def fetch(n: int) -> None:
            c, p = plan.chunks[n]
            slot = n % plan.slots
            source = self.exchange.at[lax.rem(i, 2), p, self.rows(), pl.ds(c * plan.chunk, plan.chunk)]
            plgpu.copy_gmem_to_smem(source, self.factors.at[slot], self.arrived.at[slot])

        if plan.exchanges:
            self.hear(i)
            _fence_proxies()
            for n in range(plan.slots):
                fetch(n)

        def multiply(acc: Any) -> Array:
            for n, (c, p) in enumerate(plan.chunks):
                if plan.exchanges:
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
            if not plan.exchanges:
                return found
            store(self.exchange.at[slot, lax.axis_index("block"), self.rows(), columns], found)
        self.tell()
        self.hear(i)
        total = self.load(self.exchange, slot, 0)
        for other in range(1, plan.blocks):
            total = total + self.load(self.exchange, slot, other)
        return total
