"""The argument checks of `unroll`. Messages name the argument, what was expected, and what was given."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rnn_lm.nn.arrays import Carry, Tree
from rnn_lm.nn.cell import Cell, are_ids, overrides
from rnn_lm.nn.cells import GRUCell, LSTMCell
from rnn_lm.nn.controls import Masks
from rnn_lm.nn.truncation import WindowTruncation


def check_options(truncation: object, backward: object, remat: object, windowed: bool) -> None:
    if not (truncation is None or isinstance(truncation, WindowTruncation) or hasattr(truncation, "passed")):
        raise TypeError(f"truncation: expected None, or one of rnn_lm's truncations; got {truncation!r}")
    if backward not in ("fused", "autodiff"):
        raise ValueError(f'backward: expected "fused" or "autodiff"; got {backward!r}')
    if remat is not None and remat != "sqrt" and (type(remat) is not int or remat < 1):
        raise ValueError(f'remat: expected None, a number of steps ≥ 1, or "sqrt"; got {remat!r}')
    if windowed and (remat is not None or backward != "fused"):
        raise ValueError("truncation: a WindowTruncation has a gradient of its own; leave out remat and backward")


def check_values(cell: nnx.RNNCellBase, carry: Carry, inputs: Array, lengths: Array | None) -> None:
    """Raises ValueError if ids or lengths are out of range, unless they are traced."""
    if isinstance(cell, Cell) and inputs.ndim and are_ids(cell, carry, inputs, steps=1):
        if (found := _outside(inputs, cell.in_features)) is not None:
            message = f"expected ids from 0 to {cell.in_features - 1}; got {found.min()} to {found.max()}"
            raise ValueError(f"inputs: {message}")
    if lengths is not None and inputs.ndim:
        if (found := _outside(lengths, inputs.shape[0] + 1)) is not None:
            raise ValueError(f"lengths: expected 0 to {inputs.shape[0]}, the time steps; got {found.tolist()}")


def check_shapes(cell: nnx.RNNCellBase, carry: Carry, inputs: Array, ids: bool, masks: Masks) -> int:
    """Returns the number of batch axes.

    Raises ValueError if shapes do not fit together, TypeError for a wrong dtype.
    """
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs: expected at least one time step, [T, B, D] or ids [T, B]; got {described(inputs)}")
    steps, lengths, resets = inputs.shape[0], masks.lengths, masks.resets
    batch = inputs.shape[1:] if ids else inputs.shape[1 : inputs.ndim - cell.num_feature_axes]
    if isinstance(cell, Cell):
        size, dtype = cell.in_features, jnp.dtype(cell.param_dtype)
        if not ids and (inputs.ndim < 2 or inputs.shape[-1] != size or inputs.dtype != dtype):
            error = ValueError if inputs.dtype == dtype else TypeError
            raise error(f"inputs: expected {dtype} [T, B, {size}] or integer ids [T, B]; got {described(inputs)}")
        expected = jax.eval_shape(lambda: cell.initialize_carry((*batch, size), nnx.Rngs(0)))
        if _kinds(carry) != _kinds(expected):
            raise ValueError(
                f"carry: expected {described(expected)}, as initialize_carry makes it; got {described(carry)}"
                + _if_transposed(carry, inputs)
            )
        check_parameters(cell)
    if lengths is not None and (lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer)):
        raise ValueError(f"lengths: expected integers {list(batch)}; got {described(lengths)}")
    if resets is not None and (resets.shape != (steps, *batch) or resets.dtype != jnp.bool_):
        hint = "; resets are time-major, [T, B]" if resets.shape == (*batch, steps) else ""
        raise ValueError(f"resets: expected bool {[steps, *batch]}; got {described(resets)}{hint}")
    return len(batch)


def check_parameters(cell: Cell) -> None:
    """Raises ValueError if a parameter has a shape that the package's own methods cannot use."""
    D, H, GH = cell.in_features, cell.hidden_features, cell.num_gates * cell.hidden_features
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    if overrides(cell, "__call__"):
        return
    if not overrides(cell, "project"):
        expected |= {"w_xh": ((D, GH), "[D, G·H]"), "b_h": ((GH,), "[G·H]"), "scale_x": ((GH,), "[G·H]")}
    if not overrides(cell, "recur", "output", "step"):
        expected |= {"w_hh": ((H, GH), "[H, G·H]")}
    if not overrides(cell, "gates", "step"):
        own: dict[type, list[str]] = {GRUCell: ["b_hn"], LSTMCell: ["scale_c", "b_c"]}
        names = [name for cls, names in own.items() if isinstance(cell, cls) for name in names]
        expected |= {"scale_h": ((GH,), "[G·H]")} | {name: ((H,), "[H]") for name in names}
    for name, (shape, letters) in expected.items():
        parameter = getattr(cell, name, None)
        if isinstance(parameter, nnx.Variable) and parameter.shape != shape:
            raise ValueError(f"{name}: expected {letters} = {list(shape)}; got {list(parameter.shape)}")


def described(tree: Tree) -> str:
    """Dtypes and shapes, such as "LSTMState(c=float32 [2, 3], h=float32 [2, 3])"."""
    if hasattr(tree, "shape"):
        return f"{tree.dtype} {list(tree.shape)}"
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", None)
        parts = [f"{names[i]}={described(x)}" if names else described(x) for i, x in enumerate(tree)]
        return f"{type(tree).__name__ if names else ''}({', '.join(parts)})"
    return type(tree).__name__


def _kinds(carry: Carry) -> list:
    """Shapes and dtypes, whatever kind of tuple they are in."""
    return [(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else type(leaf) for leaf in jax.tree.leaves(carry)]


def _if_transposed(carry: Carry, inputs: Array) -> str:
    batches = {leaf.shape[:1] for leaf in jax.tree.leaves(carry) if hasattr(leaf, "shape")}
    if inputs.ndim > 1 and batches == {inputs.shape[:1]} and inputs.shape[0] != inputs.shape[1]:
        return (
            f"; inputs are time-major, [T, B, ...], and these, {list(inputs.shape)}, would fit with their first two "
            "axes swapped"
        )
    return ""


def _outside(numbers: Array, end: int) -> Any:
    """The numbers if any is not in [0, end); None if all are, or if they are traced."""
    if isinstance(numbers, jax.core.Tracer) or not math.prod(numbers.shape):
        return None
    on_host = jax.device_get(numbers).astype("int64")  # an int8 cannot be compared with 1,000
    return on_host if ((on_host < 0) | (on_host >= end)).any() else None
