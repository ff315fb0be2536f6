"""The three recurrent cells. Each is one time step, written as its equations."""

from typing import NamedTuple, Unpack

import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jaxtyping import Array

from rnn_lm.nn.activations import ACTIVATIONS, activated, sigmoid, standardized
from rnn_lm.nn.arrays import along_last
from rnn_lm.nn.cell import Cell, CellOptions, Draws, Gates, OptionalParam, State, is_hoisted, overrides
from rnn_lm.nn.registry import register_cell


@register_cell("elman")
class ElmanCell(Cell):
    """The chapter's recurrent layer with hidden state, equation (8.4.5):

        h_t = φ(x_t w_xh + h_{t-1} w_hh + b_h)

    The carry is `h [..., H]`. `activation` is φ: "tanh", "relu" or "identity"; the other arguments are `Cell`'s.

    Reference: Elman, Finding structure in time, Cognitive Science 14, 1990.
    """

    num_gates = 1

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        layer_norm: bool = False,
        activation: str = "tanh",
        **options: Unpack[CellOptions],
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it is one of {', '.join(ACTIVATIONS)}")
        super().__init__(in_features, hidden_features, rngs=rngs, **options)
        self.activation = activation
        if layer_norm:
            self._add_layer_norm()

    def gates(self, carry: State, projected: Gates, recurrent: Gates, /) -> State:
        """The next carry. It depends on the old one only through `recurrent`."""
        del carry
        return ACTIVATIONS[self.activation](projected + self._normalized(recurrent, self.scale_h))


@register_cell("gru")
class GRUCell(Cell):
    """The gated recurrent unit, gates in the order r, z, n (PyTorch's):

        r_t = σ(x_t w_xr + h_{t-1} w_hr + b_r)
        z_t = σ(x_t w_xz + h_{t-1} w_hz + b_z)
        n_t = tanh(x_t w_xn + r_t ⊙ (h_{t-1} w_hn + b_hn) + b_n)
        h_t = (1 − z_t) ⊙ n_t + z_t ⊙ h_{t-1}

    The carry is `h [..., H]`. With `reset_after=False`, the candidate of the paper (and of d2l) resets the state before
    the product, n_t = tanh(x_t w_xn + (r_t ⊙ h_{t-1}) w_hn + b_n), and there is no `b_hn [H]`. That takes two products
    one after the other, so it is slower. The other arguments are `Cell`'s.

    References: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014; the reset after the
    product, as in PyTorch and cuDNN: Appleyard, Kocisky, Blunsom, Optimizing performance of recurrent neural networks
    on GPUs, 2016.
    """

    num_gates = 3

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        layer_norm: bool = False,
        reset_after: bool = True,
        **options: Unpack[CellOptions],
    ):
        if layer_norm and not reset_after:
            raise ValueError("layer_norm goes with the reset after the product only; set reset_after=True")
        super().__init__(in_features, hidden_features, rngs=rngs, **options)
        self.reset_after = reset_after
        self.b_hn: OptionalParam = nnx.Param(jnp.zeros((hidden_features,), self.param_dtype)) if reset_after else None
        if layer_norm:
            self._add_layer_norm()

    def gates(self, carry: State, projected: Gates, recurrent: Gates, /) -> State:
        """The next carry, with the reset after the product."""
        h, two = carry, 2 * self.hidden_features
        recurrent = self._normalized(recurrent, self.scale_h)
        r, z = jnp.split(sigmoid(projected[..., :two] + recurrent[..., :two]), 2, axis=-1)
        n = jnp.tanh(projected[..., two:] + r * (recurrent[..., two:] + along_last(self.b_hn[...], recurrent)))
        return n + z * (h - n)

    def step(self, carry: State, projected: Gates, /) -> State:
        """The next carry, given the input's part."""
        if self.reset_after:
            return super().step(carry, projected)
        h, two = carry, 2 * self.hidden_features
        w_hh = self.w_hh[...]
        r, z = jnp.split(sigmoid(projected[..., :two] + self.product(h, w_hh[:, :two])), 2, axis=-1)
        n = jnp.tanh(projected[..., two:] + self.product(r * h, w_hh[:, two:]))
        return n + z * (h - n)


