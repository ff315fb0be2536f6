"""Whole training steps, beside PyTorch, flax's nnx.RNN and Haiku: same shapes, same threads, interleaved in one run.

A step is: token ids (one-hot, or an embedding) → recurrent layers → output layer → mean cross-entropy → gradient →
clipping to a global norm of 1 → Adam, the state carried on. JAX contenders take several steps in one dispatch, by one
and the same loop; PyTorch takes the same number of steps.

python -m benchmarks.training
"""

import argparse
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch

from benchmarks.common import SHAPES, Shape, interleaved, machine, measured, products_seconds, table
from benchmarks.contenders import JAX_CONTENDERS, JaxTrainer, TorchTrainer, products

PEERS = ["torch", "nnx.RNN", "haiku"]


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """All contenders on one shape."""
    count = 2 if shape.vocab_size > 1000 else 8  # steps in one dispatch
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, shape.vocab_size, (2, count, shape.steps, shape.batch), dtype=np.int32)
    trainers: dict[str, Any] = {"torch": TorchTrainer(shape, inputs, labels)}
    for name in ("rnn_lm", "nnx.RNN", "haiku"):
        trainers[name] = JaxTrainer(JAX_CONTENDERS[name], shape, inputs, labels)
    for name, trainer in trainers.items():
        first = trainer.run()  # all start as good as guessing, which shows that they do the same work
        assert abs(first - np.log(shape.vocab_size)) < 1.0, f"{name} starts with a loss of {first}"
    timings = interleaved({name: trainer.run for name, trainer in trainers.items()}, seconds, pause=0.01)
    result: dict[str, Any] = {
        "shape": shape.name,
        "steps_per_dispatch": count,
        "gemm_limit_ms": 1e3 * products_seconds(products(shape), seconds=0.3),
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
    chosen = [shape for shape in SHAPES if arguments.shapes in shape.name]
    if not chosen:
        parser.error(f"no shape's name contains {arguments.shapes!r}: {', '.join(shape.name for shape in SHAPES)}")
    torch.set_num_threads(machine()["cores"])
    measured(chosen, lambda shape: measure(shape, arguments.seconds), report, arguments.out)


if __name__ == "__main__":
    main()
