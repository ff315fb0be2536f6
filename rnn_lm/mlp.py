"""The language model without a hidden state: one hidden layer over the last few tokens."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jaxtyping import Array, Float, Int

from rnn_lm.nn.activations import ACTIVATIONS
from rnn_lm.nn.arrays import Carry, product
from rnn_lm.nn.initializers import glorot, zeros
from rnn_lm.nn.models import ModelOptions, NeuralLM
from rnn_lm.nn.stack import dropped, key_of_layer


class MLPLM(NeuralLM):
    """The language model without a hidden state, equations (8.4.3) and (8.4.4), over the last n − 1 tokens:

        H = φ(X w_xh + b_h)

    X [(n−1)·D] concatenates the vectors of x_{t−n+2}, …, x_t, with zeros before the first token. The carry is those
    tokens, [B, n−1], or −1 before the first token.

    Reference: Bengio, Ducharme, Vincent, Jauvin, A neural probabilistic language model, JMLR 3, 2003.

    Args, besides those of `NeuralLM`:
      context: n − 1, the number of tokens to look at.
      activation: φ, "tanh", "relu" or "identity".

    >>> model = MLPLM(28, 64, context=3, embed_dim=16, rngs=nnx.Rngs(0))
    >>> model.w_xh.shape
    (48, 64)
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        context: int,
        activation: str = "tanh",
        kernel_init: Initializer = glorot,
        bias_init: Initializer = zeros,
        **options: Unpack[ModelOptions],
    ):
        self.context = context
        self.activation = activation

        def add_body(in_features: int) -> None:
            self.w_xh = nnx.Param(
                kernel_init(rngs.params(), (context * in_features, hidden_features), self.param_dtype)
            )
            self.b_h = nnx.Param(bias_init(rngs.params(), (hidden_features,), self.param_dtype))

        super().__init__(vocab_size, hidden_features, add_body, rngs=rngs, **options)

    def initialize_carry(self, batch_size: int) -> Int[Array, "B K"]:
        """No tokens yet."""
        return jnp.full((batch_size, self.context), -1, jnp.int32)

    def states(self, carry: Carry) -> dict[str, list[Array]]:
        """None: an MLP has no recurrent state."""
        return {}

    @jax.named_scope("hidden_layer")
    def hidden(
        self,
        carry: Int[Array, "B K"],
        tokens: Int[Array, "T B"],
        *,
        key: Array | None = None,
        return_carries: bool = False,
    ) -> tuple[Int[Array, "*T B K"], Float[Array, "T B H"]]:
        """Token ids → the last n − 1 of them (or those at each step, stacked), and every hidden layer H_t."""
        steps = len(tokens)
        read = jnp.concatenate([carry.T, tokens])  # [n−1+T, B]: step t looks at those from t + 1 to t + n − 1
        windows = [slice(1 + i, 1 + i + steps) for i in range(self.context)]

        def rows_of(table: Float[Array, "V N"], ids: Int[Array, "*batch"]) -> Float[Array, "*batch N"]:
            return jnp.where(ids[..., None] >= 0, table[ids], 0)

        if self.embedding is not None:
            x = rows_of(self.embedding[...], read)
            x = jnp.concatenate([x[window] for window in windows], axis=-1)
            z = product(x, self.w_xh[...], self.dtype) + self.b_h[...]
        else:  # the rows that the product with one-hot vectors would pick
            w_xh = self.w_xh[...].astype(self.dtype or self.w_xh.dtype).astype(self.w_xh.dtype)
            tables = jnp.split(w_xh, self.context)
            picked = [rows_of(table, read[window]) for table, window in zip(tables, windows, strict=True)]
            z = sum(picked, start=self.b_h[...])
        h = ACTIVATIONS[self.activation](z)
        if key is not None:
            h = dropped(h, self.dropout, key_of_layer(key, 0))
        if return_carries:
            return jnp.stack([read[window] for window in windows], axis=-1), h
        return read[steps:].T, h
