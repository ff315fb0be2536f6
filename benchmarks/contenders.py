"""What the benchmarks compare: models that take training steps or draw texts. A peer is imported when it is used."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.common import Shape
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.output import cross_entropy

Loss = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]  # params, carry, inputs, labels → nll, carry


def ours(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of this package's model."""
    model = RNNLM(
        shape.vocab_size, shape.hidden, cell=shape.cell, num_layers=shape.layers, embed_dim=shape.embed,
        dtype=shape.dtype, rngs=nnx.Rngs(0),
    )  # fmt: skip
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params, carry, inputs, labels):
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, inputs)
        return model.mean_nll(h, labels), carry

    return params, model.initialize_carry(shape.batch), loss


class FlaxModel(nnx.Module):
    """The same model of flax's own cells."""

    def __init__(self, shape: Shape):
        rngs, dtype = nnx.Rngs(0), jnp.dtype(shape.dtype)
        make = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[shape.cell]
        sizes = [shape.embed or shape.vocab_size, *(shape.layers - 1) * [shape.hidden]]
        self.embedding = nnx.Embed(shape.vocab_size, shape.embed, rngs=rngs) if shape.embed else None
        self.layers = nnx.List(
            [
                nnx.RNN(make(size, shape.hidden, dtype=dtype, rngs=rngs), time_major=True, return_carry=True)
                for size in sizes
            ]
        )
        self.output = nnx.Linear(shape.hidden, shape.vocab_size, dtype=dtype, rngs=rngs)
        self.vocab_size = shape.vocab_size

    def __call__(self, carry, tokens):
        x = self.embedding(tokens) if self.embedding else jax.nn.one_hot(tokens, self.vocab_size)
        carries = []
        for layer, layer_carry in zip(self.layers, carry, strict=True):
            layer_carry, x = layer(x, initial_carry=layer_carry)
            carries.append(layer_carry)
        return tuple(carries), self.output(x).astype(jnp.float32)


