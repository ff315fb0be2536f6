"""Stacked layers of cells, with dropout between them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jaxtyping import Array, Float

from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.cell import Draws, overrides, show_signature
from rnn_lm.nn.cells import LSTMCell, LSTMState


@show_signature
class Stack(nnx.RNNCellBase):
    """Stacked layers: each reads the outputs of the layer below.

    The carry is the tuple of the layers' carries. `unroll` runs one layer after the other over all time steps, so that
    each layer's input product is hoisted. A key enables dropout between layers.

    Args:
      cells: from the bottom to the top.
      dropout: dropout rate between layers, from 0 to 1, drawn anew at each time step (Zaremba, Sutskever, Vinyals
        2014).
    """

    def __init__(self, cells: Sequence[nnx.RNNCellBase], *, dropout: float = 0.0):
        self.cells: Any = nnx.List(cells)
        self.dropout = dropout_rate(dropout)

    def __call__(self, carry: tuple[Carry, ...], inputs: Array) -> tuple[tuple[Carry, ...], Array]:
        """One step of the `nnx.RNNCellBase` protocol, without this stack's own dropout."""
        return self.run_layers(lambda cell, carry, inputs: cell(carry, inputs), carry, inputs)

    def run_layers(
        self,
        run: Callable[[nnx.RNNCellBase, Carry, Array], tuple[Carry, Array]],
        carry: tuple[Carry, ...],
        inputs: Array,
        key: Array | None = None,
    ) -> tuple[tuple[Carry, ...], Array]:
        """Calls `run(cell, carry, inputs) -> (carry, outputs)` from bottom to top; a key enables dropout."""
        carries, outputs = [], inputs
        for layer, (cell, layer_carry) in enumerate(zip(self.cells, carry, strict=True)):
            if layer and key is not None:
                outputs = self.drop(outputs, layer, key)
            layer_carry, outputs = run(cell, layer_carry, outputs)
            carries.append(layer_carry)
        return tuple(carries), outputs

    def output(self, carry: tuple[Carry, ...]) -> Array:
        """The stack's output for a carry: the top layer's h."""
        return self.cells[-1].output(carry[-1])

    def drop(self, x: Array, layer: int, key: Array) -> Array:
        """`x`, the input of layer number `layer`, after dropout."""
        return dropped(x, self.dropout, key_of_layer(key, layer))

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Draws = None, carry_init: Initializer | None = None
    ) -> tuple[Carry, ...]:
        """Each layer's state before the first step."""
        shapes = [input_shape] + [(*input_shape[:-1], cell.hidden_features) for cell in self.cells[:-1]]
        return tuple(
            cell.initialize_carry(shape, rngs, carry_init) if carry_init else cell.initialize_carry(shape, rngs)
            for cell, shape in zip(self.cells, shapes, strict=True)
        )

    @property
    def num_feature_axes(self) -> int:
        return 1


def has_layers(cell: nnx.RNNCellBase) -> TypeGuard[Stack]:
    """Whether it is a stack that runs its layers one after the other, by our own methods."""
    return isinstance(cell, Stack) and not overrides(cell, "__call__", "run_layers", "drop")


def states_by_letter(cell: nnx.RNNCellBase, carry: Carry) -> dict[str, list[Array]]:
    """The recurrent states in a carry by letter, h and (for LSTM cells) c, one array a layer.

    For other cells: the fields of a named tuple that has an h, or else all float arrays of the carry, concatenated.
    """
    layers = list(zip(cell.cells, carry, strict=True)) if isinstance(cell, Stack) else [(cell, carry)]
    letters: dict[str, list[Array]] = {"h": []}
    for of_layer, state in layers:
        state = LSTMState(*state) if isinstance(of_layer, LSTMCell) and len(state) == 2 else state
        leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        rank = max(leaf.ndim for leaf in leaves)
        fields = state._asdict() if hasattr(state, "h") and hasattr(state, "_asdict") else {}
        fields = fields or {"h": jnp.concatenate([leaf for leaf in leaves if leaf.ndim == rank], axis=-1)}
        for letter, array in fields.items():
            if jnp.issubdtype(array.dtype, jnp.floating) and array.ndim == rank:
                letters.setdefault(letter, []).append(array)
    return letters


def dropout_rate(rate: float) -> float:
    """The rate, checked."""
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout is {rate}; it must be from 0 to 1, the fraction of units that are dropped")
    return rate


def key_of_layer(key: Array, layer: int) -> Array:
    """One key of a key, or keys [B] of keys [B]. Layers are counted from 1, between them; 0 is the model's output."""
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if _is_of_sequences(key) else jax.random.fold_in
    return fold_in(key, layer)


def _is_of_sequences(key: Array) -> bool:
    return key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def dropped(x: Float[Array, "..."], rate: float | Float[Array, ""], key: Array) -> Float[Array, "..."]:
    """`x` with a fraction `rate` of its entries set to 0 and the others divided by 1 − rate.

    With a key for each sequence [B] of x [T, B, …], what is drawn for one does not depend on the others.
    """

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.bernoulli(key, 1.0 - rate, shape)

    if _is_of_sequences(key):
        kept = jax.vmap(partial(draw, shape=x.shape[:1] + x.shape[2:]), out_axes=1)(key)
    else:
        kept = draw(key, x.shape)
    return jnp.where(kept, x / jnp.where(rate < 1, 1.0 - rate, 1.0).astype(x.dtype), 0.0)
