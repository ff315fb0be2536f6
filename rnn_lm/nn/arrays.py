"""Helpers for arrays: products, shardings, names."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Tree: TypeAlias = Any  # a pytree of arrays
Carry: TypeAlias = Tree  # the state carried from step to step


def product(x: Float[Array, "*batch K"], w: Float[Array, "K N"], dtype: Dtype | None) -> Float[Array, "*batch N"]:
    """`x @ w`, with factors rounded to `dtype` (None: the dtype of w) and summed in the dtype of w."""
    factors = x.astype(dtype or w.dtype), w.astype(dtype or w.dtype)
    multiply = partial(jnp.matmul, preferred_element_type=w.dtype)
    if x.ndim < 3:
        return multiply(*factors)
    by_rows = lambda x, w: multiply(rows(x), w).reshape(*x.shape[:-1], w.shape[-1])  # noqa: E731
    return _on_cpu_by_rows(by_rows, multiply, *factors)


def summed_product(
    x: Float[Array, "*batch K"], y: Float[Array, "*batch N"], w: Float[Array, "K N"], dtype: Dtype | None
) -> Float[Array, "K N"]:
    """The sum of `x yᵀ` over all leading axes: the gradient of w in `y = x @ w`. Rounded as in `product`."""
    factors = x.astype(dtype or w.dtype), y.astype(dtype or w.dtype)
    axes = tuple(range(x.ndim - 1))
    sharding = PartitionSpec(*jax.typeof(w).sharding.spec) if is_sharded(x) or is_sharded(y) else None
    contract = partial(
        lax.dot_general,
        dimension_numbers=((axes, axes), ((), ())),
        preferred_element_type=w.dtype,
        out_sharding=sharding,
    )
    by_rows = lambda x, y: jnp.matmul(rows(x).T, rows(y), preferred_element_type=w.dtype)  # noqa: E731
    return _on_cpu_by_rows(by_rows, contract, *factors)


def _on_cpu_by_rows(by_rows: Callable[..., Array], plain: Callable[..., Array], x: Array, y: Array) -> Array:
    """`by_rows` on CPUs, where XLA takes up to twice as long over several axes as over rows; elsewhere `plain`.

    Sharded arrays keep their shape: flattening a sharded axis would gather it.
    """
    if is_sharded(x) or is_sharded(y):
        return plain(x, y)
    return lax.platform_dependent(x, y, cpu=by_rows, default=plain)


@jax.named_scope("gather")
def rows_of(table: Float[Array, "V N"], ids: Int[Array, "*batch"]) -> Float[Array, "*batch N"]:
    """`table[ids]`, sharded as the ids are."""
    if is_sharded(ids):
        return table.at[ids].get(out_sharding=PartitionSpec(*jax.typeof(ids).sharding.spec, None))
    return table[ids]


def is_sharded(x: Array) -> bool:
    """Whether x's type says that an axis is sharded, as on meshes with Explicit axes."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def divided_like(carry: Carry, inputs: Array, batch_axes: int) -> Carry:
    """The carry, with its batch sharded as that of time-major inputs if their type says so."""
    if not is_sharded(inputs):
        return carry
    batch = jax.typeof(inputs).sharding.spec[1 : 1 + batch_axes]

    def divided(x: Array) -> Array:
        return jax.sharding.reshard(x, PartitionSpec(*batch, *(x.ndim - batch_axes) * [None]))

    return jax.tree.map(divided, carry)


def along_last(x: Float[Array, "N"], like: Array) -> Float[Array, "*ones N"]:
    """`x` with as many axes as `like`, so that no rank is promoted."""
    return lax.expand_dims(x, range(like.ndim - x.ndim))


def alike(tree: Tree) -> Tree:
    """The same arrays, all varying over the same axes of a `jax.shard_map`; unchanged outside of one.

    `custom_vjp` and scans refuse a mix of replicated and varying arguments, and results of foreign code count as
    replicated.
    """

    def varying(x: Array) -> frozenset[str]:
        kind = jax.typeof(x)
        return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma

    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def cast(x: Array) -> Array:
        missing = tuple(axes - varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def shifted(first: Array, carries: Array, *, reverse: bool) -> Array:
    """The carry before each step, given the first carry and the carries after each step."""
    return jnp.concatenate([carries[1:], first[None]] if reverse else [first[None], carries[:-1]])


def known(cotangents: Tree) -> Tree:
    """The cotangents that a backward function gets, with None where JAX knows them to be zero."""
    return jax.tree.map(lambda d: None if isinstance(d, SymbolicZero) else d, cotangents)


def or_zeros(tree: Tree, like: Tree) -> Tree:
    """The tree, with zeros where it has None."""
    return jax.tree.map(lambda x, y: jnp.zeros_like(y) if x is None else x, tree, like, is_leaf=lambda x: x is None)


def rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def named_leaves(tree: Tree) -> dict[str, Tree]:
    """Every array by its path, such as `params.cell.w_hh`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {name.removesuffix(".value"): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
