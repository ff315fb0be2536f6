"""Language models: token ids → hidden states → logits of the next token."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.nn.arrays import Carry, Tree, rows_of
from rnn_lm.nn.cell import OptionalParam, show_signature
from rnn_lm.nn.initializers import glorot, orthogonal, zeros
from rnn_lm.nn.output import OutputLayer, cross_entropy, masked_mean
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.registry import cell_class, check_constructor, takes
from rnn_lm.nn.stack import Stack, dropout_rate, dropped, key_of_layer, states_by_letter
from rnn_lm.nn.truncation import Truncation


class LanguageModel(nnx.Module):
    """The interface of all models: token ids → hidden layers → logits of the next token."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        show_signature(cls)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V."""

    @abstractmethod
    def initialize_carry(self, batch_size: int) -> Carry:
        """The carry before the first token."""

    @abstractmethod
    def states(self, carry: Carry) -> dict[str, list[Array]]:
        """The recurrent states in a carry by letter: h (and c for LSTM cells), one array a layer."""

    @abstractmethod
    def hidden(
        self, carry: Carry, tokens: Int[Array, "T B"], *, key: Array | None = None, return_carries: bool = False
    ) -> tuple[Carry, Tree]:
        """Token ids → the carry after the last (or after each, stacked), and the output layer's input."""

    @abstractmethod
    def logits(self, h: Tree) -> Float[Array, "*batch V"]:
        """The output layer: the logits of the next token."""

    @jax.named_scope("output_layer")
    def nll(self, h: Tree, labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """−ln P of each label, in nats."""
        return cross_entropy(self.logits(h), labels)

    def mean_nll(
        self, h: Tree, labels: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
    ) -> Float[Array, ""]:
        """The training loss: the mean of `nll` where the mask is True (None: everywhere)."""
        return masked_mean(self.nll(h, labels), mask)

    def objective(self, h: Tree, labels: Int[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
        """The loss of dynamic evaluation."""
        return self.mean_nll(h, labels, mask)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def fingerprint(self) -> str:
        """A hash of all arrays (not of the equations), 32 hexadecimal digits."""
        digest = hashlib.sha256()
        for path, leaf in sorted(nnx.to_flat_state(nnx.state(self)), key=lambda item: str(item[0])):
            array = jax.device_get(leaf[...])
            digest.update(f"{path} {array.dtype} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()[:32]

    def __call__(
        self, carry: Carry, tokens: Int[Array, "T B"], *, key: Array | None = None
    ) -> tuple[Carry, Float[Array, "T B V"]]:
        """Token ids → the carry after the last, and the logits of each successor. A key enables dropout."""
        carry, h = self.hidden(carry, tokens, key=key)
        return carry, self.logits(h)


class ModelOptions(TypedDict, total=False):
    """The optional arguments of `NeuralLM`, for constructors that pass them on."""

    embed_dim: int
    dropout: float
    tie: bool
    dtype: Dtype | None
    param_dtype: Dtype


class NeuralLM(LanguageModel):
    """The parts that all networks share: token vectors, a body, and the output layer O = H w_hq + b_q.

    A subclass passes `add_body(D)` to the constructor. It makes the parameters between token vectors of size D and the
    output layer.

    Args:
      vocab_size: V.
      hidden_features: H.
      rngs: draws the initial weights.
      embed_dim: size of learned token vectors; 0 feeds one-hot vectors.
      dropout: dropout rate on each layer's output; needs a key.
      tie: use the transposed embedding as w_hq (Press, Wolf 2017); requires `embed_dim` = H.
      dtype: of the factors of matrix products; None means `param_dtype`.
      param_dtype: of parameters, state and logits.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_features: int,
        add_body: Callable[[int], None],
        *,
        rngs: nnx.Rngs,
        embed_dim: int = 0,
        dropout: float = 0.0,
        tie: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
    ):
        if tie and embed_dim != hidden_features:
            raise ValueError(f"a tied embedding has hidden_features = {hidden_features} entries; embed_dim={embed_dim}")
        self.dropout, self.dtype, self.param_dtype = dropout_rate(dropout), dtype, param_dtype
        spread = hidden_features**-0.5 if tie else 1.0  # so that the first logits are of the order of 1
        self.embedding: OptionalParam = (
            nnx.Param(initializers.normal(spread)(rngs.params(), (vocab_size, embed_dim), param_dtype))
            if embed_dim
            else None
        )
        add_body(embed_dim or vocab_size)
        self.w_hq: OptionalParam = (
            None if tie else nnx.Param(glorot(rngs.params(), (hidden_features, vocab_size), param_dtype))
        )
        self.b_q = nnx.Param(jnp.zeros((vocab_size,), param_dtype))

    @property
    def vocab_size(self) -> int:
        return self.b_q.shape[0]

    @property
    def output_layer(self) -> OutputLayer:
        """O = H w_hq + b_q, equations (8.4.4) and (8.4.6)."""
        tied = self.w_hq is None
        return OutputLayer((self.embedding if tied else self.w_hq)[...], self.b_q[...], tied, self.dtype)

    def logits(self, h: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        return self.output_layer.logits(h)

    @jax.named_scope("output_layer")
    def nll(self, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        if type(self).logits is NeuralLM.logits:
            return self.output_layer.nll(h, labels)
        return super().nll(h, labels)

    @jax.named_scope("output_layer")
    def mean_nll(
        self, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
    ) -> Float[Array, ""]:
        if type(self).logits is NeuralLM.logits and type(self).nll is NeuralLM.nll:
            return self.output_layer.mean_nll(h, labels, mask)
        return super().mean_nll(h, labels, mask)


class RNNLM(NeuralLM):
    """The recurrent language model, equations (8.4.5) and (8.4.6).

    Args, besides those of `NeuralLM`:
      cell: "elman", "gru", "lstm", another registered name, or a class.
      num_layers: stacked recurrent layers.
      layer_norm, activation, reset_after, kernel_init, recurrent_init, bias_init: passed on to cells that take them.

    Raises:
      ValueError: for an unknown cell, or an option that the cell does not take.

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
        layer_norm: bool = False,
        activation: str = "tanh",
        reset_after: bool = True,
        kernel_init: Initializer = glorot,
        recurrent_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
        **options: Unpack[ModelOptions],
    ):
        make: Any = cell if isinstance(cell, type) else cell_class(cell)
        check_constructor(make)

        def add_body(in_features: int) -> None:
            optional = {
                "layer_norm": (layer_norm, False),
                "activation": (activation, "tanh"),
                "reset_after": (reset_after, True),
                "param_dtype": (self.param_dtype, jnp.float32),
                "kernel_init": (kernel_init, glorot),
                "bias_init": (bias_init, zeros),
            }
            refused = [name for name, (value, usual) in optional.items() if value != usual and not takes(make, name)]
            if refused:
                raise ValueError(f"{make.__qualname__} does not take {', '.join(refused)}; leave it out")
            taken = {name: value for name, (value, _) in optional.items() if takes(make, name)}
            sizes = [in_features, *(num_layers - 1) * [hidden_features]]
            layers = [
                make(size, hidden_features, rngs=rngs, dtype=self.dtype, recurrent_init=recurrent_init, **taken)
                for size in sizes
            ]
            self.cell: Any = layers[0] if num_layers == 1 else Stack(layers, dropout=self.dropout)

        super().__init__(vocab_size, hidden_features, add_body, rngs=rngs, **options)

    def initialize_carry(self, batch_size: int) -> Carry:
        """The state before the first token: zeros."""
        return self.cell.initialize_carry((batch_size, 1))

    def states(self, carry: Carry) -> dict[str, list[Array]]:
        return states_by_letter(self.cell, carry)

    def hidden(
        self,
        carry: Carry,
        tokens: Int[Array, "T B"],
        *,
        key: Array | None = None,
        return_carries: bool = False,
        truncation: Truncation | None = None,
        remat: int | Literal["sqrt"] | None = None,
    ) -> tuple[Carry, Float[Array, "T B H"]]:
        """Token ids → the state after the last (or after each, stacked), and every hidden state H_t."""
        inputs = tokens if self.embedding is None else rows_of(self.embedding[...], tokens)
        options: dict[str, Any] = {"truncation": truncation, "remat": remat, "return_carries": return_carries}
        carry, h = unroll(self.cell, carry, inputs, key=key, **options)
        if key is not None:
            h = dropped(h, self.dropout, key_of_layer(key, 0))  # between the layers: 1, 2, …
        return carry, h
