"""Language models: token ids → hidden states → logits of the next token."""

import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from rnn_lm.nn.cells import CELLS, orthogonal
from rnn_lm.nn.recurrence import unroll


class RNNLM(nnx.Module):
    """The recurrent language model, equations (8.4.5) and (8.4.6): O_t = H_t w_hq + b_q.

    Args:
      vocab_size: V.
      hidden_features: H.
      rngs: where the initial weights come from.
      cell: the name of the recurrent cell.
      activation: φ of the Elman cell.
      recurrent_init: of `w_hh`.
      embed_dim: size of the learned vectors that stand for the tokens; 0 feeds the tokens themselves (one-hot).
      param_dtype: of parameters, state and logits.

    >>> model = RNNLM(28, 64, rngs=nnx.Rngs(0))
    >>> carry, logits = model(model.initialize_carry(batch_size=2), jnp.zeros((5, 2), jnp.int32))
    >>> logits.shape
    (5, 2, 28)
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        cell: str = "elman",
        activation: str = "tanh",
        recurrent_init: Initializer = orthogonal,
        embed_dim: int = 0,
        param_dtype: Dtype = jnp.float32,
    ):
        init = initializers.glorot_uniform()
        self.embedding = (
            nnx.Param(initializers.normal(1.0)(rngs.params(), (vocab_size, embed_dim), param_dtype))
            if embed_dim
            else None
        )
        self.cell = CELLS[cell](
            embed_dim or vocab_size,
            hidden_features,
            activation=activation,
            recurrent_init=recurrent_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.w_hq = nnx.Param(init(rngs.params(), (hidden_features, vocab_size), param_dtype))
        self.b_q = nnx.Param(jnp.zeros((vocab_size,), param_dtype))

    @property
    def vocab_size(self) -> int:
        return self.b_q.shape[0]

    def initialize_carry(self, batch_size: int) -> Float[Array, "B H"]:
        """The state before the first token: zeros."""
        return self.cell.initialize_carry((batch_size, self.cell.in_features))

    def hidden(
        self, carry: Float[Array, "B H"], tokens: Int[Array, "T B"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "T B H"]]:
        """Token ids → the state after the last of them, and every hidden state H_t."""
        return unroll(self.cell, carry, tokens if self.embedding is None else self.embedding[tokens])

    def output(self, h: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """The output layer: O = H w_hq + b_q."""
        return h @ self.w_hq[...] + self.b_q[...]

    def __call__(
        self, carry: Float[Array, "B H"], tokens: Int[Array, "T B"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "T B V"]]:
        """Token ids → the state after the last of them, and the logits of each one's successor."""
        carry, h = self.hidden(carry, tokens)
        return carry, self.output(h)
