"""Sequences of different lengths, and episodes that end in the middle: the gradient of one recurrent layer.

Beside the same layer without them, flax's nnx.RNN with `seq_lengths`, and PyTorch's packed and padded sequences:
interleaved, on two cores. The gradient is that of the sum of the squared outputs by the parameters and the inputs.
Lengths are spread evenly from 24 % of T to T, 62 % in the mean; one step in a hundred is reset.

python -m benchmarks.masked
"""

# ruff: noqa: E402 — threads are counted when JAX is first imported
import os

CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_setaffinity") else []
if CORES:
    os.sched_setaffinity(0, CORES)

import argparse
from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.common import Timing, interleaved, measured, table
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.registry import cell_class

SHAPES = [  # cell, T, B, D, H
    ("lstm", 100, 32, 64, 128),
    ("gru", 100, 32, 64, 256),
    ("elman", 100, 64, 32, 64),
    ("lstm", 400, 32, 64, 128),
    ("lstm", 100, 32, 64, 512),
    ("lstm", 1000, 32, 64, 128),
]
OURS = ["plain", "lengths", "resets"]
PEERS = ["nnx.RNN", "torch packed", "torch padded"]


def ours(cell: str, x: np.ndarray, hidden: int, **masks: Any) -> Callable[[], Any]:
    layer = cell_class(cell)(x.shape[-1], hidden, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    carry = layer.initialize_carry((x.shape[1], x.shape[-1]))

    def loss(params: Any, x: Any, masks: Any) -> Any:
        return jnp.square(unroll(nnx.merge(graphdef, params), carry, x, **masks)[1]).sum()

    return _jitted(loss, params, x, {name: jnp.asarray(mask) for name, mask in masks.items()})


def flax_rnn(cell: str, x: np.ndarray, hidden: int, lengths: np.ndarray) -> Callable[[], Any]:
    make = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[cell]
    layer = nnx.RNN(make(x.shape[-1], hidden, rngs=nnx.Rngs(0)), time_major=True)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    valid = np.arange(len(x))[:, None] < lengths

    def loss(params: Any, x: Any, masks: Any) -> Any:
        y = nnx.merge(graphdef, params, rest)(x, seq_lengths=masks["lengths"], rngs=nnx.Rngs(0))
        return jnp.square(jnp.where(masks["valid"][..., None], y, 0)).sum()

    return _jitted(loss, params, x, {"lengths": jnp.asarray(lengths), "valid": jnp.asarray(valid)})


def _jitted(loss: Callable, params: Any, x: np.ndarray, masks: Any) -> Callable[[], Any]:
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, jnp.asarray(x), masks).compile()
    x = jnp.asarray(x)
    return lambda: jax.block_until_ready(gradient(params, x, masks))[0]


def torch_rnn(cell: str, x: np.ndarray, hidden: int, lengths: np.ndarray, packed: bool) -> Callable[[], Any]:
    layer = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](x.shape[-1], hidden)
    inputs, ends = torch.tensor(x, requires_grad=True), torch.tensor(lengths)

    def run() -> Any:
        layer.zero_grad(set_to_none=True)
        inputs.grad = None
        if packed:
            packing = torch.nn.utils.rnn.pack_padded_sequence(inputs, ends, enforce_sorted=False)
            y = torch.nn.utils.rnn.pad_packed_sequence(layer(packing)[0])[0]
        else:
            y = layer(inputs)[0]
        loss = y.square().sum()
        loss.backward()
        return loss.detach()

    return run


def name_of(shape: tuple[str, int, int, int, int]) -> str:
    return "{} T{} B{} D{} H{}".format(*shape)


def measure(shape: tuple[str, int, int, int, int], seconds: float) -> dict[str, Any]:
    """All contenders on one shape."""
    cell, steps, batch, features, hidden = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, features)).astype(np.float32)
    lengths = np.rint(np.linspace(0.24 * steps, steps, batch)).astype(np.int32)
    rng.shuffle(lengths)
    contenders: dict[str, Callable[[], Any]] = {
        "plain": ours(cell, x, hidden),
        "lengths": ours(cell, x, hidden, lengths=lengths),
        "resets": ours(cell, x, hidden, resets=rng.random((steps, batch)) < 0.01),
        "nnx.RNN": flax_rnn(cell, x, hidden, lengths),
        "torch packed": torch_rnn(cell, x, hidden, lengths, packed=True),
        "torch padded": torch_rnn(cell, x, hidden, lengths, packed=False),
    }
    for run in contenders.values():
        run()
    timings: dict[str, Timing] = interleaved(contenders, seconds, pause=0.01)
    return {
        "shape": name_of(shape),
        "mean_length": float(lengths.mean() / steps),
        **{name: {"best_ms": 1e3 * t.best, "median_ms": 1e3 * t.median} for name, t in timings.items()},
    }


RATIOS = {
    "lengths / plain": ("lengths", "plain"),
    "resets / plain": ("resets", "plain"),
    "× packed": ("torch packed", "lengths"),
    "× nnx.RNN": ("nnx.RNN", "lengths"),
}


def report(results: list[dict[str, Any]]) -> str:
    """Times, and ratios with their geometric means; medians in parentheses."""

    def ratio(result: dict[str, Any], name: str, which: str) -> float:
        above, below = RATIOS[name]
        return result[above][which] / result[below][which]

    rows = [
        [
            result["shape"],
            *(f"{result[name]['best_ms']:.2f} ({result[name]['median_ms']:.2f})" for name in [*OURS, *PEERS]),
            *(f"{ratio(result, name, 'best_ms'):.2f} ({ratio(result, name, 'median_ms'):.2f})" for name in RATIOS),
        ]
        for result in results
    ]
    means = [
        " ".join(pattern.format(geometric_mean(ratio(r, name, w) for r in results)) for pattern, w in
                 (("**{:.2f}", "best_ms"), ("({:.2f})**", "median_ms")))
        for name in RATIOS
    ]  # fmt: skip
    blanks = [""] * len([*OURS, *PEERS])
    return table(["ms, best (median)", *OURS, *PEERS, *RATIOS], [*rows, ["**geometric mean**", *blanks, *means]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="measuring time for each shape")
    parser.add_argument("--shapes", default="", help="only shapes whose names contain this, such as lstm")
    parser.add_argument("--out", default="benchmarks/results/masked.json", help="where the numbers go")
    arguments = parser.parse_args()
    chosen = [shape for shape in SHAPES if arguments.shapes in name_of(shape)]
    if not chosen:
        parser.error(f"no shape's name contains {arguments.shapes!r}: {', '.join(map(name_of, SHAPES))}")
    torch.set_num_threads(len(CORES) or 2)
    measured(chosen, lambda shape: measure(shape, arguments.seconds), report, arguments.out)


if __name__ == "__main__":
    main()