def flax_rnn(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of flax's nnx.RNN."""
    model = FlaxModel(shape)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    inputs = (shape.batch, shape.hidden)
    carry = tuple(layer.cell.initialize_carry(inputs, nnx.Rngs(0)) for layer in model.layers)
    carry = jax.tree.map(lambda c: c.astype(shape.dtype), carry)  # what its cells return

    def loss(params, carry, inputs, labels):
        carry, logits = nnx.merge(graphdef, params, rest)(carry, inputs)
        return cross_entropy(logits, labels).mean(), carry

    return params, carry, loss


def haiku_unroll(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of haiku.dynamic_unroll."""
    import haiku as hk

    make = {"elman": hk.VanillaRNN, "gru": hk.GRU, "lstm": hk.LSTM}[shape.cell]

    def model(carry, tokens):
        x = hk.Embed(shape.vocab_size, shape.embed)(tokens) if shape.embed else jax.nn.one_hot(tokens, shape.vocab_size)
        cores = [make(shape.hidden) for _ in range(shape.layers)]
        if carry is None:
            carry = tuple(core.initial_state(shape.batch) for core in cores)
        carries = []
        for core, layer_carry in zip(cores, carry, strict=True):
            x, layer_carry = hk.dynamic_unroll(core, x, layer_carry)
            carries.append(layer_carry)
        return tuple(carries), hk.Linear(shape.vocab_size)(x)

    transformed = hk.without_apply_rng(hk.transform(model))
    tokens = jnp.zeros((shape.steps, shape.batch), jnp.int32)
    params = transformed.init(jax.random.key(0), None, tokens)
    carry, _ = transformed.apply(params, None, tokens)

    def loss(params, carry, inputs, labels):
        carry, logits = transformed.apply(params, carry, inputs)
        return cross_entropy(logits, labels).mean(), carry

    return params, carry, loss


def keras_rnn(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of one of Keras's layers on JAX, of one-hot tokens."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from keras import layers

    make = {"elman": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}[shape.cell]
    rnn, output = make(shape.hidden, return_sequences=True, return_state=True), layers.Dense(shape.vocab_size)
    rnn.build((shape.batch, shape.steps, shape.vocab_size))
    output.build((shape.batch, shape.steps, shape.hidden))
    params = [[v.value for v in layer.trainable_variables] for layer in (rnn, output)]
    rest = [[v.value for v in layer.non_trainable_variables] for layer in (rnn, output)]

    def loss(params, carry, inputs, labels):
        x = jax.nn.one_hot(inputs.T, shape.vocab_size)  # batch-major
        (x, *carry), _ = rnn.stateless_call(params[0], rest[0], x, initial_state=carry)
        logits, _ = output.stateless_call(params[1], rest[1], x)
        return cross_entropy(logits, labels.T).mean(), carry

    return params, [jnp.zeros((shape.batch, shape.hidden)) for _ in range(1 + (shape.cell == "lstm"))], loss


JAX_CONTENDERS = {"rnn_lm": ours, "nnx.RNN": flax_rnn, "haiku": haiku_unroll, "keras": keras_rnn}


class JaxTrainer:
    """A contender in JAX: `run()` takes `count` training steps in one dispatch."""

    def __init__(self, contender: Callable, shape: Shape, inputs: np.ndarray, labels: np.ndarray):
        params, carry, loss = contender(shape)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

        def step(state, batch):
            params, opt_state, carry = state
            (nll, carry), grads = jax.value_and_grad(loss, has_aux=True)(params, carry, *batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state, carry), nll

        # A copy, as an initial LSTM carry may be one array twice, which cannot be donated twice.
        self.state = jax.tree.map(jnp.array, (params, optimizer.init(params), carry))
        self.batches = jnp.asarray(inputs), jnp.asarray(labels)
        many = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)
        start = time.perf_counter()
        self.compiled = many.lower(self.state, self.batches).compile()
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def run(self) -> float:
        """Returns the first step's loss."""
        self.state, nll = self.compiled(self.state, self.batches)
        return float(nll[0])


def torch_model(shape: Shape) -> tuple[Any, Any, str]:
    """PyTorch's layer with its fused kernels, the output layer, and the device that both are on."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as XLA's default and cuDNN's
    make = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[shape.cell]
    rnn = make(shape.embed or shape.vocab_size, shape.hidden, shape.layers).to(device)
    return rnn, torch.nn.Linear(shape.hidden, shape.vocab_size).to(device), device


class TorchTrainer:
    """PyTorch's nn.RNN, nn.GRU, nn.LSTM with their fused kernels."""

    def __init__(self, shape: Shape, inputs: np.ndarray, labels: np.ndarray):
        import torch

        self.rnn, self.output, device = torch_model(shape)
        self.embedding = torch.nn.Embedding(shape.vocab_size, shape.embed).to(device) if shape.embed else None
        self.params = [*self.rnn.parameters(), *self.output.parameters()]
        self.params += self.embedding.parameters() if self.embedding else []
        self.optimizer = torch.optim.Adam(self.params, lr=1e-3, fused=True)
        self.batches = [
            (torch.tensor(x, device=device).long(), torch.tensor(y, device=device).long())
            for x, y in zip(inputs, labels, strict=True)
        ]
        self.vocab_size = shape.vocab_size
        self.carry: Any = None

    def run(self) -> float:
        """Takes the steps one by one. Returns the first one's loss."""
        import torch

        losses = []
        for x, y in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            vectors = self.embedding(x) if self.embedding else torch.nn.functional.one_hot(x, self.vocab_size).float()
            h, carry = self.rnn(vectors, self.carry)
            loss = torch.nn.functional.cross_entropy(self.output(h).flatten(0, 1), y.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.carry = tuple(c.detach() for c in carry) if isinstance(carry, tuple) else carry.detach()
            losses.append(loss.detach())
        return float(losses[0])


class TorchSampler:
    """The loop that everyone writes: one step, softmax, one draw."""

    def __init__(self, shape: Shape):
        self.rnn, self.output, self.device = torch_model(shape)
        self.shape = shape

    def run(self) -> np.ndarray:
        import torch

        tokens, carry, drawn = torch.ones(1, self.shape.batch, dtype=torch.long, device=self.device), None, []
        with torch.no_grad():
            for _ in range(self.shape.steps):
                h, carry = self.rnn(torch.nn.functional.one_hot(tokens, self.shape.vocab_size).float(), carry)
                tokens = torch.multinomial(torch.softmax(self.output(h[0]), -1), 1).T
                drawn.append(tokens)
            return torch.cat(drawn).cpu().numpy()


def products(shape: Shape) -> list[tuple[int, int, int]]:
    """The matrix products of a step, (rows, inner, columns), each over all its time steps at once."""
    rows, h = shape.steps * shape.batch, shape.hidden
    gates = {"elman": 1, "gru": 3, "lstm": 4}[shape.cell] * h
    found = []
    for layer in range(shape.layers):
        found += [(rows, h, gates), (rows, gates, h), (h, rows, gates)]
        if layer or shape.embed:  # one-hot tokens need no product
            d = h if layer else shape.embed
            found += [(rows, d, gates), (rows, gates, d), (d, rows, gates)]
    return found + [(rows, h, shape.vocab_size), (rows, shape.vocab_size, h), (h, rows, shape.vocab_size)]
