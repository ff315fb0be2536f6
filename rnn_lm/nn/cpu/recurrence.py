"""A recurrent layer of the three cells, values and gradient, by the functions of `recurrence.cc`."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree, along_last, is_sharded, known, or_zeros, product, rows_of
from rnn_lm.nn.cell import Cell, overrides
from rnn_lm.nn.cells import GRUCell, kind_of
from rnn_lm.nn.choice import choice
from rnn_lm.nn.controls import Controls, without_padding
from rnn_lm.nn.cpu.library import absent, call, is_available
from rnn_lm.nn.scan import projections

# `enum Cell` of the source, and `enum Inputs`.
NUMBERS = {"tanh": 0, "relu": 1, "identity": 2, "gru": 3, "lstm": 4}
VECTORS, IDS, READY = 0, 1, 2


class Layer(NamedTuple):
    """What a layer is computed from; all of it float32 but ids and controls."""

    small: Tree  # the other parameters that the gates read: a GRU's b_hn
    w_hh: Array
    input_weights: tuple[Array, ...]  # w_xh and b_h; none where the inputs are projected already
    carry: Carry
    initial: Carry  # the state after a reset; None without resets
    inputs: Any  # vectors [T, B, D], ids [T, B] or x w_xh + b_h [T, B, G·H]
    controls: Controls

    @classmethod
    def of(cls, cell: Cell, small: Tree, carry: Carry, initial: Carry, inputs: Array, controls: Controls) -> "Layer":
        """The machine code computes `project` too, unless the cell has one of its own."""
        own = cell.scale_x is not None or overrides(cell, "project")
        x = projections(cell, without_padding(inputs, controls)) if own else inputs
        weights = () if own else (cell.w_xh[...], cell.b_h[...])
        return cls(small, cell.w_hh[...], weights, carry, initial, x, controls)

    def projected(self) -> Array:
        """`x w_xh + b_h`."""
        if not self.input_weights:
            return self.inputs
        w_xh, b_h = self.input_weights
        inputs = without_padding(self.inputs, self.controls)
        ids = jnp.issubdtype(inputs.dtype, jnp.integer)
        z = rows_of(w_xh, inputs) if ids else product(inputs, w_xh, None)
        return z + along_last(b_h, z)


def is_for(cell: Cell, layer: Layer) -> bool:
    """Whether the machine code runs this cell: plain, in float32, with one batch axis and more than one step.

    Shapes are taken for checked.
    """
    only_b_hn = len(jax.tree.leaves(layer.small)) == isinstance(cell, GRUCell)  # the gates read nothing else
    plain = kind_of(cell) in NUMBERS and only_b_hn
    arrays = jax.tree.leaves(layer)
    floats = [a for a in jax.tree.leaves(layer._replace(controls={})) if not jnp.issubdtype(a.dtype, jnp.integer)]
    dtypes = {jnp.dtype(cell.dtype or jnp.float32), *(a.dtype for a in floats)}
    carries = jax.tree.leaves(layer.carry)
    sequences = carries[0].ndim == 2 and layer.inputs.shape[0] != 1  # one step is not worth the packing of w_hh
    whole = not any(map(is_sharded, arrays)) and all(w.size for w in (layer.w_hh, *layer.input_weights))
    return plain and dtypes == {jnp.dtype(jnp.float32)} and sequences and whole


def accelerated(reference: Callable, cell: Cell, reverse: bool) -> Callable:
    """`reference(layer) → (last carry, all carries, zeros past the ends)` and its gradient by the machine code."""
    kernels = _Kernels(reference, kind_of(cell), cell.hidden_features, reverse)
    machine_code = partial(choice, what="recurrence", platform="cpu", is_ready=is_available)
    values = machine_code(lambda layer: kernels.forward(layer, saving=False)[0], reference)
    values_and_saved = machine_code(
        partial(kernels.forward, saving=True),
        lambda layer: (reference(layer), jnp.zeros(kernels.saved_shape(layer), jnp.float32)),
    )
    pullback = machine_code(kernels.gradient, kernels.plain_gradient)

    def save(layer: Any) -> tuple[tuple[Carry, Carry], tuple]:
        # A shape, as residuals are arrays, and their tree must not change: equal layers share one traced function, and
        # JAX unpacks the residuals of all by the tree that it saw last.
        asked = jnp.zeros((1,) if layer.inputs.perturbed else (0,))
        layer = jax.tree.map(lambda x: x.value, layer)
        (last, states), saved = values_and_saved(layer)
        return (last, states), (layer, states, saved, asked)

    def backward(residuals: tuple, adjoints: tuple[Carry, Carry]) -> tuple[Layer]:
        layer, states, saved, asked = residuals
        d_last, d_states = known(adjoints)
        d_last = or_zeros(d_last, layer.carry)
        return (pullback(layer, states, saved, d_last, d_states, asked)._replace(controls=None),)

    run = jax.custom_vjp(values)
    run.defvjp(save, backward, symbolic_zeros=True)
    return run


@dataclass(frozen=True)
class _Kernels:
    """The two functions of the source, and what stands in for the second where they cannot run."""

    reference: Callable
    kind: Any  # a key of `NUMBERS`
    hidden_features: int
    reverse: bool

    def forward(self, layer: Layer, *, saving: bool) -> tuple[tuple[Carry, Carry], Array]:
        """The last carry and all carries, and what the way back needs to know of the gates."""
        steps, batch = layer.inputs.shape[:2]
        one, every = (batch, self.hidden_features), (steps, batch, self.hidden_features)
        c_shapes = [every, one] if self.kind == "lstm" else [(0,), (0,)]
        results = [every, c_shapes[0], self.saved_shape(layer) if saving else (0,), one, c_shapes[1]]
        hs, cs, saved, h, c = self._call("rnn_lm_forward", layer, results=results)
        return (self._carry(h, c, layer.carry), self._carry(hs, cs, layer.carry)), saved

    def saved_shape(self, layer: Layer) -> tuple[int, ...]:
        return (*layer.inputs.shape[:2], 4 * self.hidden_features if self.kind in ("gru", "lstm") else 0)

    def gradient(
        self, layer: Layer, states: Carry, saved: Array, d_last: Carry, d_states: Carry, asked: Array
    ) -> Layer:
        """`asked` is empty where nobody wants the inputs' adjoints; adjoints of states that are None are zeros."""
        is_ready, has_adjoint = not layer.input_weights, _is_asked(layer, asked)
        d_inputs = layer.inputs.shape if has_adjoint or is_ready else (0,)
        parts = *self._weights(layer), *self._h_and_c(layer.carry), *self._h_and_c(layer.initial)
        more = self._h_and_c(states), [saved], self._h_and_c(d_states), self._h_and_c(d_last)
        d_x, d_w_xh, d_b_h, d_w_hh, d_b_hn, d_h0, d_c0, d_h, d_c = self._call(
            "rnn_lm_backward",
            layer,
            layer.controls.get("passed", absent()).astype(jnp.float32),
            *itertools.chain(*more),
            results=[d_inputs, *(part.shape for part in parts)],
        )
        return Layer(
            jax.tree.map(lambda _: d_b_hn, layer.small),
            d_w_hh,
            () if is_ready else (d_w_xh, d_b_h),
            self._carry(d_h0, d_c0, layer.carry),
            None if layer.initial is None else self._carry(d_h, d_c, layer.initial),
            d_x if has_adjoint else None,
            {},
        )

    def plain_gradient(
        self, layer: Layer, states: Carry, saved: Array, d_last: Carry, d_states: Carry, asked: Array
    ) -> Layer:
        """`gradient` by JAX."""
        del saved
        d_states = or_zeros(d_states, states)
        floats, fixed = layer._replace(controls={}), {"controls": layer.controls, "inputs": layer.inputs}
        if _is_asked(layer, asked):
            del fixed["inputs"]
        else:
            floats = floats._replace(inputs=None)
        return jax.vjp(lambda floats: self.reference(floats._replace(**fixed)), floats)[1]((d_last, d_states))[0]

    def _call(self, name: str, layer: Layer, *more: Array, results: list[tuple[int, ...]]) -> list[Array]:
        """One of the functions, of the arguments of both and more."""
        ids = jnp.issubdtype(layer.inputs.dtype, jnp.integer)
        kind = IDS if ids else VECTORS if layer.input_weights else READY
        lengths = layer.controls["valid"].sum(0, dtype=jnp.int32) if "valid" in layer.controls else absent(jnp.int32)
        resets = layer.controls.get("resets", absent(jnp.bool_))
        states = *self._h_and_c(layer.carry), *self._h_and_c(layer.initial)
        arguments = layer.inputs, *self._weights(layer), *states, lengths, resets, *more
        return call(name, results, *arguments, cell=NUMBERS[self.kind], inputs=kind, reverse=self.reverse)

    def _weights(self, layer: Layer) -> list[Array]:
        input_weights = layer.input_weights or (absent(), absent())
        return [*input_weights, layer.w_hh, *(layer.small.values() if self.kind == "gru" else [absent()])]

    def _h_and_c(self, carry: Carry) -> list[Array]:
        """Both states. Those that are not there have no elements."""
        h, c = (carry[1], carry[0]) if self.kind == "lstm" and carry is not None else (carry, None)
        return [absent() if x is None else x for x in (h, c)]

    def _carry(self, h: Array, c: Array, like: Carry) -> Carry:
        return jax.tree.unflatten(jax.tree.structure(like), [c, h] if self.kind == "lstm" else [h])


def _is_asked(layer: Layer, asked: Array) -> bool:
    return asked.size > 0 and jnp.issubdtype(layer.inputs.dtype, jnp.floating)
