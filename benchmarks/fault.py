"""Looks for the fault of the kernels for GPUs: one layer had wrong gradients from the second run on (NOTES.md).

    python -m benchmarks.fault [--runs=12]

An Elman layer, H 512, B 40, T 12, in float32 products. In each variant its gradient is compiled anew, run again and
again, and compared with the scan's, first alone on the GPU and then beside a process that keeps it busy. A wrong run's
row says where: the rows of the batch, and how many steps had been gone back when it was first wrong. It needs a Hopper
GPU and jax 0.11, and takes about three minutes.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import machine, table
from rnn_lm.nn import gpu
from rnn_lm.nn.cells import ElmanCell
from rnn_lm.nn.recurrence import unroll

D, H, B, T = 5, 512, 40, 12
TOLERANCE = 1e-4  # of the largest number; right runs were within 5e-6

# What XLA is told, and what is changed in `nn/gpu/tile.py`.
AS_SEEN = {"xla_gpu_autotune_level": 0}
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "as it is": (AS_SEEN, ""),
    "as it was: only the thread that signals fences": (AS_SEEN, "no fence"),
    "as it was, without command buffers": (AS_SEEN | {"xla_gpu_enable_command_buffer": ""}, "no fence"),
    "as it was, without dependent launches": (AS_SEEN | {"xla_gpu_enable_pdl_launch": False}, "no fence"),
    "as it was, autotuned": ({}, "no fence"),
    "as it was, products of 128 columns": (AS_SEEN, "narrow"),
    "as it was, and all threads fence after the wait": (AS_SEEN, "late fence"),
}


@contextmanager
def changed(what: str) -> Iterator[None]:
    """The kernels' code with a change."""
    if not what:
        yield
        return
    from rnn_lm.nn.gpu import tile

    fence, hear = tile._fence, tile.Tile.hear

    def heard(self: Any, i: Any) -> None:
        hear(self, i)
        fence("fence.acq_rel.gpu;")

    no_fence = mock.patch.object(tile, "_fence", lambda how: None if "acq_rel" in how else fence(how))
    narrow = mock.patch.object(tile, "WIDEST", 128) if what == "narrow" else nullcontext()
    late = mock.patch.object(tile.Tile, "hear", heard) if what == "late fence" else nullcontext()
    with no_fence, narrow, late:
        yield


def gradient() -> tuple[Any, tuple]:
    """Of a loss that reads every output and the last carry, and its arguments."""
    cell = ElmanCell(D, H, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell, nnx.Param)
    x, carry, w = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(T, B, D), (B, H), (T, B, H)])
    )

    def loss(params: Any, carry: jax.Array, x: jax.Array) -> jax.Array:
        last, y = unroll(nnx.merge(graphdef, params), carry, x)
        return jnp.sum(y * w) + jnp.sum(last**2)

    return jax.grad(loss, argnums=(0, 1, 2)), (params, carry, x)


def run(options: dict[str, Any], runs: int, kernels: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """d_carry [B, H] and d_x [T, B, D] of each run of one compiled program."""
    jax.clear_caches()
    function, arguments = gradient()
    on = {"RNN_LM_GPU_KERNELS": str(int(kernels))}
    with mock.patch.dict(os.environ, on), jax.default_matmul_precision("highest"):
        compiled = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    return [jax.device_get(compiled(*arguments))[1:] for _ in range(runs)]


def wrong(got: tuple[np.ndarray, np.ndarray], want: tuple[np.ndarray, np.ndarray]) -> tuple[float, str]:
    """The error of d_carry, and where the run is wrong: "" if nowhere."""
    d_carry, d_x = (np.abs(a - b).max(-1) / np.abs(b).max() for a, b in zip(got, want, strict=True))
    rows = np.flatnonzero(d_carry > TOLERANCE).tolist()
    steps, _ = np.nonzero(d_x > TOLERANCE)
    if not rows and not steps.size:
        return float(d_carry.max()), ""
    return float(d_carry.max()), f"rows {rows}, {T - 1 - steps.max() if steps.size else T} steps back"


def rows_of(where: str, runs: int) -> Iterator[list[str]]:
    """Each variant's row of the table."""
    (want,) = run({}, 1, kernels=False)
    for name, (options, what) in VARIANTS.items():
        try:
            with changed(what):
                found = [wrong(got, want) for got in run(options, runs, kernels=True)]
        except Exception as error:
            yield [where, name, f"{type(error).__name__}: {error}".splitlines()[0][:200], "", ""]
            continue
        places = [f"run {i}: {place}" for i, (_, place) in enumerate(found, start=1) if place]
        yield [where, name, f"{len(places)} of {runs}", f"{max(e for e, _ in found):.1e}", "; ".join(places[:3])]


def busy() -> None:
    """Multiplies until it is ended; says when it begins."""
    multiply = jax.jit(lambda a: a @ a / 4096)
    a = multiply(jnp.ones((4096, 4096))).block_until_ready()
    print("busy", flush=True)
    while True:
        a = multiply(a).block_until_ready()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="of each program")
    parser.add_argument("--busy", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other process needs memory as well
    if arguments.busy:
        busy()
    if not gpu.is_possible():
        parser.error("needs a Hopper GPU and jax 0.11 or newer")
    rows: list[list[str]] = []

    def measure(where: str) -> None:
        for row in rows_of(where, arguments.runs):
            rows.append(row)
            print(", ".join(row), file=sys.stderr, flush=True)

    measure("alone")
    other = subprocess.Popen([sys.executable, "-m", "benchmarks.fault", "--busy"], stdout=subprocess.PIPE, text=True)
    try:
        if other.stdout is None or not other.stdout.readline():
            sys.exit("the process that keeps the GPU busy has ended")
        measure("beside another")
    finally:
        other.kill()
    print(", ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print(table(["where", "variant", "wrong runs", "largest error of d_carry", "the first of them"], rows))


if __name__ == "__main__":
    main()
