"""Training one model on two cores: by one device, by two devices of a process, by two processes of a core each.

    python -m benchmarks.devices [--rounds=3]

The arrangements take turns. Tokens per second are those of a run's summary: compiling, evaluations and saving do not
count. "one core" is one device on one core, half of what could be reached.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine, save, table
from rnn_lm.files import read_json

SHAPES = {"GRU, H 64, B 32": (64, 32, 1500), "GRU, H 256, B 64": (256, 64, 150), "GRU, H 512, B 256": (512, 256, 20)}
FLAGS = ["--config.corpus.valid_fraction=0.001", "--config.corpus.test_fraction=0", "--config.segment_length=64",
         "--config.eval_every=0", "--config.save_every=0"]  # fmt: skip
# Cores of each process, and devices.
ARRANGEMENTS = {
    "one core": [{0}],
    "one device": [{0, 1}],
    "two devices": [{0, 1}],
    "two processes": [{0}, {1}],
}


def tokens_per_second(name: str, units: int, batch_size: int, steps: int) -> float:
    """Of one run, in processes of its own."""
    cores = ARRANGEMENTS[name]
    devices = 2 if name.startswith("two") else 1
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
        free.close()
        flags = [f"--workdir={folder}/run", f"--config.steps={steps}", f"--config.mesh.data={devices}", *FLAGS]
        flags += [f"--config.model.num_hiddens={units}", f"--config.batch_size={batch_size}"]
        if len(cores) > 1:
            flags += ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={len(cores)}"]
        started = []
        for number, own in enumerate(cores):
            more = [f"--process_id={number}"] if len(cores) > 1 else []
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices // len(cores) or 1)}
            started.append(
                subprocess.Popen(
                    [sys.executable, "run.py", "--config=experiments/char.py", *flags, *more],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            os.sched_setaffinity(started[-1].pid, own)  # before it starts threads
        for process in started:
            _, told = process.communicate()
            if process.returncode:
                raise RuntimeError(told.decode())
        return read_json(Path(folder) / "run" / "summary.json")["tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each arrangement is measured")
    parser.add_argument("--out", default="benchmarks/results/devices.json", help="JSON file for the results")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "shapes": {}}
    for shape, sizes in SHAPES.items():
        measured: dict[str, list[float]] = {name: [] for name in ARRANGEMENTS}
        for _ in range(arguments.rounds):
            for name, speeds in measured.items():
                speeds.append(tokens_per_second(name, *sizes))
                print(shape, name, f"{speeds[-1]:,.0f}", file=sys.stderr, flush=True)
        result["shapes"][shape] = {
            name: {"best": max(speeds), "median": statistics.median(speeds)} for name, speeds in measured.items()
        }
    rows = [
        [shape, *(f"{each['best']:,.0f} ({each['median']:,.0f})" for each in of_shape.values())]
        for shape, of_shape in result["shapes"].items()
    ]
    print(table(["tokens/s, best (median)", *ARRANGEMENTS], rows))
    save(arguments.out, result)


if __name__ == "__main__":
    main()
