"""Recurrent cells: one time step each, as Flax NNX modules.

A cell is three parts, so that `unroll` can treat all cells alike:

1. `project(x)`: the input's part, `x w_xh + b_h`; needs no state, so it is computed for all time steps at once;
2. `recur(carry)`: one recurrent product, `h w_hh`, the only one inside the loop;
3. `gates(carry, projected, recurrent)`: the rest, element by element.

Shapes here and in the whole package: T time steps, B batch, D inputs, H hidden units, V vocabulary, G gates.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import rows

glorot, orthogonal, zeros = initializers.glorot_uniform(), initializers.orthogonal(), initializers.zeros_init()


def identity(key: jax.Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Float[Array, "H H"]:
    """The identity matrix: a start for `w_hh` of a relu cell (Le, Jaitly, Hinton 2015)."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Float[Array, "..."]:
    """Uniform in ±1/√H, PyTorch's start for all parameters of a recurrent layer."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Cell(nnx.RNNCellBase):
    """What the three cells share: parameters, the products and the `nnx.RNNCellBase` protocol.

    The parameters are `w_xh [D, G·H]`, `w_hh [H, G·H]` and `b_h [G·H]`, the gates side by side. They, the carry and
    the output have `param_dtype`; the factors of the matrix products are rounded to `dtype`, their sums are not.

    Args:
      in_features: D, the size of an input vector, or the number of token ids.
      hidden_features: H.
      rngs: where the initial weights come from.
      dtype: what the matrix products are computed in; None is `param_dtype`.
      param_dtype: of parameters, carry and output.
      kernel_init: of each gate's [D, H] part of `w_xh`: `glorot`, `uniform`, or any initializer.
      recurrent_init: of each gate's [H, H] part of `w_hh`: `orthogonal`, `identity`, or any initializer.
      bias_init: of each gate's [H] part of `b_h`.
      layer_norm: normalises x w_xh and h w_hh over the H units of each gate (Ba, Kiros, Hinton 2016, equation 20) and
        scales them by learned `scale_x` and `scale_h` [G·H].
    """

    # What a cell has of its own. `gates(carry, projected, recurrent) -> carry` is the next carry, from the old one and
    # the two products [..., G·H]; it may reduce over units, never over the batch.
    num_gates: ClassVar[int]
    gates: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = glorot,
        recurrent_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
        layer_norm: bool = False,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.param_dtype = param_dtype

        def gate_by_gate(init: Initializer, *shape: int) -> nnx.Param:
            parts = [init(rngs.params(), shape, param_dtype) for _ in range(self.num_gates)]
            return nnx.Param(jnp.concatenate(parts, axis=-1))

        self.w_xh = gate_by_gate(kernel_init, in_features, hidden_features)
        self.w_hh = gate_by_gate(recurrent_init, hidden_features, hidden_features)
        self.b_h = gate_by_gate(bias_init, hidden_features)
        self.scale_x = nnx.Param(jnp.ones_like(self.b_h[...])) if layer_norm else None
        self.scale_h = nnx.Param(jnp.ones_like(self.b_h[...])) if layer_norm else None

    @property
    def separable(self) -> bool:
        """Whether a step is `gates` of one product `h w_hh`; `unroll` then has a faster backward pass for it."""
        return True

    def project(self, x: Float[Array, "*batch D"] | Int[Array, "*batch"]) -> Float[Array, "*batch GH"]:
        """`x w_xh + b_h`. Integers are token ids: they pick rows of `w_xh`, as the product with a one-hot would."""
        if not jnp.issubdtype(x.dtype, jnp.integer):
            return self._normalized(self.product(x, self.w_xh[...]), self.scale_x) + self.b_h[...]
        w_xh = self.w_xh[...].astype(self.dtype or self.param_dtype).astype(self.param_dtype)
        if x.size < self.in_features:
            return self._normalized(w_xh[x], self.scale_x) + self.b_h[...]
        return (self._normalized(w_xh, self.scale_x) + self.b_h[...])[x]  # V rows to add to are fewer than T·B

    def recur(self, carry: Any) -> Float[Array, "*batch GH"]:
        """`h w_hh`."""
        return self.product(self.output(carry), self.w_hh[...])

    def step(self, carry: Any, projected: Float[Array, "*batch GH"]) -> Any:
        """The next carry, from the old one and the input's part."""
        return self.gates(carry, projected, self.recur(carry))

    def output(self, carry: Any) -> Float[Array, "*batch H"]:
        """What a carry shows to the outside: h."""
        return carry

    def __call__(self, carry: Any, inputs: Float[Array, "*batch D"] | Int[Array, "*batch"]) -> tuple[Any, Array]:
        """One step of the `nnx.RNNCellBase` protocol: `(carry, inputs) -> (carry, output)`."""
        carry = self.step(carry, self.project(inputs))
        return carry, self.output(carry)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """The state before the first step: zeros, `[..., H]` for inputs `[..., D]`."""
        del rngs, carry_init  # part of the protocol; the initial state here is always zero
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def product(self, x: Float[Array, "*batch K"], w: Float[Array, "K N"]) -> Float[Array, "*batch N"]:
        """`x @ w` of factors rounded to `dtype`, summed in `param_dtype`."""
        return product(x, w, self.dtype)

    def _normalized(self, z: Float[Array, "*batch GH"], scale: nnx.Param | None) -> Float[Array, "*batch GH"]:
        """With layer normalisation: mean 0 and variance 1 over the units of each gate, then scaled."""
        if scale is None:
            return z
        gates = z.reshape(*z.shape[:-1], self.num_gates, self.hidden_features)
        return standardized(gates).reshape(z.shape) * scale[...]


