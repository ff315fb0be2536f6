"""Small helpers over arrays of the recurrence."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def alike(tree: Any) -> Any:
    """The same arrays, all varying over the same axes of a `jax.shard_map`; outside of one, as they are.

    A `custom_vjp` or a scan refuses arguments of which one is replicated and another is not, and takes what a call of
    foreign code returns for replicated.
    """

    def varying(x: Any) -> frozenset[str]:
        kind = jax.typeof(x)
        return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma

    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def cast(x: Array) -> Array:
        missing = tuple(axes - varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def shifted(first: Array, carries: Array, *, reverse: bool) -> Array:
    """The carry before each step, from the one before the first step and those after each."""
    return jnp.concatenate([carries[1:], first[None]] if reverse else [first[None], carries[:-1]])


def rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def named_leaves(tree: Any) -> dict[str, Any]:
    """Every array by its path, such as `params.cell.w_hh`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {name.removesuffix(".value"): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
