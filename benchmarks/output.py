"""The output layer of a large vocabulary: loss and gradient of softmax cross-entropy, beside PyTorch and whole logits.

Time is compared with that of the three products alone, each as one large product. Memory is what a process has at most
while it computes, less what it had before and less the gradients; each contender has a process of its own.

python -m benchmarks.output
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import interleaved, machine, measured, products_seconds, table
from rnn_lm.nn.output import OutputLayer, cross_entropy

CONTENDERS = ["rnn_lm", "whole logits", "torch"]


class Shape(NamedTuple):
    rows: int  # T · B
    hidden: int
    vocab_size: int
    tied: bool

    @property
    def name(self) -> str:
        return f"N{self.rows} H{self.hidden} V{self.vocab_size}{' tied' * self.tied}"


SHAPES = [Shape(4096, 512, 50_000, True), Shape(700, 650, 10_000, False), Shape(3200, 512, 65, False)]


def contender(name: str, shape: Shape) -> Callable[[], Any]:
    """A function that computes loss and gradient, compiled."""
    rows, hidden, vocab_size, tied = shape
    rng = np.random.default_rng(0)
    h = rng.normal(size=(rows, hidden)).astype(np.float32)
    w = 0.05 * rng.normal(size=(vocab_size, hidden) if tied else (hidden, vocab_size)).astype(np.float32)
    b, labels = np.zeros(vocab_size, np.float32), rng.integers(0, vocab_size, rows, dtype=np.int32)
    if name == "torch":
        import torch

        torch.set_num_threads(machine()["cores"])
        # its own layout is that of a tied layer
        weights = [torch.tensor(x, requires_grad=True) for x in (h, w if tied else w.T.copy(), b)]
        y = torch.tensor(labels, dtype=torch.int64)

        def run() -> None:
            for x in weights:
                x.grad = None
            loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*weights), y)
            loss.backward()

        return run

    def loss(h: Any, w: Any, b: Any) -> Any:
        layer = OutputLayer(w, b, tied)
        return layer.mean_nll(h, labels) if name == "rnn_lm" else cross_entropy(layer.logits(h), labels).mean()

    arrays = [jnp.asarray(x) for x in (h, w, b)]
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
    return lambda: jax.block_until_ready(gradient(*arrays))


def products(shape: Shape) -> list[tuple[int, int, int]]:
    """Rows, inner size and columns of the three products of loss and gradient."""
    rows, hidden, vocab_size, _ = shape
    return [(rows, hidden, vocab_size), (rows, vocab_size, hidden), (hidden, rows, vocab_size)]


def peak_bytes(name: str, shape: Shape) -> int:
    """Of a process that computes loss and gradient once, beside inputs and gradients."""
    run = contender(name, shape)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already, as of compilation, would hide what comes
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    gradients = 4 * (shape.rows * shape.hidden + shape.hidden * shape.vocab_size + shape.vocab_size)
    return _status("VmHWM") - before - gradients


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {"shape": shape.name}
    for name in CONTENDERS:
        command = [sys.executable, "-m", "benchmarks.output", "--peak", json.dumps([name, *shape])]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        result[name] = {"peak_mbytes": int(child.stdout) / 1e6}
    runs = {name: contender(name, shape) for name in CONTENDERS}
    for run in runs.values():
        run()
    for name, timing in interleaved(runs, seconds, least=3, pause=0.01).items():
        result[name] |= {"best_ms": 1e3 * timing.best, "median_ms": 1e3 * timing.median}
    return result | {"products_ms": 1e3 * products_seconds(products(shape), seconds=1)}


def report(results: list[dict[str, Any]]) -> str:
    head = ["N rows", *(f"{name}, ms" for name in CONTENDERS), "of products", "× whole logits", "× torch"]
    rows = []
    for result in results:
        times = [f"{result[name]['best_ms']:.3g} ({result[name]['median_ms']:.3g})" for name in CONTENDERS]
        ratios = [
            f"{result[name]['best_ms'] / result['rnn_lm']['best_ms']:.2f} "
            f"({result[name]['median_ms'] / result['rnn_lm']['median_ms']:.2f})"
            for name in CONTENDERS[1:]
        ]
        share = result["products_ms"] / result["rnn_lm"]["best_ms"]
        peaks = [f"{result[name]['peak_mbytes']:.0f}" for name in CONTENDERS]
        rows.append([result["shape"], *times, f"{share:.0%}", *ratios, *peaks])
    return table([*head, *(f"{name}, peak MB" for name in CONTENDERS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="measuring time for each shape")
    parser.add_argument("--out", default="benchmarks/results/output.json", help="where the numbers go")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # of one contender, in a process of its own
    arguments = parser.parse_args()
    if arguments.peak:
        name, *shape = json.loads(arguments.peak)
        print(peak_bytes(name, Shape(*shape)))
        return
    measured(SHAPES, lambda shape: measure(shape, arguments.seconds), report, arguments.out)


if __name__ == "__main__":
    main()
