"""Language models: token ids → hidden states → logits of the next token."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from rnn_lm.nn.cells import CELLS, Stack, dropped, product
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.truncation import Truncation


class RNNLM(nnx.Module):
    """The recurrent language model, equations (8.4.5) and (8.4.6): O_t = H_t w_hq + b_q.

    Args:
      vocab_size: V.
      hidden_features: H.
      rngs: where the initial weights come from.
      cell: the name of the recurrent cell.
      num_layers: recurrent layers, one above the other.
      embed_dim: size of the learned vectors that stand for the tokens; 0 feeds the tokens themselves (one-hot).
      dropout: with a key, the fraction of units dropped of what each layer hands on, the output layer's input included.
      tie: the embedding, transposed, is w_hq too (Press, Wolf 2017); `embed_dim` is H then.
      dtype: what the matrix products are computed in; None is `param_dtype`.
      param_dtype: of parameters, state and logits.
      cell_options: what else the cells' constructor takes.

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
        num_layers: int = 1,
        embed_dim: int = 0,
        dropout: float = 0.0,
        tie: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        **cell_options: Any,
    ):
        if tie and embed_dim != hidden_features:
            raise ValueError(f"a tied embedding has hidden_features = {hidden_features} entries; embed_dim={embed_dim}")
        self.dropout = dropout
        self.dtype = dtype
        spread = hidden_features**-0.5 if tie else 1.0  # so that the first logits are of the order of 1
        self.embedding: Any = (
            nnx.Param(initializers.normal(spread)(rngs.params(), (vocab_size, embed_dim), param_dtype))
            if embed_dim
            else None
        )
        sizes = [embed_dim or vocab_size, *(num_layers - 1) * [hidden_features]]
        layers = [
            CELLS[cell](size, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **cell_options)
            for size in sizes
        ]
        self.cell = layers[0] if num_layers == 1 else Stack(layers, dropout=dropout)
        glorot = initializers.glorot_uniform()
        self.w_hq: Any = None if tie else nnx.Param(glorot(rngs.params(), (hidden_features, vocab_size), param_dtype))
        self.b_q = nnx.Param(jnp.zeros((vocab_size,), param_dtype))

    @property
    def vocab_size(self) -> int:
        return self.b_q.shape[0]

    def initialize_carry(self, batch_size: int) -> Any:
        """The state before the first token: zeros."""
        return self.cell.initialize_carry((batch_size, 1))

    def hidden(
        self,
        carry: Any,
        tokens: Int[Array, "T B"],
        *,
        key: Array | None = None,
        truncation: Truncation | None = None,
        remat: int | Literal["sqrt"] | None = None,
        return_carries: bool = False,
    ) -> tuple[Any, Float[Array, "T B H"]]:
        """Token ids → the state after the last of them (or after each, stacked), and every hidden state H_t."""
        inputs = tokens if self.embedding is None else self.embedding[tokens]
        options: dict[str, Any] = {"truncation": truncation, "remat": remat, "return_carries": return_carries}
        carry, h = unroll(self.cell, carry, inputs, key=key, **options)
        if key is not None:
            h = dropped(h, self.dropout, jax.random.fold_in(key, 0))  # between the layers: 1, 2, …
        return carry, h

    def output(self, h: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """The output layer: O = H w_hq + b_q."""
        w_hq = self.embedding[...].T if self.w_hq is None else self.w_hq[...]
        return product(h, w_hq, self.dtype) + self.b_q[...]

    def __call__(
        self, carry: Any, tokens: Int[Array, "T B"], *, key: Array | None = None
    ) -> tuple[Any, Float[Array, "T B V"]]:
        """Token ids → the state after the last of them, and the logits of each one's successor.

        A key turns dropout on, which is for training.
        """
        carry, h = self.hidden(carry, tokens, key=key)
        return carry, self.output(h)
