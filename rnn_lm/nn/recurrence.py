"""`unroll`: a cell run over time in one compiled program.

The cell and the options decide who computes it:

| who | for |
|---|---|
| `cpu`, machine code | the three cells and their controls, on a CPU: float32, one batch axis, several steps |
| `gpu`, kernels | the same, on a Hopper GPU, if asked for: float32 or bfloat16, if the layer fits on the chip |
| `fused_scan` | a `Cell` whose step is `gates` of one product, unless backward="autodiff" |
| `plain_scan` | any other cell |
| `in_blocks` of one of these | remat |
| `with_window_gradient` on top of these | a `WindowTruncation` |

The controls are `lengths`, `resets` and truncation at single steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Shaped

from rnn_lm.nn import native
from rnn_lm.nn.arrays import Carry, alike, divided_like
from rnn_lm.nn.cell import as_inputs
from rnn_lm.nn.checks import check_options, check_shapes, check_values, described
from rnn_lm.nn.controls import Controls, Masks, controls_of, initial_carry
from rnn_lm.nn.fused import fused_scan, is_fused
from rnn_lm.nn.scan import Pieces, Way, changed_leaves, changing_leaves, in_blocks, plain_scan
from rnn_lm.nn.stack import Stack, has_layers
from rnn_lm.nn.truncation import Truncation, WindowTruncation
from rnn_lm.nn.window import with_window_gradient


def unroll(
    cell: nnx.RNNCellBase,
    carry: Carry,
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
) -> tuple[Carry, Float[Array, "T ... H"]]:
    """Runs `cell` over time-major `inputs` from the state `carry`: the state after the last step, and every output.

    Values and gradients are those of a Python loop over `cell(carry, x_t)`, for any cell. The gradient is full
    backpropagation through time within the window; to truncate it between windows, apply `jax.lax.stop_gradient` to the
    carry that goes from one to the next. What a cell changes of itself, such as the count of `nnx.Dropout`'s draws, is
    changed after the call as after the loop. Outside `jit` it is compiled once for each cell, shape and option.

    Args:
      cell: any `flax.nnx.RNNCellBase`.
      carry: the state before the first step, as `cell.initialize_carry` makes it.
      inputs: vectors [T, B, D], or token ids [T, B], which stand for one-hot vectors: they have one axis fewer beside
        the same carry. Whole numbers that are vectors are promoted.
      truncation: where the gradient stops inside the window; None is nowhere.
      lengths: of each sequence. Past its end the carry stays, outputs are zero and inputs are ignored.
      resets: where True, the state is the initial one before that step.
      reverse: from the last step (of each sequence) to the first; outputs stay where their inputs are.
      remat: store the states of every `remat`-th step and recompute the others in the backward pass: less memory for
        up to a third more time. "sqrt" is √T.
      key: None is evaluation; a key turns the dropout of a `Stack` on, and keys [B] draw for each sequence by itself.
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
    options = _Options(reverse, remat, backward, return_carries, native.wanted())
    run: Any = _compiled if _is_hashable(graphdef) else _unroll
    with jax.named_scope("recurrence"):
        made, outputs, changed = run(graphdef, options, state, carry, *given, key, truncation)
    if changed:
        nnx.update(cell, nnx.state(Pieces.of(cell).cell(changed)))
    return made, outputs


@dataclass(frozen=True)
class _Options:
    """The options of `unroll` that are not arrays: a static argument."""

    reverse: bool
    remat: int | Literal["sqrt"] | None
    backward: str
    return_carries: bool
    wanted: tuple[bool, bool]  # machine code and kernels: here so that a change of it traces a new program


