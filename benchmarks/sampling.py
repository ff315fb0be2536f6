"""Sampling, token by token, beside PyTorch's step-by-step loop: tokens a second, on the same threads, interleaved.

python -m benchmarks.sampling
"""

import argparse
from statistics import geometric_mean
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.common import Shape, interleaved, machine, save, table
from benchmarks.contenders import TorchSampler
from rnn_lm.inference.generate import generate
from rnn_lm.nn.models import RNNLM

LENGTH = 500
SHAPES = [
    Shape(cell, 65, hidden, batch, LENGTH, layers)
    for cell, hidden, layers in [("elman", 256, 1), ("gru", 256, 1), ("lstm", 128, 2), ("lstm", 512, 1)]
    for batch in (1, 16)
]


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """Both contenders on one shape."""
    model = RNNLM(shape.vocab_size, shape.hidden, cell=shape.cell, num_layers=shape.layers, rngs=nnx.Rngs(0))
    prompt, key = np.ones(1, np.int32), jax.random.key(0)
    contenders = {
        "rnn_lm": lambda: generate(model, prompt, LENGTH, key=key, num_samples=shape.batch),
        "torch": TorchSampler(shape).run,
    }
    assert contenders["rnn_lm"]().size == contenders["torch"]().size == LENGTH * shape.batch
    timings = interleaved(contenders, seconds, pause=0.01)
    per_second = {name: LENGTH * shape.batch / timing.best for name, timing in timings.items()}
    medians = {name: LENGTH * shape.batch / timing.median for name, timing in timings.items()}
    return {"shape": shape.name, "tokens_per_second": per_second, "tokens_per_second_median": medians}


def report(results: list[dict[str, Any]]) -> str:
    """The table of the README."""
    rows, all_ratios = [], []
    for result in results:
        best, median = result["tokens_per_second"], result["tokens_per_second_median"]
        ratios = [numbers["rnn_lm"] / numbers["torch"] for numbers in (best, median)]
        all_ratios.append(ratios)
        rows.append([result["shape"], f"{best['rnn_lm']:,.0f}", "{:.1f} ({:.1f})".format(*ratios)])
    means = [geometric_mean(list(column)) for column in zip(*all_ratios, strict=True)]
    rows.append(["**geometric mean**", "", "**{:.1f} ({:.1f})**".format(*means)])
    return table(["model, B texts of T tokens", "tokens/s", "× torch, best (median)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="measuring time for each shape")
    parser.add_argument("--out", default="benchmarks/results/sampling.json", help="where the numbers go")
    arguments = parser.parse_args()
    there = machine()
    torch.set_num_threads(there["cores"])
    results = [measure(shape, arguments.seconds) for shape in SHAPES]
    save(arguments.out, {"machine": there, "results": results})
    print(", ".join(f"{key} {value}" for key, value in there.items()) + "\n")
    print(report(results))


if __name__ == "__main__":
    main()
