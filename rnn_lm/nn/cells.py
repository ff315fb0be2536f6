"""Recurrent cells: one time step each, as Flax NNX modules.

A cell is three parts, so that `unroll` can treat all cells alike:

1. `project(x)`: the input's part, `x w_xh + b_h`; needs no state, so it is computed for all time steps at once;
2. one recurrent product, `h w_hh`, the only one inside the loop;
3. `gates(carry, projected, recurrent)`: the rest, element by element.

Shapes here and in the whole package: T time steps, B batch, D inputs, H hidden units, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

glorot, orthogonal, zeros = initializers.glorot_uniform(), initializers.orthogonal(), initializers.zeros_init()

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class ElmanCell(nnx.RNNCellBase):
    r"""The chapter's recurrent layer with hidden state, equation (8.4.5):

        h_t = φ(x_t w_xh + h_{t-1} w_hh + b_h)

    Args:
      in_features: D, the size of an input vector, or the number of token ids.
      hidden_features: H.
      rngs: where the initial weights come from.
      activation: φ, "tanh" or "relu".
      dtype: what the matrix products are computed in; None is `param_dtype`.
      param_dtype: of parameters, carry and output.

    The parameters are `w_xh [D, H]`, `w_hh [H, H]` and `b_h [H]`; the carry is `h [..., H]`.

    Reference: Elman, Finding structure in time, Cognitive Science 14, 1990.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        activation: str = "tanh",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = glorot,
        recurrent_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it is one of {', '.join(ACTIVATIONS)}")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.activation = activation
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.w_xh = nnx.Param(kernel_init(rngs.params(), (in_features, hidden_features), param_dtype))
        self.w_hh = nnx.Param(recurrent_init(rngs.params(), (hidden_features, hidden_features), param_dtype))
        self.b_h = nnx.Param(bias_init(rngs.params(), (hidden_features,), param_dtype))

    def project(self, x: Float[Array, "*batch D"] | Int[Array, "*batch"]) -> Float[Array, "*batch H"]:
        """`x w_xh + b_h`. Integers are token ids: they pick rows of `w_xh`, as the product with a one-hot would."""
        if jnp.issubdtype(x.dtype, jnp.integer):
            return self._rounded(self.w_xh[x]).astype(self.param_dtype) + self.b_h[...]
        return self._dot(x, self.w_xh[...]) + self.b_h[...]

    def recur(self, carry: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
        """`h w_hh`."""
        return self._dot(carry, self.w_hh[...])

    def gates(
        self, carry: Float[Array, "*batch H"], projected: Float[Array, "*batch H"], recurrent: Float[Array, "*batch H"]
    ) -> Float[Array, "*batch H"]:
        """The next carry: `φ(projected + recurrent)`. The Elman cell looks at the old one only through `recurrent`."""
        del carry
        return ACTIVATIONS[self.activation](projected + recurrent)

    def __call__(
        self, carry: Float[Array, "*batch H"], inputs: Float[Array, "*batch D"] | Int[Array, "*batch"]
    ) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
        """One step of the `nnx.RNNCellBase` protocol: `(carry, inputs) -> (carry, output)`."""
        h = self.gates(carry, self.project(inputs), self.recur(carry))
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> Float[Array, "*batch H"]:
        """The state before the first step: zeros `[..., H]` for inputs `[..., D]`."""
        del rngs, carry_init  # part of the protocol; the initial state here is always zero
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def _dot(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.matmul(self._rounded(x), self._rounded(w), preferred_element_type=self.param_dtype)

    def _rounded(self, x: jax.Array) -> jax.Array:
        """`x` as a factor of a product."""
        return x.astype(self.dtype or self.param_dtype)


CELLS = {"elman": ElmanCell}