def _unroll(
    graphdef: nnx.GraphDef,
    options: _Options,
    state: nnx.State,
    carry: Carry,
    inputs: Array,
    lengths: Array | None,
    resets: Array | None,
    key: Array | None,
    truncation: Truncation | None,
) -> tuple[Carry, Array, dict[int, Array]]:
    """`unroll` as a function of arrays; also returns the leaves of the cell's state that it changes."""
    state, carry, inputs, lengths, resets = alike((state, carry, inputs, lengths, resets))
    leaves, cell = jax.tree.leaves(state), nnx.merge(graphdef, state)
    passed = None
    if truncation is not None and not isinstance(truncation, WindowTruncation):
        num_steps = inputs.shape[0] if inputs.ndim else 0  # inputs without steps are refused later
        passed = truncation.passed(num_steps, reverse=options.reverse)
    masks = Masks(lengths, resets, passed)
    if not _is_windowed(truncation, inputs):
        last, carries, outputs = _layers(cell, carry, inputs, masks, key, options)
    else:
        stack, carry = (cell, carry) if has_layers(cell) else (Stack([cell]), (carry,))
        _, *values = _layers(stack, carry, inputs, masks, key, options)
        carries, outputs = with_window_gradient(
            stack, truncation.steps, carry, inputs, tuple(values), masks, options.reverse, key
        )
        carries = carries if has_layers(cell) else carries[0]
        last = jax.tree.map(lambda c: c[0 if options.reverse else -1], carries)
    return (carries if options.return_carries else last), outputs, changed_leaves(leaves, cell)


_compiled = jax.jit(_unroll, static_argnums=(0, 1))


def _is_hashable(graphdef: nnx.GraphDef) -> bool:
    """False if a cell has arrays or tracers as plain attributes, so that it cannot be a static argument."""
    try:
        hash(graphdef)
    except TypeError:
        return False
    return True


def _is_windowed(truncation: Any, inputs: Array) -> TypeGuard[WindowTruncation]:
    """A window of more steps than there are truncates nothing."""
    return isinstance(truncation, WindowTruncation) and inputs.ndim > 0 and truncation.steps <= inputs.shape[0]


def _layers(
    cell: nnx.RNNCellBase, carry: Carry, inputs: Array, masks: Masks, key: Array | None, options: _Options
) -> tuple[Carry, Carry, Array]:
    """The last carry, all carries and all outputs of a cell or, one layer after the other, of a stack."""
    if not has_layers(cell):
        return _layer(cell, carry, inputs, masks, options)
    if not isinstance(carry, tuple) or len(carry) != len(cell.cells):
        raise ValueError(f"carry: expected a tuple of {len(cell.cells)} carries, one a layer; got {described(carry)}")

    def run(cell: nnx.RNNCellBase, carry: Carry, inputs: Array) -> tuple[tuple[Carry, Carry], Array]:
        *carries, outputs = _layers(cell, carry, inputs, masks, None, options)
        return tuple(carries), outputs

    of_layers, outputs = cell.run_layers(run, carry, inputs, key)
    last, carries = zip(*of_layers, strict=True)
    return last, carries, outputs


def _layer(
    cell: nnx.RNNCellBase, carry: Carry, inputs: Array, masks: Masks, options: _Options
) -> tuple[Carry, Carry, Array]:
    """One layer, by one of the ways."""
    inputs, ids = as_inputs(cell, carry, inputs, steps=1)
    batch_axes = check_shapes(cell, carry, inputs, ids, masks)
    controls = controls_of(inputs.shape[0], masks, reverse=options.reverse)
    initial = None if masks.resets is None else initial_carry(cell, carry, inputs, ids)
    carry, initial = divided_like((carry, initial), inputs, batch_axes)
    inputs, initial, controls = alike((inputs, initial, controls))
    way: Way = fused_scan if options.backward == "fused" and is_fused(cell, carry, inputs) else plain_scan
    if options.remat is None:
        return way(cell, initial, carry, inputs, controls, options.reverse)
    if changing_leaves(cell, carry, inputs[0]):
        raise ValueError("remat: the cell changes its own state at each step, which cannot be computed again")
    graphdef, state = nnx.split(cell)

    def run(state: nnx.State, carry: Carry, inputs: Array, controls: Controls) -> tuple[Carry, Carry, Array]:
        return way(nnx.merge(graphdef, state), initial, carry, inputs, controls, options.reverse)

    block = math.isqrt(len(inputs) - 1) + 1 if options.remat == "sqrt" else options.remat
    return in_blocks(run, block, state, carry, inputs, controls, options.reverse)
