"""`unroll`: a cell run over time in one compiled program, with a backward pass of its own."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.nn import native
from rnn_lm.nn.arrays import alike, rows, shifted
from rnn_lm.nn.cells import Cell, Stack
from rnn_lm.nn.controls import Controls, controls_of, enter, initial_carry, keep, without_padding
from rnn_lm.nn.truncation import Truncation, WindowTruncation
from rnn_lm.nn.window import with_window_gradient


def unroll(
    cell: nnx.RNNCellBase,
    carry: Any,
    inputs: Float[Array, "T *batch D"] | Int[Array, "T *batch"],
    *,
    truncation: Truncation | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    resets: Bool[Array, "T *batch"] | None = None,
    reverse: bool = False,
    remat: int | Literal["sqrt"] | None = None,
    key: Array | None = None,
    return_carries: bool = False,
    backward: Literal["fused", "autodiff"] = "fused",
) -> tuple[Any, Float[Array, "T *batch H"]]:
    """Runs `cell` over time-major `inputs` from the state `carry`: the state after the last step, and every output.

    The three cells of this package (the GRU with its reset after the product) and stacks of them get the fused
    backward pass: the scan back in time differentiates `gates` alone and stacks the adjoints, of which the gradient of
    `w_hh` is one matrix product after the loop. Other cells are differentiated by JAX, through the same call. On a CPU
    with a C++ compiler, float32 sequences without lengths, resets and truncation run as machine code (`native`).

    Gradients are full backpropagation through time within the window. To truncate it between windows, apply
    `jax.lax.stop_gradient` to the carry that goes from one to the next.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      carry: the state before the first step, as `cell.initialize_carry` makes it.
      inputs: vectors [T, B, D], or token ids [T, B], which stand for one-hot vectors.
      truncation: where the gradient stops inside the window; None is nowhere.
      lengths: of each sequence. Past its end the carry stays as it is, outputs are zero and inputs are not looked at.
      resets: where True, the state is the initial one before that step.
      reverse: from the last step (of each sequence) to the first; outputs stay where their inputs are.
      remat: keep the states of every `remat`-th step only, and compute the rest again on the way back: less memory
        for about a third more time. "sqrt" is √T.
      key: None is evaluation; a key turns the dropout of a `Stack` on.
      return_carries: return the state after every step, stacked [T, ...], in place of the last one.
      backward: "autodiff" leaves all differentiation to JAX, which forward mode (`jax.jvp`, `jax.jacfwd`) needs.

    Raises:
      ValueError: where shapes do not go together, `lengths` or ids are out of range (unless traced), or an option has
        a value it cannot have.
      TypeError: where a dtype is not the one expected.
    """
    if isinstance(truncation, WindowTruncation) and truncation.steps < len(inputs):
        if remat is not None or backward != "fused":
            raise ValueError("truncation: a WindowTruncation has a gradient of its own; leave out remat and backward")
        options: dict[str, Any] = {"lengths": lengths, "resets": resets, "reverse": reverse, "key": key}
        stack, carry = (cell, carry) if isinstance(cell, Stack) else (Stack([cell]), (carry,))
        values = unroll(stack, carry, inputs, return_carries=True, **options)
        carries, outputs = with_window_gradient(stack, truncation.steps, carry, inputs, values, **options)
        carries = carries if isinstance(cell, Stack) else carries[0]
        return (carries if return_carries else jax.tree.map(lambda c: c[0 if reverse else -1], carries)), outputs
    if isinstance(truncation, WindowTruncation):
        truncation = None  # as many steps as there are: the whole gradient
    if isinstance(cell, Stack):
        if not isinstance(carry, tuple) or len(carry) != len(cell.cells):
            raise ValueError(
                f"carry: expected a tuple of {len(cell.cells)} carries, one a layer; got {_described(carry)}"
            )
        unroll_layer = partial(
            unroll, truncation=truncation, lengths=lengths, resets=resets, reverse=reverse, remat=remat,
            return_carries=return_carries, backward=backward,
        )  # fmt: skip
        return cell.run_layers(unroll_layer, carry, inputs, key)
    _check(cell, carry, inputs, lengths, resets, remat, backward)
    num_steps = inputs.shape[0]
    controls = controls_of(num_steps, lengths, resets)
    if truncation is not None:
        controls["passed"] = truncation.passed(num_steps, reverse=reverse)
    inputs = without_padding(inputs, controls)
    if isinstance(cell, Cell) and jnp.issubdtype(inputs.dtype, jnp.integer) and _outside(inputs, cell.in_features):
        raise ValueError(f"inputs: expected ids from 0 to {cell.in_features - 1}; got {inputs.min()} to {inputs.max()}")

    scan: Callable = _fused_scan if backward == "fused" and isinstance(cell, Cell) and cell.separable else _plain_scan
    graphdef, params = nnx.split(cell)
    initial = None if resets is None else initial_carry(cell, inputs)
    params, initial, carry, inputs, controls = alike((params, initial, carry, inputs, controls))

    def run(params: Any, carry: Any, inputs: Array, controls: Controls) -> tuple[Any, Any, Array]:
        return scan(nnx.merge(graphdef, params), initial, carry, inputs, controls, reverse)

    if remat is not None:
        block = math.isqrt(num_steps - 1) + 1 if remat == "sqrt" else remat
        last, carries, outputs = _in_blocks(run, block, params, carry, inputs, controls, reverse)
    else:
        last, carries, outputs = run(params, carry, inputs, controls)
    outputs = without_padding(outputs, controls)
    return (carries if return_carries else last), outputs


def _plain_scan(
    cell: Any, initial: Any, carry: Any, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Any, Any, Array]:
    """The scan that JAX differentiates by itself. Returns the last carry, all carries and all outputs."""
    hoisted = isinstance(cell, Cell)
    xs = cell.project(inputs) if hoisted else inputs

    def step(carry: Any, inputs: tuple[Array, Controls]) -> tuple[Any, tuple[Any, Array]]:
        x, control = inputs
        entered = enter(carry, control, initial)
        if hoisted:
            new = cell.step(entered, x)
            output = cell.output(new)
        else:
            new, output = cell(entered, x)
        new = keep(new, carry, control)
        return new, (new, output)

    last, (carries, outputs) = lax.scan(step, carry, (xs, controls), reverse=reverse)
    return last, carries, outputs


def _fused_scan(
    cell: Cell, initial: Any, carry: Any, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Any, Any, Array]:
    """The scan with one recurrent product in each direction, and dW_hh as one product after the loop.

    Returns the last carry, all carries and all outputs.
    """
    # The parameters that `gates` reads; the three others have their own ways through the engine.
    is_elsewhere = lambda path, _: path[-1] in ("w_xh", "w_hh", "b_h")  # noqa: E731
    graphdef, elsewhere, small = nnx.split(cell, is_elsewhere, ...)  # type: ignore[misc]
    absent = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), elsewhere)

    def finish(small: Any, carry: Any, entered: Any, projected: Array, recurrent: Array, control: Controls) -> Any:
        new = nnx.merge(graphdef, absent, small).gates(entered, projected, recurrent)
        return keep(new, carry, control)

    def scan(
        saving: bool, small: Any, w_hh: Array, carry: Any, projected: Array, initial: Any, controls: Controls
    ) -> tuple[Any, tuple[Any, Array | None]]:
        def step(carry: Any, inputs: tuple[Array, Controls]) -> tuple[Any, tuple[Any, Array | None]]:
            projected, control = inputs
            entered = enter(carry, control, initial)
            recurrent = cell.product(cell.output(entered), w_hh)
            new = finish(small, carry, entered, projected, recurrent, control)
            return new, (new, recurrent if saving else None)

        return lax.scan(step, carry, (projected, controls), reverse=reverse)

    @jax.custom_vjp
    def run(*arguments: Any) -> tuple[Any, Any]:
        last, (carries, _) = scan(False, *arguments)
        return last, carries

    def forward(*arguments: Any) -> tuple[tuple[Any, Any], tuple]:
        last, (carries, recurrent) = scan(True, *arguments)
        return (last, carries), (*arguments, carries, recurrent)

    def backward(saved: tuple, cotangents: tuple[Any, Any]) -> tuple:
        small, w_hh, carry, projected, initial, controls, carries, recurrent = saved
        d_last, d_carries = cotangents
        befores = jax.tree.map(partial(shifted, reverse=reverse), carry, carries)
        one_adjoint = False

        def step(state: tuple[Any, Any], inputs: tuple) -> tuple[tuple[Any, Any], tuple[Array, ...]]:
            nonlocal one_adjoint
            d_carry, d_small = state
            d_new, before, projected, recurrent, control = inputs
            d_new = jax.tree.map(jnp.add, d_carry, d_new)
            entered, leave = jax.vjp(lambda c: enter(c, control, initial), before)
            _, of_gates = jax.vjp(partial(finish, control=control), small, before, entered, projected, recurrent)
            d_small_t, d_before, d_entered, d_projected, d_recurrent = of_gates(d_new)
            # Cells that add the two products hand back one and the same adjoint: it is stacked once.
            one_adjoint = d_projected is d_recurrent
            (d_from_output,) = jax.vjp(cell.output, entered)[1](cell.product(d_recurrent, w_hh.T))
            (d_through,) = leave(jax.tree.map(jnp.add, d_entered, d_from_output))
            d_carry = jax.tree.map(jnp.add, d_before, d_through)
            d_small = jax.tree.map(jnp.add, d_small, d_small_t)
            return (d_carry, d_small), ((d_projected,) if one_adjoint else (d_projected, d_recurrent))

        (d_carry, d_small), adjoints = lax.scan(
            step,
            (d_last, jax.tree.map(jnp.zeros_like, small)),
            (d_carries, befores, projected, recurrent, controls),
            reverse=not reverse,
        )
        h = cell.output(jax.vmap(partial(enter, initial=initial))(befores, controls))
        d_w_hh = cell.product(rows(h).T, rows(adjoints[-1]))
        return d_small, d_w_hh, d_carry, adjoints[0], None, None

    run.defvjp(forward, backward)

    def all_carries(small: Any, w_hh: Array, carry: Any, projected: Array) -> Any:
        return scan(False, small, w_hh, carry, projected, None, {})[1][0]

    arguments = small, cell.w_hh[...], carry, cell.project(inputs)
    if not controls and native.is_for(cell, arguments):
        carries = native.accelerated(all_carries, cell, reverse)(*arguments)
        last = jax.tree.map(lambda a: a[0 if reverse else -1], carries)
    else:
        last, carries = run(*arguments, initial, controls)
    return last, carries, cell.output(carries)


def _in_blocks(
    run: Callable, block: int, params: Any, carry: Any, inputs: Array, controls: Controls, reverse: bool
) -> tuple[Any, Any, Array]:
    """`run` over one block of time steps after the other, of which only the carries between them are kept."""
    run = jax.checkpoint(run, prevent_cse=False)
    whole = inputs.shape[0] // block * block
    first = jax.tree.map(lambda a: a[:whole].reshape(-1, block, *a.shape[1:]), (inputs, controls))
    rest = jax.tree.map(lambda a: a[whole:], (inputs, controls))

    def of_whole_blocks(carry: Any) -> tuple[Any, Any]:
        def step(carry: Any, xs: Any) -> tuple[Any, Any]:
            last, carries, outputs = run(params, carry, *xs)
            return last, (carries, outputs)

        last, ys = lax.scan(step, carry, first, reverse=reverse)
        return last, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys)

    def of_the_rest(carry: Any) -> tuple[Any, Any]:
        last, carries, outputs = run(params, carry, *rest)
        return last, (carries, outputs)

    parts = [of_whole_blocks] * (whole > 0) + [of_the_rest] * (whole < inputs.shape[0])
    all_ys = []
    for part in parts[::-1] if reverse else parts:
        carry, ys = part(carry)
        all_ys.append(ys)
    return carry, *jax.tree.map(lambda *ys: jnp.concatenate(ys), *(all_ys[::-1] if reverse else all_ys))


def _check(
    cell: nnx.RNNCellBase, carry: Any, inputs: Array, lengths: Any, resets: Any, remat: Any, backward: str
) -> None:
    """Raises ValueError or TypeError where an argument of `unroll` does not fit, naming it."""
    if backward not in ("fused", "autodiff"):
        raise ValueError(f'backward: expected "fused" or "autodiff"; got {backward!r}')
    if remat is not None and remat != "sqrt" and (type(remat) is not int or remat < 1):
        raise ValueError(f'remat: expected None, a number of steps ≥ 1, or "sqrt"; got {remat!r}')
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs: expected at least one time step, [T, B, D] or ids [T, B]; got {_described(inputs)}")
    ids = jnp.issubdtype(inputs.dtype, jnp.integer)
    batch = inputs.shape[1:] if ids else inputs.shape[1:-1]
    if isinstance(cell, Cell):
        size, dtype = cell.in_features, jnp.dtype(cell.param_dtype)
        if not ids and (inputs.ndim < 2 or inputs.shape[-1] != size or inputs.dtype != dtype):
            error = ValueError if inputs.dtype == dtype else TypeError
            raise error(f"inputs: expected {dtype} [T, B, {size}] or integer ids [T, B]; got {_described(inputs)}")
        expected = _described(jax.eval_shape(lambda: cell.initialize_carry((*batch, size))))
        if _described(carry) != expected:
            raise ValueError(f"carry: expected {expected}, as initialize_carry makes it; got {_described(carry)}")
    if lengths is not None:
        if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(f"lengths: expected integers {list(batch)}; got {_described(lengths)}")
        if _outside(lengths, inputs.shape[0] + 1):
            raise ValueError(f"lengths: expected 0 to {inputs.shape[0]}, the time steps; got {lengths.tolist()}")
    if resets is not None and (resets.shape != (inputs.shape[0], *batch) or resets.dtype != jnp.bool_):
        raise ValueError(f"resets: expected bool {[inputs.shape[0], *batch]}; got {_described(resets)}")


def _outside(numbers: Array, end: int) -> bool:
    """Whether any number is not from 0 to end − 1; unknown, so False, while tracing."""
    if isinstance(numbers, jax.core.Tracer):
        return False
    on_host = jax.device_get(numbers)
    return bool(((on_host < 0) | (on_host >= end)).any())


def _described(tree: Any) -> str:
    """Dtypes and shapes, such as "LSTMState(c=float32 [2, 3], h=float32 [2, 3])"."""
    if hasattr(tree, "shape"):
        return f"{tree.dtype} {list(tree.shape)}"
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", None)
        parts = [f"{names[i]}={_described(x)}" if names else _described(x) for i, x in enumerate(tree)]
        return f"{type(tree).__name__ if names else ''}({', '.join(parts)})"
    return type(tree).__name__
