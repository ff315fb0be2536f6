"""The scan of `fused` by kernels for a whole sequence."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree, is_sharded, known, or_zeros, shifted, summed_product
from rnn_lm.nn.cell import Cell
from rnn_lm.nn.cells import kind_of
from rnn_lm.nn.choice import choice
from rnn_lm.nn.controls import Controls, enter
from rnn_lm.nn.gpu import kernels
from rnn_lm.nn.gpu.plan import KINDS, ROWS, Plan, plan_of


class Kernels:
    """What a `fused._Scan` computes, which stands in where the kernels cannot be.

    Inside, all arrays have an axis of members first.
    """

    def __init__(self, scan: Any, plan: Plan):
        self.scan, self.plan = scan, plan
        self.values = self._choice(partial(self.made, saving=False), lambda arguments: (scan.values(*arguments), None))
        self._saving = self._choice(partial(self.made, saving=True), self._plain_saving)
        self._pull = self._choice(self.pulled, self._plain_pull)

    def _choice(self, kernels: Callable, plain: Callable) -> Callable:
        def one(*arguments: Tree) -> Tree:
            made = kernels(self.plan, *jax.tree.map(lambda x: x[None], arguments))
            return jax.tree.map(lambda x: x[0], made)

        def many(size: int) -> Callable | None:
            plan = dataclasses.replace(self.plan, members=size)
            return partial(kernels, plan) if plan.runs else None

        return choice(one, plain, what="recurrence", platform="cuda", is_ready=lambda: True, many=many)

    def run(self) -> Callable:
        """The differentiable function."""
        run = jax.custom_vjp(lambda *arguments: self.values(arguments)[0])
        run.defvjp(self._forward, self._backward, symbolic_zeros=True)
        return run

    def _forward(self, *arguments: Tree) -> tuple[tuple[Carry, Carry], tuple]:
        arguments = jax.tree.map(lambda x: x.value, arguments)
        made, parts = self._saving(arguments)
        return made, (arguments, made[1], parts)

    def _backward(self, saved: tuple, cotangents: tuple[Carry, Carry]) -> tuple:
        last, carries = known(cotangents)
        last = or_zeros(last, saved[0][2])
        return *self._pull(*saved, (last, carries)), None, None

    def made(self, plan: Plan, arguments: tuple, *, saving: bool) -> tuple[tuple[Carry, Carry], Any]:
        """The last carry and all carries; and what the way back needs."""
        small, w_hh, carry, projected, initial, _, controls = arguments
        bias, *given = self._given(plan, small, carry, initial, controls)
        projected = self._rows(plan, projected, plan.cell.gates)
        states, parts = kernels.forward(plan, _matrix(plan, w_hh), projected, bias, *given, saving=saving)
        carries = self._carry(carry, [self._members(plan, state, *_sizes(arguments)) for state in states])
        last = jax.tree.map(lambda c: c[:, 0 if plan.reverse else -1], carries)
        return (last, carries), None if parts is None else parts.reshape(plan.steps, plan.members, -1).swapaxes(0, 1)

    def _plain_saving(self, arguments: tuple) -> tuple[tuple[Carry, Carry], Any]:
        plan = self.plan
        size = plan.tiles * ROWS * plan.cell.parts * plan.hidden
        return self.scan.values(*arguments), jnp.zeros((plan.steps, size), jnp.float32)

    def pulled(self, plan: Plan, arguments: tuple, carries: Carry, parts: Array, cotangents: tuple) -> tuple:
        """The adjoints of the arguments but `fixed` and the controls."""
        small, w_hh, carry, projected, initial, _, controls = arguments
        d_last, d_carries = cotangents
        _, starts, reset_to, masks = self._given(plan, small, carry, initial, controls)
        rows = partial(self._rows, plan, pieces=1)
        adjoints, d_start, d_initial = kernels.backward(
            plan,
            _matrix(plan, w_hh),
            parts.swapaxes(0, 1).reshape(plan.steps, plan.rows, -1),
            starts,
            tuple(map(rows, self._states(carries))),
            reset_to,
            masks,
            tuple(None if d is None else rows(d) for d in self._states(d_carries)),
            tuple(map(rows, self._states(d_last))),
        )
        cut = lambda x: self._members(plan, x, *_sizes(arguments))  # noqa: E731
        d_projected, *d_hn = map(cut, adjoints)
        sums = jax.vmap(self._sums)(small, w_hh, carry, initial, controls, carries, d_projected, d_hn)
        is_learned = plan.resets and self.scan.is_learned
        d_reset = self._carry(carry, list(map(cut, d_initial))) if is_learned else None
        return *sums, self._carry(carry, list(map(cut, d_start))), d_projected, d_reset

    def _sums(
        self, small: Tree, w_hh: Array, carry: Carry, initial: Carry, controls: Controls, carries: Carry,
        d_projected: Array, d_hn: list[Array],
    ) -> tuple[Tree, Array]:  # fmt: skip
        """The gradients of the small parameters and of w_hh, of one member."""
        before = jax.tree.map(partial(shifted, reverse=self.plan.reverse), carry, carries)
        h = self._states(jax.vmap(partial(enter, initial=initial))(before, controls))[0]
        d_w_hh = summed_product(h, d_projected, w_hh, self.scan.dtype)
        if not d_hn:
            return {}, d_w_hh
        hidden = w_hh.shape[0]
        d_w_hn = summed_product(h, d_hn[0], w_hh[:, -hidden:], self.scan.dtype)
        return {i: d_hn[0].sum((0, 1)) for i in small}, jnp.concatenate([d_w_hh[:, :-hidden], d_w_hn], axis=1)

    def _plain_pull(self, arguments: tuple, carries: Carry, parts: Array, cotangents: tuple) -> tuple:
        del parts
        cotangents = cotangents[0], or_zeros(cotangents[1], carries)
        *floats, initial, fixed, controls = arguments
        run = lambda *floats: self.scan.values(*floats, fixed, controls)  # noqa: E731
        *made, d_initial = jax.vjp(run, *floats, initial)[1](cotangents)
        return *made, d_initial if self.scan.is_learned else None

    def _given(self, plan: Plan, small: Tree, carry: Carry, initial: Carry, controls: Controls) -> tuple:
        """The bias of a GRU's state, the start, the state after a reset, and the masks of steps."""
        rows = partial(self._rows, plan, pieces=1)
        bias = next((_along(plan.hidden, b, -1) for b in small.values()), None) if plan.cell.splits else None
        masks = {name: mask for name, mask in controls.items() if name == "passed"}
        for name in controls.keys() - masks.keys():
            mask = _along(plan.tiles * ROWS, controls[name].astype(jnp.float32), -1)
            masks[name] = mask.swapaxes(0, 1).reshape(plan.steps, plan.rows)
        reset_to = tuple(map(rows, self._states(initial))) if plan.resets else None
        return bias, tuple(map(rows, self._states(carry))), reset_to, masks

    def _rows(self, plan: Plan, x: Array, pieces: int) -> Array:
        """[M, ..., B, pieces·H] → [..., M·B, pieces·H], with zeros up to the plan's rows and units."""
        x = _along(plan.tiles * ROWS, _wider(plan, x, pieces), -2)
        return jnp.moveaxis(x, 0, -3).reshape(*x.shape[1:-2], plan.rows, -1)

    def _members(self, plan: Plan, x: Array, batch: int, hidden: int) -> Array:
        """[..., M·B, pieces·H] → [M, ..., B, pieces·H], without what `_rows` has added."""
        x = x.reshape(*x.shape[:-2], plan.members, plan.tiles * ROWS, -1, plan.hidden)[..., :batch, :, :hidden]
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1), -3, 0)

    def _states(self, carry: Carry) -> tuple[Array, ...]:
        """h, or h and c."""
        return tuple(jax.tree.leaves(carry, is_leaf=_is_none)[::-1])

    def _carry(self, like: Carry, states: list[Array]) -> Carry:
        return jax.tree.unflatten(jax.tree.structure(like), states[::-1])


