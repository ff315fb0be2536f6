"""Minibatches as a pure function of (seed, step): there is no iterator to save."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from rnn_lm.errors import UserError, unknown_name
from rnn_lm.keys import named_key

PARTITIONS = ("sequential", "random")
MAX_STORED = 256  # windows; up to here a permutation of them is drawn outright
ROUNDS = 8  # of the Feistel network for more


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batches:
    """A text on the device, cut into minibatches of B windows of T tokens. Works inside `jit`, loops and `vmap`.

    Each epoch skips d tokens, d drawn from [0, T), and has ⌊(N − T − 1)/(B·T)⌋ steps:

    - "sequential": B parallel streams; each row continues the same row of the batch before.
    - "random": shuffled windows, each at most once an epoch.

    With a stride S < T, windows start S tokens apart and overlap by T − S tokens, d is drawn from [0, S), and an epoch
    has about T / S times as many steps.

    The text is stored as rows of S tokens. A window starts at a row and a column d, so positions stay small numbers
    in long texts.
    """

    rows: Int[Array, "R S"] | Any  # Any: JAX replaces it when it traces
    seed: Int[Array, ""] | Any
    batch_size: int = field(metadata={"static": True})
    segment_length: int = field(metadata={"static": True})
    partition: str = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        *,
        batch_size: int,
        segment_length: int,
        partition: str,
        stride: int = 0,
        seed: int = 0,
    ) -> "Batches":
        """Puts the token ids [N] on the device. A stride of 0 means `segment_length`.

        Raises:
          UserError: if the text is too short for one minibatch, or the partition is unknown.
        """
        if partition not in PARTITIONS:
            raise unknown_name("partition", partition, PARTITIONS)
        stride = stride or segment_length
        needed = (batch_size + math.ceil(segment_length / stride)) * stride + 1
        if len(ids) < needed:
            raise UserError(
                f"the training text has {len(ids)} tokens; one minibatch of {batch_size} windows of "
                f"{segment_length} needs {needed}: give a longer text, or a smaller batch_size or segment_length"
            )
        whole_rows = (len(ids) - 1) // stride  # minus the last label
        rows = np.asarray(ids[: whole_rows * stride], np.int32).reshape(-1, stride)
        return cls(jnp.asarray(rows), jnp.int32(seed), batch_size, segment_length, partition)

    @property
    def stride(self) -> int:
        return self.rows.shape[1]

    @property
    def num_windows(self) -> int:
        """The number of windows that fit for every offset d, with their labels."""
        return self.rows.shape[0] - math.ceil(self.segment_length / self.stride)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_windows // self.batch_size

    def __call__(
        self, step: int | Int[Array, ""], rows: Int[Array, " b"] | None = None
    ) -> tuple[Int[Array, "T b"], Int[Array, "T b"], Bool[Array, ""]]:
        """Minibatch `step`: inputs, labels (the inputs shifted by one), and whether the state is reset before it.

        `rows`: the numbers of those wanted, of B; by default all.
        """
        T, S, B = self.segment_length, self.stride, self.batch_size
        epoch, index = jnp.divmod(jnp.asarray(step, jnp.int32), self.steps_per_epoch)
        offset = jax.random.randint(named_key(self.seed, "offset", epoch), (), 0, S)
        rows = jnp.arange(B) if rows is None else rows
        if self.partition == "sequential":
            starts = rows * self.steps_per_epoch + index
            restart = index == 0
        else:
            key = named_key(self.seed, "shuffle", epoch)
            starts = shuffled(index * B + rows, self.num_windows, key)
            restart = jnp.bool_(True)
        touched = jnp.arange(1 + math.ceil(T / S))  # rows that a window may span
        tokens = self.rows[starts[:, None] + touched].reshape(len(rows), -1)
        windows = jax.lax.dynamic_slice_in_dim(tokens, offset, T + 1, axis=1).T
        return windows[:-1], windows[1:], restart


def shuffled(index: Int[Array, " B"], size: int, key: jax.Array) -> Int[Array, " B"]:
    """A random permutation of range(size), applied to `index`. A permutation of more than `MAX_STORED` is not stored.

    Then a Feistel network permutes the numbers below the next power of four, P. Those outside the range are permuted
    again ("cycle walking"), at most four times in expectation. After four rounds neighbours are together twice as often
    as by chance; each two rounds more divide that excess by √P.

    Reference: Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002.
    """
    if size <= MAX_STORED:
        return jax.random.permutation(key, size)[index]
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half_bits) - 1)
    round_keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def encrypt(x):
        left, right = x >> half_bits, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half_bits) | right

    def walk(x):
        return jnp.where(x >= size, encrypt(x), x)

    inside = jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, encrypt(index.astype(jnp.uint32)))
    return inside.astype(jnp.int32)


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """MurmurHash3's finalizer: every input bit changes every output bit with probability one half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
