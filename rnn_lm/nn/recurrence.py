"""`unroll`: a cell run over time in one compiled program."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Shaped

from rnn_lm.nn import cpu
from rnn_lm.nn.arrays import alike, divided_like
from rnn_lm.nn.cell import Cell, are_ids, as_inputs, overrides
from rnn_lm.nn.checks import check_options, check_shapes, check_values, described
from rnn_lm.nn.controls import Controls, controls_of, initial_carry, without_padding
from rnn_lm.nn.fused import fused_scan, is_fused
from rnn_lm.nn.scan import Way, changed_leaves, changing_leaves, in_blocks, plain_scan
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import Truncation, WindowTruncation
from rnn_lm.nn.window import with_window_gradient


def unroll(
    cell: nnx.RNNCellBase,
    carry: Any,
    inputs: Shaped[ArrayLike, "T ..."] | Sequence[Any],
    *,
    truncation: Truncation | None = None,
    lengths: Integer[ArrayLike, "..."] | Sequence[int] | None = None,
    resets: Bool[ArrayLike, "T ..."] | Sequence[Any] | None = None,
    reverse: bool = False,
    remat: int | Literal["sqrt"] | None = None,
    key: Array | None = None,
    return_carries: bool = False,
    backward: Literal["fused", "autodiff"] = "fused",
) -> tuple[Any, Float[Array, "T ... H"]]:
    """Runs `cell` over time-major `inputs` from the state `carry`: the state after the last step, and every output.

    Values and gradients are those of a Python loop over `cell(carry, x_t)`, for any cell. Who computes them is found
    by looking at the cell:

    - `fused_scan`, a scan with a backward pass of its own: a `Cell` whose step is `gates` of one product `h w_hh`, so
      that overrides neither `__call__`, `step`, `recur` nor `product`;
    - machine code, where that is lowered for a CPU with a C++ compiler: one of this package's own cells, in float32,
      with one batch axis, without lengths, resets and truncation;
    - `plain_scan`, which JAX differentiates: any other cell;
    - `with_window_gradient` on top of these: a `WindowTruncation`.

    Gradients are full backpropagation through time within the window. To truncate it between windows, apply
    `jax.lax.stop_gradient` to the carry that goes from one to the next. What a cell changes of itself, such as the
    count of `nnx.Dropout`'s draws, is changed after the call as after the loop.

    Outside `jit` it is compiled once for each cell, shape and option.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      carry: the state before the first step, as `cell.initialize_carry` makes it.
      inputs: vectors [T, B, D], or token ids [T, B], which stand for one-hot vectors: they have one axis fewer beside
        the same carry. Whole numbers that are vectors are promoted.
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
      ValueError: where shapes do not go together, those of the cell's parameters among them; where `lengths` or ids
        are out of range (unless traced); where an option has a value it cannot have.
      TypeError: where a dtype is not the one expected.
    """
    given: list[Any] = [None if x is None else jnp.asarray(x) for x in (inputs, lengths, resets)]
    check_options(truncation, backward, remat, _is_windowed(truncation, given[0]))
    of_layers = isinstance(cell, Stack) and isinstance(carry, tuple) and len(carry) > 0
    lowest = (cell.cells[0], carry[0]) if of_layers else (cell, carry)  # type: ignore[attr-defined]
    check_values(*lowest, *given[:2])
    graphdef, state = nnx.split(cell)
    options: dict[str, Any] = {"reverse": reverse, "remat": remat, "return_carries": return_carries}
    options |= {"backward": backward, "graphdef": graphdef, "with_machine_code": cpu.is_wanted()}
    run: Any = _compiled if _is_hashable(graphdef) else _unroll
    with jax.named_scope("recurrence"):
        made, outputs, changed = run(state, carry, *given, key, truncation, **options)
    if changed:
        leaves, tree = jax.tree.flatten(state)
        nnx.update(cell, jax.tree.unflatten(tree, [changed.get(i, leaf) for i, leaf in enumerate(leaves)]))
    return made, outputs


def _unroll(
    state: Any,
    carry: Any,
    inputs: Array,
    lengths: Array | None,
    resets: Array | None,
    key: Array | None,
    truncation: Truncation | None,
    *,
    graphdef: nnx.GraphDef,
    with_machine_code: bool,
    **options: Any,
) -> tuple[Any, Array, dict[int, Array]]:
    """`unroll` as a function of arrays; also returns the leaves of the cell's state that it changes."""
    del with_machine_code  # looked at again where it counts; a static argument, so that it is traced anew
    state, carry, inputs, lengths, resets = alike((state, carry, inputs, lengths, resets))
    leaves, cell = jax.tree.leaves(state), nnx.merge(graphdef, state)
    options = {"lengths": lengths, "resets": resets, "key": key, **options}
    if _is_windowed(truncation, inputs):
        made, outputs = _windowed(cell, carry, inputs, steps=truncation.steps, **options)
    else:
        passed = None
        if truncation is not None and not isinstance(truncation, WindowTruncation):
            num_steps = inputs.shape[0] if inputs.ndim else 0  # inputs without steps are refused further on
            passed = truncation.passed(num_steps, reverse=options["reverse"])  # once: all layers share the draw
        made, outputs = _layered(cell, carry, inputs, passed=passed, **options)
    return made, outputs, changed_leaves(leaves, cell)


