"""Language models: token ids → hidden states → logits of the next token."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import along_last, product, rows_of
from rnn_lm.nn.cell import glorot, orthogonal, show_signature, zeros
from rnn_lm.nn.cells import ACTIVATIONS
from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.registry import cell_class, check_constructor, takes
from rnn_lm.nn.stack import Stack, dropout_rate, dropped, states_by_letter
from rnn_lm.nn.truncation import Truncation


class LanguageModel(nnx.Module):
    """What all who use a model may ask of it: token ids → hidden layers → logits of the next token."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        show_signature(cls)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V."""

    @abstractmethod
    def initialize_carry(self, batch_size: int) -> Any:
        """What is carried from token to token, as it is before the first."""

    @abstractmethod
    def states(self, carry: Any) -> dict[str, list[Array]]:
        """The recurrent state in a carry, by its letter: the h (and, of LSTM cells, the c) of all layers."""

    @abstractmethod
    def hidden(
        self, carry: Any, tokens: Int[Array, "T B"], *, key: Array | None = None, return_carries: bool = False
    ) -> tuple[Any, Any]:
        """Token ids → the carry after the last of them (or after each, stacked), and what `output` reads at each."""

    @abstractmethod
    def output(self, h: Any) -> Float[Array, "*batch V"]:
        """The logits of the next token."""

    def objective(self, h: Any, labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """What learning lessens, given what `output` reads: the nats of each label."""
        return cross_entropy(self.output(h), labels)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def fingerprint(self) -> str:
        """A hash of all its numbers (not of its equations), 32 hexadecimal digits."""
        digest = hashlib.sha256()
        for path, leaf in sorted(nnx.to_flat_state(nnx.state(self)), key=lambda item: str(item[0])):
            array = jax.device_get(leaf[...])
            digest.update(f"{path} {array.dtype} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()[:32]

    def __call__(
        self, carry: Any, tokens: Int[Array, "T B"], *, key: Array | None = None
    ) -> tuple[Any, Float[Array, "T B V"]]:
        """Token ids → the carry after the last of them, and the logits of each one's successor.

        A key turns dropout on, which is for training.
        """
        carry, h = self.hidden(carry, tokens, key=key)
        return carry, self.output(h)


class NeuralLM(LanguageModel):
    """What all networks share: the vectors that stand for tokens and, behind a body, the output layer O = H w_hq + b_q.

    A subclass hands `add_body` to the constructor: it makes the parameters between the token vectors, whose size D it
    is given, and the output layer, which reads H numbers.

    Args:
      vocab_size: V.
      hidden_features: H.
      rngs: where the initial weights come from.
      embed_dim: size of the learned vectors that stand for the tokens; 0 feeds the tokens themselves (one-hot).
      dropout: with a key, the fraction of units dropped of what each layer hands on, the output layer's input included.
      tie: the embedding, transposed, is w_hq too (Press, Wolf 2017); `embed_dim` is H then.
      dtype: what the matrix products are computed in; None is `param_dtype`.
      param_dtype: of parameters, state and logits.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_features: int,
        add_body: Callable[[int], None],
        *,
        rngs: nnx.Rngs,
        embed_dim: int,
        dropout: float,
        tie: bool,
        dtype: Dtype | None,
        param_dtype: Dtype,
    ):
        if tie and embed_dim != hidden_features:
            raise ValueError(f"a tied embedding has hidden_features = {hidden_features} entries; embed_dim={embed_dim}")
        self.dropout = dropout_rate(dropout)
        self.dtype = dtype
        spread = hidden_features**-0.5 if tie else 1.0  # so that the first logits are of the order of 1
        self.embedding: Any = (
            nnx.Param(initializers.normal(spread)(rngs.params(), (vocab_size, embed_dim), param_dtype))
            if embed_dim
            else None
        )
        add_body(embed_dim or vocab_size)
        self.w_hq: Any = None if tie else nnx.Param(glorot(rngs.params(), (hidden_features, vocab_size), param_dtype))
        self.b_q = nnx.Param(jnp.zeros((vocab_size,), param_dtype))

    @property
    def vocab_size(self) -> int:
        return self.b_q.shape[0]

    def output(self, h: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """The output layer, equations (8.4.4) and (8.4.6): O = H w_hq + b_q."""
        w_hq = self.embedding[...].T if self.w_hq is None else self.w_hq[...]
        logits = product(h, w_hq, self.dtype)
        return logits + along_last(self.b_q[...], logits)


class RNNLM(NeuralLM):
    """The recurrent language model, equations (8.4.5) and (8.4.6).

    Args, beside those of `NeuralLM`:
      cell: the recurrent cell: "elman", "gru", "lstm", another name that is registered, or a class.
      num_layers: recurrent layers, one above the other.
      layer_norm, activation, kernel_init, recurrent_init, bias_init: the cell's, of cells that take them.

    Raises:
      ValueError: for a cell that is not known, and for an option that it does not take.

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
        cell: str | type[nnx.RNNCellBase] = "elman",
        num_layers: int = 1,
        embed_dim: int = 0,
        dropout: float = 0.0,
        tie: bool = False,
        layer_norm: bool = False,
        activation: str = "tanh",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = glorot,
        recurrent_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
    ):
        make: Any = cell if isinstance(cell, type) else cell_class(cell)
        check_constructor(make)
        optional = {
            "layer_norm": (layer_norm, False),
            "activation": (activation, "tanh"),
            "param_dtype": (param_dtype, jnp.float32),
            "kernel_init": (kernel_init, glorot),
            "bias_init": (bias_init, zeros),
        }
        if refused := [name for name, (value, usual) in optional.items() if value != usual and not takes(make, name)]:
            raise ValueError(f"{make.__qualname__} does not take {', '.join(refused)}; leave it out")
        options = {name: value for name, (value, _) in optional.items() if takes(make, name)}

        def add_body(in_features: int) -> None:
            sizes = [in_features, *(num_layers - 1) * [hidden_features]]
            layers = [
                make(size, hidden_features, rngs=rngs, dtype=dtype, recurrent_init=recurrent_init, **options)
                for size in sizes
            ]
            self.cell: Any = layers[0] if num_layers == 1 else Stack(layers, dropout=dropout)

        super().__init__(
            vocab_size,
            hidden_features,
            add_body,
            rngs=rngs,
            embed_dim=embed_dim,
            dropout=dropout,
            tie=tie,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    def initialize_carry(self, batch_size: int) -> Any:
        """The state before the first token: zeros."""
        return self.cell.initialize_carry((batch_size, 1))

    def states(self, carry: Any) -> dict[str, list[Array]]:
        return states_by_letter(self.cell, carry)

    def hidden(
        self,
        carry: Any,
        tokens: Int[Array, "T B"],
        *,
        key: Array | None = None,
        return_carries: bool = False,
        truncation: Truncation | None = None,
        remat: int | Literal["sqrt"] | None = None,
    ) -> tuple[Any, Float[Array, "T B H"]]:
        """Token ids → the state after the last of them (or after each, stacked), and every hidden state H_t."""
        inputs = tokens if self.embedding is None else rows_of(self.embedding[...], tokens)
        options: dict[str, Any] = {"truncation": truncation, "remat": remat, "return_carries": return_carries}
        carry, h = unroll(self.cell, carry, inputs, key=key, **options)
        if key is not None:
            h = dropped(h, self.dropout, jax.random.fold_in(key, 0))  # between the layers: 1, 2, …
        return carry, h


class MLPLM(NeuralLM):
    """The language model without a hidden state, equations (8.4.3) and (8.4.4), over the last n − 1 tokens:

        H = φ(X w_xh + b_h)

    X [(n−1)·D] is the vectors of x_{t−n+2}, …, x_t side by side; where there is no such token yet, zeros. The carry is
    those tokens, [B, n−1], −1 where there is none.

    Reference: Bengio, Ducharme, Vincent, Jauvin, A neural probabilistic language model, JMLR 3, 2003.

    Args, beside those of `NeuralLM`:
      context: n − 1, the tokens that are looked at.
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
        embed_dim: int = 0,
        dropout: float = 0.0,
        tie: bool = False,
        activation: str = "tanh",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = glorot,
        bias_init: Initializer = zeros,
    ):
        self.context = context
        self.activation = activation

        def add_body(in_features: int) -> None:
            self.w_xh = nnx.Param(kernel_init(rngs.params(), (context * in_features, hidden_features), param_dtype))
            self.b_h = nnx.Param(bias_init(rngs.params(), (hidden_features,), param_dtype))

        super().__init__(
            vocab_size,
            hidden_features,
            add_body,
            rngs=rngs,
            embed_dim=embed_dim,
            dropout=dropout,
            tie=tie,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    def initialize_carry(self, batch_size: int) -> Int[Array, "B K"]:
        """The tokens before the first: there are none."""
        return jnp.full((batch_size, self.context), -1, jnp.int32)

    def states(self, carry: Any) -> dict[str, list[Array]]:
        """None: tokens are no state."""
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
            h = dropped(h, self.dropout, jax.random.fold_in(key, 0))
        if return_carries:
            return jnp.stack([read[window] for window in windows], axis=-1), h
        return read[steps:].T, h


MODELS: dict[str, Callable[..., LanguageModel]] = {"rnn": RNNLM, "mlp": MLPLM}
