"""What a layer's kernels are made from: the cells as functions of tiles, and how a layer is divided over a GPU."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.activations import sigmoid

ROWS = 64  # of a tile: the height of the tensor cores' product
MOST_IN_CLUSTER = 8  # blocks, on every GPU that has clusters
SHARED = 227 * 1024 - 2048  # bytes for one block
LARGEST = 512  # units of a layer: no larger one was tried
MOST_GATES = 192, 128  # units times gates of a block alone, and of one among others: what the registers hold
UNITS = 64, 32, 16  # of one block, the best first

Parts = list[Any]  # of one tile: one array a gate, or for a GRU's n one of the input and one of the state


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
    def exchanges(self) -> bool:
        """Whether blocks need something of each other."""
        return self.blocks > 1

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
        return fit if fit == most or (self.exchanges and fit > 1) else 0

    @property
    def fits(self) -> bool:
        size, most = jnp.dtype(self.dtype).itemsize, dataclasses.replace(self, adjoints=self.cell.states).fetched
        back = self._weights() + ROWS * self.units * (4 * most + size * self.terms * self.cell.gates)
        return self.hidden <= LARGEST and self.slots > 0 and back <= SHARED

    def time(self, i: Any, *, back: bool) -> Any:
        """The time of the i-th step there, or on the way back; of the last one where there are no more."""
        i = jnp.minimum(i, self.steps - 1)
        return self.steps - 1 - i if self.reverse != back else i

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
        if plan.fits and plan.runs and cell.gates * units <= MOST_GATES[plan.exchanges]:
            return plan
    return None
