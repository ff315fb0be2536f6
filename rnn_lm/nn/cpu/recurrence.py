"""The recurrence of the three cells, values and gradient, by the functions of `recurrence.cc`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree, alike, is_sharded, rows, shifted
from rnn_lm.nn.cell import Cell, overrides
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.cpu.choice import machine_code

# `enum Cell` of the source.
NUMBERS = {"tanh": 0, "relu": 1, "identity": 2, GRUCell: 3, LSTMCell: 4}


def is_for(cell: Cell, arguments: tuple[Tree, Array, Carry, Array]) -> bool:
    """Whether the machine code runs this cell: plain, in float32, with one batch axis and more than one step.

    Shapes are taken for checked.
    """
    *_, projected = arguments
    plain = _kind(cell) in NUMBERS and cell.scale_h is None and not overrides(cell, "gates", "output")
    arrays = jax.tree.leaves(arguments)
    dtypes = {jnp.dtype(cell.dtype or projected.dtype), *(a.dtype for a in arrays)}
    sequences = projected.ndim == 3 and projected.shape[0] > 1  # one step is not worth the packing of w_hh
    whole = not any(map(is_sharded, arrays))
    return plain and dtypes == {jnp.dtype(jnp.float32)} and sequences and whole


def _kind(cell: Cell) -> Any:
    return cell.activation if type(cell) is ElmanCell else type(cell)


def accelerated(reference: Callable, cell: Cell, reverse: bool) -> Callable:
    """`reference(small, w_hh, carry, projected) → carries` and its gradient by the machine code."""
    is_lstm, is_gru = isinstance(cell, LSTMCell), isinstance(cell, GRUCell)
    number, hidden_features = NUMBERS[_kind(cell)], cell.hidden_features

    def call(name: str, *arguments: Array, results: list[tuple[int, ...]]) -> list[Array]:
        kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
        made = jax.ffi.ffi_call(name, kinds)(*arguments, cell=number, reverse=reverse)
        return alike((made, arguments))[0]

    def h_and_c(carry: Carry) -> tuple[Array, Array]:
        return (carry[1], carry[0]) if is_lstm else (carry, jnp.zeros((0,), jnp.float32))

    def carry_of(h: Array, c: Array, like: Carry) -> Carry:
        return jax.tree.unflatten(jax.tree.structure(like), [c, h] if is_lstm else [h])

    def saved_shape(projected: Array) -> tuple[int, ...]:
        """Of what the way back needs to know of the gates."""
        return (*projected.shape[:2], 4 * hidden_features if is_lstm or is_gru else 0)

    def forward(small: Tree, w_hh: Array, carry: Carry, projected: Array, *, saving: bool) -> tuple[Carry, Array]:
        states = (*projected.shape[:2], hidden_features)
        results = [states, states if is_lstm else (0,), saved_shape(projected) if saving else (0,)]
        [b_hn] = small.values() if is_gru else [jnp.zeros((0,), jnp.float32)]
        hs, cs, saved = call("rnn_lm_forward", projected, w_hh, *h_and_c(carry), b_hn, results=results)
        return carry_of(hs, cs, carry), saved

    def gradient(primals: tuple, carries: Carry, saved: Array, d_carries: Carry) -> tuple:
        small, w_hh, carry, projected = primals
        (h0, c0), (hs, cs) = h_and_c(carry), h_and_c(carries)
        results = [projected.shape, projected.shape if is_gru else (0,), h0.shape, c0.shape]
        d_projected, d_recurrent, d_h0, d_c0 = call(
            "rnn_lm_backward", w_hh, h0, c0, hs, cs, saved, *h_and_c(d_carries), results=results
        )
        adjoint = d_recurrent if is_gru else d_projected
        d_w_hh = rows(shifted(h0, hs, reverse=reverse)).T @ rows(adjoint)
        d_small = jax.tree.map(lambda b_hn: adjoint[..., -b_hn.size :].sum((0, 1)), small)
        return d_small, d_w_hh, carry_of(d_h0, d_c0, carry), d_projected

    values = machine_code(lambda *primals: forward(*primals, saving=False)[0], reference)
    values_and_saved = machine_code(
        partial(forward, saving=True),
        lambda *primals: (reference(*primals), jnp.zeros(saved_shape(primals[-1]), jnp.float32)),
    )
    pullback = machine_code(
        gradient, lambda primals, carries, saved, d_carries: jax.vjp(reference, *primals)[1](d_carries)
    )

    def save(*primals: Tree) -> tuple[Carry, tuple]:
        carries, saved = values_and_saved(*primals)
        return carries, (primals, carries, saved)

    run = jax.custom_vjp(values)
    run.defvjp(save, lambda residuals, d_carries: pullback(*residuals, d_carries))
    return run