def product(x: Float[Array, "*batch K"], w: Float[Array, "K N"], dtype: Dtype | None) -> Float[Array, "*batch N"]:
    """`x @ w` of factors rounded to `dtype` (None: as w is), summed in the dtype of w."""
    factors = x.astype(dtype or w.dtype), w.astype(dtype or w.dtype)
    multiply = partial(jnp.matmul, preferred_element_type=w.dtype)
    if x.ndim < 3 or jax.default_backend() != "cpu":
        return multiply(*factors)
    # Over several axes, XLA's CPU code takes up to twice as long for the gradient of w.
    return multiply(rows(factors[0]), factors[1]).reshape(*x.shape[:-1], w.shape[-1])


def standardized(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Mean 0 and variance 1 over the last axis: layer normalisation before its scale and shift."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / (1 + exp(−z)), as the tanh that it is: one polynomial, which compilers vectorise on CPU."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}


class ElmanCell(Cell):
    """The chapter's recurrent layer with hidden state, equation (8.4.5):

        h_t = φ(x_t w_xh + h_{t-1} w_hh + b_h)

    The carry is `h [..., H]`. `activation` is φ: "tanh", "relu" or "identity"; all other arguments are `Cell`'s.

    Reference: Elman, Finding structure in time, Cognitive Science 14, 1990.
    """

    num_gates = 1

    def __init__(self, in_features: int, hidden_features: int, *, activation: str = "tanh", **kwargs: Any):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it is one of {', '.join(ACTIVATIONS)}")
        super().__init__(in_features, hidden_features, **kwargs)
        self.activation = activation

    def gates(
        self, carry: Float[Array, "*batch H"], projected: Float[Array, "*batch H"], recurrent: Float[Array, "*batch H"]
    ) -> Float[Array, "*batch H"]:
        """The next carry. The old one counts only through `recurrent`."""
        del carry
        return ACTIVATIONS[self.activation](projected + self._normalized(recurrent, self.scale_h))