_STATIC = ("graphdef", "reverse", "remat", "return_carries", "backward", "with_machine_code")
_compiled = jax.jit(_unroll, static_argnames=_STATIC)


def _is_hashable(graphdef: nnx.GraphDef) -> bool:
    """False where a cell has arrays, or what is traced, as plain attributes: it is no key of a compiled function."""
    try:
        hash(graphdef)
    except TypeError:
        return False
    return True


def _has_layers(cell: Any) -> bool:
    """Whether it is a stack whose layers run one after the other; one that has its own way to run them is a cell."""
    return isinstance(cell, Stack) and not overrides(cell, "__call__", "run_layers", "drop")


def _is_windowed(truncation: Any, inputs: Array) -> TypeGuard[WindowTruncation]:
    """Of more steps than there are, a window is no truncation."""
    return isinstance(truncation, WindowTruncation) and inputs.ndim > 0 and truncation.steps <= inputs.shape[0]


def _windowed(cell: Any, carry: Any, inputs: Array, *, steps: int, **options: Any) -> tuple[Any, Array]:
    """All layers at once: their values as ever, and a gradient of its own."""
    return_carries, reverse = options.pop("return_carries"), options["reverse"]
    stack, carry = (cell, carry) if _has_layers(cell) else (Stack([cell]), (carry,))
    values = _layered(stack, carry, inputs, passed=None, return_carries=True, **options)
    of_gradient = {name: options[name] for name in ("lengths", "resets", "reverse", "key")}
    carries, outputs = with_window_gradient(stack, steps, carry, inputs, values, **of_gradient)
    carries = carries if _has_layers(cell) else carries[0]
    return (carries if return_carries else jax.tree.map(lambda c: c[0 if reverse else -1], carries)), outputs


def _layered(cell: Any, carry: Any, inputs: Array, *, key: Array | None, **options: Any) -> tuple[Any, Array]:
    """One layer after the other."""
    if not _has_layers(cell):
        return _one(cell, carry, inputs, **options)
    if not isinstance(carry, tuple) or len(carry) != len(cell.cells):
        raise ValueError(f"carry: expected a tuple of {len(cell.cells)} carries, one a layer; got {described(carry)}")
    return cell.run_layers(partial(_layered, key=None, **options), carry, inputs, key)


def _one(
    cell: Any,
    carry: Any,
    inputs: Array,
    *,
    passed: Array | None,
    lengths: Array | None,
    resets: Array | None,
    reverse: bool,
    remat: int | Literal["sqrt"] | None,
    return_carries: bool,
    backward: str,
) -> tuple[Any, Array]:
    """One layer, by one of the ways."""
    if isinstance(cell, Cell):
        inputs = as_inputs(cell, carry, inputs, steps=1)
    batch_axes = check_shapes(cell, carry, inputs, lengths, resets)
    num_steps = inputs.shape[0]
    controls = controls_of(num_steps, lengths, resets)
    if passed is not None:
        controls["passed"] = passed
    ids = are_ids(cell, carry, inputs, steps=1)
    initial = None if resets is None else initial_carry(cell, carry, inputs, ids)
    carry, initial = divided_like((carry, initial), inputs, batch_axes)
    inputs, initial, controls = alike((without_padding(inputs, controls), initial, controls))
    way: Way = fused_scan if backward == "fused" and is_fused(cell, carry, inputs) else plain_scan
    if remat is None:
        last, carries, outputs = way(cell, initial, carry, inputs, controls, reverse)
    else:
        if changing_leaves(cell, carry, inputs[0]):
            raise ValueError("remat: the cell changes its own state at each step, which cannot be computed again")
        graphdef, state = nnx.split(cell)

        def run(state: Any, carry: Any, inputs: Array, controls: Controls) -> tuple[Any, Any, Array]:
            return way(nnx.merge(graphdef, state), initial, carry, inputs, controls, reverse)

        block = math.isqrt(num_steps - 1) + 1 if remat == "sqrt" else remat
        last, carries, outputs = in_blocks(run, block, state, carry, inputs, controls, reverse)
    return (carries if return_carries else last), without_padding(outputs, controls)
