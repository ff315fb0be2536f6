"""Whole training steps, beside PyTorch, flax's nnx.RNN and Haiku: same shapes, same threads, interleaved in one run.

A step is: token ids (one-hot, or an embedding) → recurrent layers → output layer → mean cross-entropy → gradient →
clipping to a global norm of 1 → Adam, the state carried on. JAX contenders take several steps in one dispatch, by one
and the same loop; PyTorch takes the same number of steps.

python -m benchmarks.training
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import geometric_mean
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from benchmarks.common import SHAPES, Shape, interleaved, machine, save, table
from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.models import RNNLM

PEERS = ["torch", "nnx.RNN", "haiku"]
Loss = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]  # params, carry, inputs, labels → nll, carry


def ours(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of this package's model."""
    model = RNNLM(
        shape.vocab_size, shape.hidden, cell=shape.cell, num_layers=shape.layers, embed_dim=shape.embed,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params, carry, inputs, labels):
        carry, logits = nnx.merge(graphdef, params)(carry, inputs)
        return cross_entropy(logits, labels).mean(), carry

    return params, model.initialize_carry(shape.batch), loss


class FlaxModel(nnx.Module):
    """The same model of flax's own cells."""

    def __init__(self, shape: Shape):
        rngs = nnx.Rngs(0)
        make = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[shape.cell]
        sizes = [shape.embed or shape.vocab_size, *(shape.layers - 1) * [shape.hidden]]
        self.embedding = nnx.Embed(shape.vocab_size, shape.embed, rngs=rngs) if shape.embed else None
        self.layers = nnx.List(
            [nnx.RNN(make(size, shape.hidden, rngs=rngs), time_major=True, return_carry=True) for size in sizes]
        )
        self.output = nnx.Linear(shape.hidden, shape.vocab_size, rngs=rngs)
        self.vocab_size = shape.vocab_size

    def __call__(self, carry, tokens):
        x = self.embedding(tokens) if self.embedding else jax.nn.one_hot(tokens, self.vocab_size)
        carries = []
        for layer, layer_carry in zip(self.layers, carry, strict=True):
            layer_carry, x = layer(x, initial_carry=layer_carry)
            carries.append(layer_carry)
        return tuple(carries), self.output(x)