class GRUCell(Cell):
    """The gated recurrent unit, gates in the order r, z, n (PyTorch's):

        r_t = σ(x_t w_xr + h_{t-1} w_hr + b_r)
        z_t = σ(x_t w_xz + h_{t-1} w_hz + b_z)
        n_t = tanh(x_t w_xn + r_t ⊙ (h_{t-1} w_hn + b_hn) + b_n)
        h_t = (1 − z_t) ⊙ n_t + z_t ⊙ h_{t-1}

    The carry is `h [..., H]`. With `reset_after=False`, the candidate of the paper (and of d2l) resets the state before
    the product, n_t = tanh(x_t w_xn + (r_t ⊙ h_{t-1}) w_hn + b_n), and there is no `b_hn [H]`. That takes two products
    one after the other, so it is slower. All other arguments are `Cell`'s.

    References: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014; the reset after the
    product, as in PyTorch and cuDNN: Appleyard, Kocisky, Blunsom, Optimizing performance of recurrent neural networks
    on GPUs, 2016.
    """

    num_gates = 3

    def __init__(self, in_features: int, hidden_features: int, *, reset_after: bool = True, **kwargs: Any):
        super().__init__(in_features, hidden_features, **kwargs)
        if self.scale_h is not None and not reset_after:
            raise ValueError("layer_norm goes with the reset after the product only; set reset_after=True")
        self.reset_after = reset_after
        self.b_hn: Any = nnx.Param(jnp.zeros((hidden_features,), self.param_dtype)) if reset_after else None

    @property
    def separable(self) -> bool:
        return self.reset_after

    def gates(
        self,
        carry: Float[Array, "*batch H"],
        projected: Float[Array, "*batch GH"],
        recurrent: Float[Array, "*batch GH"],
    ) -> Float[Array, "*batch H"]:
        """The next carry, the reset after the product."""
        h, two = carry, 2 * self.hidden_features
        recurrent = self._normalized(recurrent, self.scale_h)
        r, z = jnp.split(sigmoid(projected[..., :two] + recurrent[..., :two]), 2, axis=-1)
        n = jnp.tanh(projected[..., two:] + r * (recurrent[..., two:] + self.b_hn[...]))
        return n + z * (h - n)

    def step(self, carry: Float[Array, "*batch H"], projected: Float[Array, "*batch GH"]) -> Float[Array, "*batch H"]:
        """The next carry, from the old one and the input's part."""
        if self.reset_after:
            return super().step(carry, projected)
        h, two = carry, 2 * self.hidden_features
        w_hh = self.w_hh[...]
        r, z = jnp.split(sigmoid(projected[..., :two] + self.product(h, w_hh[:, :two])), 2, axis=-1)
        n = jnp.tanh(projected[..., two:] + self.product(r * h, w_hh[:, two:]))
        return n + z * (h - n)


class LSTMState(NamedTuple):
    """The carry of an `LSTMCell`: memory c and hidden state h, both [..., H]."""

    c: Float[Array, "*batch H"]
    h: Float[Array, "*batch H"]


class LSTMCell(Cell):
    """Long short-term memory, gates in the order i, f, g, o (PyTorch's):

        i_t = σ(x_t w_xi + h_{t-1} w_hi + b_i)      f_t, o_t likewise
        g_t = tanh(x_t w_xg + h_{t-1} w_hg + b_g)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)

    The carry is `LSTMState(c, h)`. `forget_bias` is added to the initial b_f, so that a young cell remembers
    (Jozefowicz, Zaremba, Sutskever 2015). With `layer_norm`, c_t is normalised too where h_t looks at it (Ba et al.,
    equation 22). All other arguments are `Cell`'s.

    References: Hochreiter, Schmidhuber, Long short-term memory, 1997; Gers, Schmidhuber, Cummins, Learning to forget,
    2000.
    """

    num_gates = 4

    def __init__(self, in_features: int, hidden_features: int, *, forget_bias: float = 1.0, **kwargs: Any):
        super().__init__(in_features, hidden_features, **kwargs)
        b_f = slice(hidden_features, 2 * hidden_features)
        self.b_h[...] = self.b_h[...].at[b_f].add(forget_bias)
        norm = self.scale_h is not None
        self.scale_c: Any = nnx.Param(jnp.ones((hidden_features,), self.param_dtype)) if norm else None
        self.b_c: Any = nnx.Param(jnp.zeros((hidden_features,), self.param_dtype)) if norm else None

    def gates(
        self, carry: LSTMState, projected: Float[Array, "*batch GH"], recurrent: Float[Array, "*batch GH"]
    ) -> LSTMState:
        """The next carry."""
        # One tanh over the whole block, σ(z) being ½ tanh(½ z) + ½, and the split only then: XLA's CPU code for gates
        # that are split first does not vectorise.
        half = jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], self.param_dtype), self.hidden_features)
        shift = jnp.repeat(jnp.array([0.5, 0.5, 0.0, 0.5], self.param_dtype), self.hidden_features)
        z = projected + self._normalized(recurrent, self.scale_h)
        i, f, g, o = jnp.split(half * jnp.tanh(half * z) + shift, 4, axis=-1)
        c = f * carry.c + i * g
        shown = c if self.scale_c is None else standardized(c) * self.scale_c[...] + self.b_c[...]
        return LSTMState(c, o * jnp.tanh(shown))

    def output(self, carry: LSTMState) -> Float[Array, "*batch H"]:
        """What a carry shows to the outside: h."""
        return carry.h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> LSTMState:
        """The state before the first step: zeros."""
        # Two arrays, not one twice: a buffer cannot be donated twice.
        return LSTMState(super().initialize_carry(input_shape), super().initialize_carry(input_shape))