class LSTMState(NamedTuple):
    """The carry of an `LSTMCell`: memory c and hidden state h, both [..., H]."""

    c: State
    h: State


@register_cell("lstm")
class LSTMCell(Cell):
    """Long short-term memory, gates in the order i, f, g, o (PyTorch's):

        i_t = σ(x_t w_xi + h_{t-1} w_hi + b_i)      f_t, o_t likewise
        g_t = tanh(x_t w_xg + h_{t-1} w_hg + b_g)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)

    The carry is `LSTMState(c, h)`. `forget_bias` is added to the initial b_f, so that a young cell remembers
    (Jozefowicz, Zaremba, Sutskever 2015). With `layer_norm`, c_t is normalised too where h_t looks at it (Ba et al.,
    equation 22). The other arguments are `Cell`'s.

    References: Hochreiter, Schmidhuber, Long short-term memory, 1997; Gers, Schmidhuber, Cummins, Learning to forget,
    2000.
    """

    num_gates = 4

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        layer_norm: bool = False,
        forget_bias: float = 1.0,
        **options: Unpack[CellOptions],
    ):
        super().__init__(in_features, hidden_features, rngs=rngs, **options)
        b_f = slice(hidden_features, 2 * hidden_features)
        self.b_h[...] = self.b_h[...].at[b_f].add(forget_bias)
        self.scale_c: OptionalParam = nnx.Param(jnp.ones((hidden_features,), self.param_dtype)) if layer_norm else None
        self.b_c: OptionalParam = nnx.Param(jnp.zeros((hidden_features,), self.param_dtype)) if layer_norm else None
        if layer_norm:
            self._add_layer_norm()

    def gates(self, carry: tuple[Array, Array], projected: Gates, recurrent: Gates, /) -> tuple[Array, Array]:
        """The next carry. A plain pair (c, h) gives a plain pair."""
        z = projected + self._normalized(recurrent, self.scale_h)
        i, f, g, o = activated(z, "sigmoid", "sigmoid", "tanh", "sigmoid")
        c = f * carry[0] + i * g
        shown = c
        if self.scale_c is not None:
            shown = standardized(c) * along_last(self.scale_c[...], c) + along_last(self.b_c[...], c)
        new = LSTMState(c, o * jnp.tanh(shown))
        return new if isinstance(carry, LSTMState) else (new.c, new.h)

    def output(self, carry: tuple[Array, Array], /) -> State:
        """The cell's output for a carry: h."""
        return carry[1]

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Draws = None, carry_init: Initializer | None = None
    ) -> LSTMState:
        """The state before the first step: zeros, or drawn by `carry_init`."""
        # Two arrays, not one twice: a buffer cannot be donated twice.
        c, h = (super(LSTMCell, self).initialize_carry(input_shape, rngs, carry_init) for _ in range(2))
        return LSTMState(c, h)


def takes_one_product(cell: nnx.RNNCellBase) -> bool:
    """Whether a cell's step is `gates` of one recurrent product, by our own methods. A reset before it takes two."""
    resets_before = isinstance(cell, GRUCell) and not cell.reset_after
    return is_hoisted(cell) and not overrides(cell, "step", "recur", "product") and not resets_before


def kind_of(cell: Cell) -> str | None:
    """Whose gates a cell has, without layer normalisation: "gru", "lstm" or an `ElmanCell`'s activation; else None."""
    if overrides(cell, "gates", "output", "_normalized") or cell.scale_h is not None:
        return None
    if isinstance(cell, ElmanCell):
        return cell.activation
    return next((name for name, cls in (("gru", GRUCell), ("lstm", LSTMCell)) if isinstance(cell, cls)), None)