def flax_rnn(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of flax's nnx.RNN."""
    model = FlaxModel(shape)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    inputs = (shape.batch, shape.hidden)
    carry = tuple(layer.cell.initialize_carry(inputs, nnx.Rngs(0)) for layer in model.layers)

    def loss(params, carry, inputs, labels):
        carry, logits = nnx.merge(graphdef, params, rest)(carry, inputs)
        return cross_entropy(logits, labels).mean(), carry

    return params, carry, loss


def haiku_unroll(shape: Shape) -> tuple[Any, Any, Loss]:
    """Parameters, carry and loss of haiku.dynamic_unroll."""
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


TORCH_LAYERS = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


class TorchTrainer:
    """PyTorch's nn.RNN, nn.GRU, nn.LSTM with their fused kernels."""

    def __init__(self, shape: Shape, inputs: np.ndarray, labels: np.ndarray):
        gpu = jax.default_backend() == "gpu"
        self.device = "cuda" if gpu else "cpu"
        size = shape.embed or shape.vocab_size
        self.rnn = TORCH_LAYERS[shape.cell](size, shape.hidden, shape.layers).to(self.device)
        self.embedding = torch.nn.Embedding(shape.vocab_size, shape.embed).to(self.device) if shape.embed else None
        self.output = torch.nn.Linear(shape.hidden, shape.vocab_size).to(self.device)
        self.params = [*self.rnn.parameters(), *self.output.parameters()]
        self.params += self.embedding.parameters() if self.embedding else []
        self.optimizer = torch.optim.Adam(self.params, lr=1e-3, fused=True)
        self.batches = [
            (torch.tensor(x, device=self.device).long(), torch.tensor(y, device=self.device).long())
            for x, y in zip(inputs, labels, strict=True)
        ]
        self.vocab_size = shape.vocab_size
        self.carry: Any = None

    def run(self) -> float:
        """Takes the steps one by one. Returns the first one's loss."""
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


def gemm_limit(shape: Shape) -> float:
    """Seconds of a step's matrix products alone, each as one large product, the best of several."""
    total = 0.0
    for rows, inner, columns in products(shape):
        a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
        multiply = jax.jit(jnp.matmul).lower(a, b).compile()
        timing = interleaved({"": lambda a=a, b=b, f=multiply: f(a, b).block_until_ready()}, seconds=0.3)
        total += timing[""].best
    return total


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """All contenders on one shape."""
    count = 2 if shape.vocab_size > 1000 else 8  # steps in one dispatch
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, shape.vocab_size, (2, count, shape.steps, shape.batch), dtype=np.int32)
    trainers: dict[str, Any] = {"torch": TorchTrainer(shape, inputs, labels)}
    for name, contender in [("rnn_lm", ours), ("nnx.RNN", flax_rnn), ("haiku", haiku_unroll)]:
        trainers[name] = JaxTrainer(contender, shape, inputs, labels)
    for name, trainer in trainers.items():
        first = trainer.run()  # all start as good as guessing, which shows that they do the same work
        assert abs(first - np.log(shape.vocab_size)) < 1.0, f"{name} starts with a loss of {first}"
    timings = interleaved({name: trainer.run for name, trainer in trainers.items()}, seconds)
    result: dict[str, Any] = {
        "shape": shape.name,
        "steps_per_dispatch": count,
        "gemm_limit_ms": 1e3 * gemm_limit(shape),
    }
    for name, timing in timings.items():
        trainer = trainers[name]
        result[name] = {
            "best_ms": 1e3 * timing.best / count,
            "median_ms": 1e3 * timing.median / count,
            "tokens_per_second": count * shape.steps * shape.batch / timing.best,
            "repetitions": len(timing.seconds),
        }
        if isinstance(trainer, JaxTrainer):
            result[name] |= {
                "compile_seconds": trainer.compile_seconds,
                "temporary_mbytes": trainer.temporary_bytes / 1e6,
            }
    return result


def ratios(results: list[dict[str, Any]], peer: str, which: str) -> list[float]:
    """How many times faster than a peer, shape by shape."""
    return [result[peer][which] / result["rnn_lm"][which] for result in results]


def report(results: list[dict[str, Any]]) -> str:
    """The table of the README."""
    head = ["model and minibatch", "ms a step, best (median)", "tokens/s", *(f"× {p}" for p in PEERS), "of GEMM limit"]
    head += ["compile s", "temporaries MB"]
    rows = []
    for i, result in enumerate(results):
        own = result["rnn_lm"]
        rows.append(
            [
                result["shape"],
                f"{own['best_ms']:.2f} ({own['median_ms']:.2f})",
                f"{own['tokens_per_second']:,.0f}",
                *(
                    f"{ratios(results, peer, 'best_ms')[i]:.2f} ({ratios(results, peer, 'median_ms')[i]:.2f})"
                    for peer in PEERS
                ),
                f"{result['gemm_limit_ms'] / own['best_ms']:.0%}",
                f"{own['compile_seconds']:.1f}",
                f"{own['temporary_mbytes']:.0f}",
            ]
        )
    means = []
    for peer in PEERS:
        best, median = (geometric_mean(ratios(results, peer, which)) for which in ("best_ms", "median_ms"))
        means.append(f"**{best:.2f} ({median:.2f})**")
    return table(head, [*rows, ["**geometric mean**", "", "", *means, "", "", ""]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="measuring time for each shape")
    parser.add_argument("--shapes", default="", help="only shapes whose names contain this")
    parser.add_argument("--out", default="benchmarks/results/training.json", help="where the numbers go")
    arguments = parser.parse_args()
    there = machine()
    torch.set_num_threads(there["cores"])
    results = []
    for shape in SHAPES:
        if arguments.shapes in shape.name:
            results.append(measure(shape, arguments.seconds))
            print(report(results[-1:]).splitlines()[2], flush=True)
    save(arguments.out, {"machine": there, "results": results})
    print("\n" + ", ".join(f"{key} {value}" for key, value in there.items()) + "\n")
    print(report(results))


if __name__ == "__main__":
    main()
