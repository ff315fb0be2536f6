"""What the benchmarks share: shapes, interleaved timing, the machine, results as JSON and as a table."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Whose versions a number depends on, where they are installed.
PACKAGES = ("jax", "flax", "dm-haiku", "keras", "torch", "rnn_lm", "jax-cuda12-plugin", "jax-cuda13-plugin",
            "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model and a minibatch."""

    cell: str
    vocab_size: int
    hidden: int
    batch: int
    steps: int  # T
    layers: int = 1
    embed: int = 0  # 0: one-hot tokens
    dtype: str = "float32"  # of the products' factors; parameters are float32

    @property
    def name(self) -> str:
        layers = f"{self.layers}×" if self.layers > 1 else ""
        return f"{self.cell} V{self.vocab_size} H{layers}{self.hidden} B{self.batch} T{self.steps}"


SHAPES = [
    Shape("elman", 28, 256, 32, 32),
    Shape("elman", 28, 512, 32, 35),
    Shape("gru", 65, 256, 50, 50),
    Shape("lstm", 65, 128, 50, 50, layers=2),  # char-rnn's
    Shape("lstm", 65, 512, 50, 64),
    Shape("lstm", 10_000, 650, 20, 35, layers=2, embed=650),  # Zaremba's medium
    Shape("elman", 28, 32, 1024, 32),  # d2l's
    Shape("elman", 65, 64, 32, 32),
    Shape("gru", 65, 32, 32, 32),
    Shape("lstm", 65, 64, 32, 32),
]


@dataclass
class Timing:
    """Seconds of one contender's repetitions."""

    seconds: list[float]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(
    contenders: dict[str, Callable[[], Any]], seconds: float, least: int = 5, pause: float = 0.0
) -> dict[str, Timing]:
    """Runs all contenders in turn, again and again for about `seconds` in all; each is ready (compiled) already.

    A pause of some milliseconds before each lets the threads of the one before go to sleep.
    """
    timings: dict[str, Timing] = {name: Timing([]) for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(timings.values())).seconds) < least:
        for name, run in contenders.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            timings[name].seconds.append(time.perf_counter() - start)
    return timings


def products_seconds(sizes: Iterable[tuple[int, int, int]], seconds: float) -> float:
    """Seconds of products [rows, inner] [inner, columns], one after the other, the best of several each."""
    total = 0.0
    for rows, inner, columns in sizes:
        a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
        multiply = jax.jit(jnp.matmul).lower(a, b).compile()
        timing = interleaved({"": lambda a=a, b=b, f=multiply: f(a, b).block_until_ready()}, seconds)
        total += timing[""].best
    return total


def machine() -> dict[str, Any]:
    """What a number depends on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "vectors": next((v for v in ("avx512f", "avx2") if v in flags), ""),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES if _installed(name)},
    }


def save(path: str, results: dict[str, Any]) -> None:
    """Writes JSON; whoever is stopped meanwhile leaves the file as it was."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    new = Path(f"{path}.new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(path)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def measured(shapes: Iterable[Any], measure: Callable, report: Callable[[list], str], out: str) -> None:
    """Measures shape by shape and shows each row of the report at once; at the end saves and prints everything."""
    results = []
    for shape in shapes:
        results.append(measure(shape))
        print(report(results[-1:]).splitlines()[2], flush=True)
    there = machine()
    save(out, {"machine": there, "results": results})
    print("\n" + ", ".join(f"{key} {value}" for key, value in there.items()) + "\n")
    print(report(results))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True