def _sizes(arguments: tuple) -> tuple[int, int]:
    """B and H."""
    return arguments[3].shape[2], arguments[1].shape[1]


def _is_none(x: Any) -> bool:
    return x is None


def plan_for(
    cores: int, scan: Any, cell: Cell, small: Tree, carry: Carry, projected: Any, controls: Controls
) -> Plan | None:
    """How the kernels run a layer; None where they do not."""
    kind, terms = kind_of(cell), _terms()
    leaves = [*jax.tree.leaves((small, carry)), cell.w_hh[...]]
    dtype = jnp.dtype(cell.dtype or jnp.float32)
    fits = (
        kind in KINDS
        and len(jax.tree.leaves(small)) == KINDS[kind].splits  # the gates read nothing else
        and {leaf.dtype for leaf in leaves} | {projected.dtype} == {jnp.dtype(jnp.float32)}
        and dtype in (jnp.float32, jnp.bfloat16)
        and terms > 0
        and projected.ndim == 3
        and min(projected.shape) > 0
        and len(projected) > 1
        and not any(map(is_sharded, leaves))
    )
    if not fits or kind is None:
        return None
    steps, batch, _ = projected.shape
    masks = {"resets": "resets" in controls, "valid": "valid" in controls}
    terms = terms if dtype == jnp.float32 else 1
    layer = {"steps": steps, "batch": batch, "hidden": cell.hidden_features, "reverse": scan.reverse}
    return plan_of(kind, **layer, **masks, dtype=dtype, terms=terms, cores=cores)


def _terms() -> int:
    """Of a factor, by `jax.default_matmul_precision`; 0 where it asks for something else than TF32 or float32."""
    asked = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 — checkers do not know it
    return {None: 1, "default": 1, "high": 1, "tensorfloat32": 1, "highest": 2, "float32": 2}.get(asked, 0)


def _along(size: int, x: Array, axis: int) -> Array:
    """`x` with zeros up to that size."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def _wider(plan: Plan, x: Array, pieces: int) -> Array:
    """[..., pieces·H] with zeros up to the plan's units."""
    hidden = x.shape[-1] // pieces
    if hidden == plan.hidden:
        return x
    return _along(plan.hidden, x.reshape(*x.shape[:-1], pieces, hidden), -1).reshape(*x.shape[:-1], -1)


def _matrix(plan: Plan, w_hh: Array) -> Array:
    """w_hh with zeros up to the plan's units: [M, H, gates·H]."""
    return _along(plan.hidden, _wider(plan, w_hh, plan.cell.gates), -2)
