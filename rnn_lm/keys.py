"""Random keys by name and number, so that a new random draw does not change the others."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def named_key(seed: int | Int[Array, ""], name: str, *numbers: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of `seed` for one purpose, such as `named_key(seed, "batches", epoch)`."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