CELLS: dict[str, type[Cell]] = {"elman": ElmanCell, "gru": GRUCell, "lstm": LSTMCell}


class Stack(nnx.RNNCellBase):
    """Layers one above the other: each reads the outputs of the one below.

    The carry is the tuple of theirs. `unroll` runs one layer after the other over all time steps, so that each one's
    input product is hoisted, and with a key drops units of what goes from layer to layer.

    Args:
      cells: from the bottom to the top.
      dropout: the fraction of units dropped between layers, each time step's for itself (Zaremba, Sutskever, Vinyals
        2014).
    """

    def __init__(self, cells: Sequence[Any], *, dropout: float = 0.0):
        self.cells = nnx.List(cells)
        self.dropout = dropout

    def __call__(self, carry: tuple, inputs: Array) -> tuple[tuple, Array]:
        """One step of the `nnx.RNNCellBase` protocol, without dropout."""
        return self.run_layers(lambda cell, carry, inputs: cell(carry, inputs), carry, inputs)

    def run_layers(
        self, run: Callable[[Any, Any, Array], tuple[Any, Array]], carry: tuple, inputs: Array, key: Array | None = None
    ) -> tuple[tuple, Array]:
        """`run(cell, carry, inputs) -> (carry, outputs)` from the bottom to the top; a key turns dropout on."""
        carries, outputs = [], inputs
        for layer, (cell, layer_carry) in enumerate(zip(self.cells, carry, strict=True)):
            if layer and key is not None:
                outputs = self.drop(outputs, layer, key)
            layer_carry, outputs = run(cell, layer_carry, outputs)
            carries.append(layer_carry)
        return tuple(carries), outputs

    def drop(self, x: Array, layer: int, key: Array) -> Array:
        """`x`, what layer number `layer` is to read, after dropout."""
        return dropped(x, self.dropout, jax.random.fold_in(key, layer))

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> tuple:
        """The state before the first step, of each layer."""
        del carry_init  # each cell has its own
        shapes = [input_shape] + [(*input_shape[:-1], cell.hidden_features) for cell in self.cells[:-1]]
        return tuple(cell.initialize_carry(shape, rngs) for cell, shape in zip(self.cells, shapes, strict=True))

    @property
    def num_feature_axes(self) -> int:
        return 1


def states_by_letter(carry: Any) -> dict[str, list[Array]]:
    """The h (and, of LSTM cells, the c) of all layers of a carry."""
    layers = carry if type(carry) is tuple else (carry,)
    memories = [layer.c for layer in layers if isinstance(layer, LSTMState)]
    hidden = [layer.h if isinstance(layer, LSTMState) else layer for layer in layers]
    return {"h": hidden} | ({"c": memories} if memories else {})


def dropped(x: Float[Array, "..."], rate: float | Float[Array, ""], key: Array) -> Float[Array, "..."]:
    """`x` with the fraction `rate` of its entries set to 0 and the rest divided by 1 − rate."""
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)
