"""Code that JAX knows nothing of beside code that it knows: which of them runs is decided when a program is lowered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array

from rnn_lm.nn.arrays import Tree, alike

_choice = Primitive("rnn_lm_machine_code")
_choice.multiple_results = True


def choice(
    fast: Callable,
    slow: Callable,
    *,
    what: str,
    platform: str,
    is_ready: Callable[[], bool],
    many: Callable | None = None,
) -> Callable:
    """`fast` where a program is lowered for the platform, "cpu" or "cuda", and it is ready; else `slow`.

    `what` is a name that `is_in` looks for. Where it is to be differentiated, `slow` stands in for it. So it does where
    it is to be mapped, unless there is a `many(size)`, which takes and returns arrays that all have the mapped axis
    first, and it is not None.
    """

    def chosen(*arguments: Tree) -> Tree:
        flat, tree = jax.tree.flatten(arguments)
        kinds, made_tree = jax.tree.flatten(jax.eval_shape(fast, *arguments))

        def of_leaves(f: Callable, *leaves: Array) -> list[Array]:
            return jax.tree.leaves(f(*jax.tree.unflatten(tree, leaves)))

        results = tuple((kind.shape, kind.dtype) for kind in kinds)
        ways = {"fast": partial(of_leaves, fast), "slow": partial(of_leaves, slow)}
        made = _choice.bind(*flat, **ways, results=results, what=what, platform=platform, is_ready=is_ready)
        return jax.tree.unflatten(made_tree, alike((made, flat))[0])

    mapped = jax.custom_batching.custom_vmap(chosen)

    @mapped.def_vmap
    def _(size: int, is_mapped: Tree, *arguments: Tree) -> tuple[Tree, Tree]:
        axes = jax.tree.map(lambda mapped: 0 if mapped else None, is_mapped)
        fast_many = many(size) if many is not None else None
        if fast_many is None:
            made = alike((jax.vmap(slow, axes, axis_size=size)(*arguments), arguments))[0]  # as `chosen` does
        else:
            spread = lambda mapped, x: x if mapped else jnp.broadcast_to(x, (size, *x.shape))  # noqa: E731
            arguments = jax.tree.map(spread, tuple(is_mapped), arguments)
            made = choice(fast_many, jax.vmap(slow), what=what, platform=platform, is_ready=is_ready)(*arguments)
        return made, jax.tree.map(lambda _: True, made)

    function = jax.custom_jvp(mapped)

    @function.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Tree, Tree]:
        return function(*primals), jax.jvp(slow, primals, tangents)[1]

    return function


def is_in(program: str, what: str) -> bool:
    """Whether the text of a traced program chooses machine code for "recurrence", "output layer" or "sampling"."""
    return f"what={what}" in program


@_choice.def_abstract_eval
def _(*_: Any, results: tuple, **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in results]


@_choice.def_impl
def _(*arguments: Array, **options: Any) -> Any:
    return jax.jit(partial(_choice.bind, **options))(*arguments)


def _lower(
    here: str, ctx: Any, *operands: Any, fast: Callable, slow: Callable, platform: str, is_ready: Callable, **_: Any
) -> Any:
    # An exported program may be called in a process without our code.
    stays_here = not ctx.module_context.lowering_parameters.for_export
    way = fast if platform == here and stays_here and is_ready() else slow
    return mlir.lower_fun(way, multiple_results=True)(ctx, *operands)


mlir.register_lowering(_choice, partial(_lower, "other"))
for _platform in ("cpu", "cuda"):
    mlir.register_lowering(_choice, partial(_lower, _platform), platform=_platform)
