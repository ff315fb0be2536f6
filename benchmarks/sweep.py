"""Many small models: 32 of them beside one alone, one after the other on each device and side by side (`vmap`).

    python -m benchmarks.sweep

Models of H 64 on minibatches of B 32, T 32 (V 65). A round is some training steps of every member, as `sweep` takes
them; all contenders are compiled first and run in turn. With --whole it also times the commands, `run.py` and `run.py
sweep` with 32 seeds of experiments/sweeps/learning_rate.py, from start to end.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import interleaved, machine, save, table
from rnn_lm.config import complete_config, tokens_per_step
from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.members import Members
from rnn_lm.plots.figure import new_figure, plot_rows, save_figure, style
from rnn_lm.program import batches_of
from rnn_lm.sweeps.sweep import use_all_cores
from rnn_lm.training.run import Run
from rnn_lm.training.step import new_state, train_steps

MEMBERS, V = 32, 65
CELLS = ("elman", "gru", "lstm")
SIZES = (1, 2, 4, 8, 16, 32)
SWEEP = """
import runpy
from rnn_lm import sweeps

def get_config():
    return runpy.run_path("experiments/sweeps/learning_rate.py")["get_config"]()

def sweep():
    return sweeps.seeds({members})
"""


def runs_of(cell: str, count: int) -> list[Run]:
    """Runs that differ in their seeds, on a made-up text."""
    ids = np.random.default_rng(0).integers(1, V, 500_000)
    part = Split(ids, len(ids) - 1)
    vocabulary = Vocabulary([*map(chr, range(200, 200 + V - 1))], kind="char", normalize="none")
    corpus = Corpus("random", "", vocabulary, part, part, part)
    given = {"batch_size": 32, "segment_length": 32, "model": {"cell": cell, "num_hiddens": 64}}
    configs = [complete_config(given | {"seed": seed}) for seed in range(count)]
    return [Run(config, Path(), corpus) for config in configs]


def one_after_the_other(runs: list[Run], steps: int) -> Callable[[], None]:
    """So many steps of every run, on all devices."""
    devices = jax.local_devices()
    contenders: list[Any] = [None] * len(runs)

    def work(device_number: int) -> None:
        with jax.default_device(devices[device_number]):
            for i in range(device_number, len(runs), len(devices)):
                contenders[i] = contenders[i] or at_once(runs[i : i + 1], steps)
                contenders[i]()

    pool = ThreadPoolExecutor(len(devices))
    return lambda: [*pool.map(work, range(min(len(devices), len(runs))))] and None


def at_once(runs: list[Run], steps: int) -> Callable[[], None]:
    """The same of all as one program."""
    members, program = Members(len(runs)), runs[0].program
    batches, numbers = batches_of(program, runs[0].corpus), members.stack([run.numbers for run in runs])
    now: list[Any] = [members.stack([new_state(program, run.numbers) for run in runs]), 0]

    def go() -> None:
        now[1] += steps
        state, until = now
        now[0], report = train_steps(state, jnp.int32(until), batches, numbers, program=program, members=members)
        jax.block_until_ready(report)

    return go


def measure_cells(seconds: float, steps: int) -> list[dict[str, Any]]:
    """32 members beside one, for each cell."""
    rows = []
    for cell in CELLS:
        runs = runs_of(cell, MEMBERS)
        contenders = {
            "alone": one_after_the_other(runs[:1], steps),
            "sequential": one_after_the_other(runs, steps),
            "vmap": at_once(runs, steps),
        }
        for run in contenders.values():
            run()
        timings = interleaved(contenders, seconds, least=3)
        row: dict[str, Any] = {"cell": cell, "seconds": {name: timing.seconds for name, timing in timings.items()}}
        for mode in ("sequential", "vmap"):
            row[mode] = {
                "best": timings[mode].best / timings["alone"].best,
                "median": timings[mode].median / timings["alone"].median,
            }
        rows.append(row)
        print(f"{cell}: {MEMBERS} members take {row['sequential']} (sequential), {row['vmap']} (vmap)", flush=True)
    return rows


def measure_sizes(cell: str, seconds: float, steps: int) -> list[dict[str, Any]]:
    """Tokens per second over the number of members."""
    runs, rows = runs_of(cell, max(SIZES)), []
    for size in SIZES:
        contenders = {
            "sequential": one_after_the_other(runs[:size], steps),
            "vmap": at_once(runs[:size], steps),
        }
        for run in contenders.values():
            run()
        timings = interleaved(contenders, seconds, least=3)
        tokens = size * steps * tokens_per_step(runs[0].config)
        rows.append({"members": size} | {name: tokens / timing.best for name, timing in timings.items()})
        print(rows[-1], flush=True)
    return rows


def measure_commands() -> dict[str, float]:
    """Seconds of the whole commands, one run and 32, in fresh processes; steps, scoring and files included."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "seeds.py"
        config.write_text(SWEEP.format(members=MEMBERS))
        seconds = {}
        for name, verb in (("alone", []), ("sweep", ["sweep"])):
            start = time.perf_counter()
            command = [sys.executable, "run.py", *verb, f"--config={config}", f"--workdir={folder}/{name}"]
            subprocess.run(command, check=True, capture_output=True)
            seconds[name] = time.perf_counter() - start
            print(name, f"{seconds[name]:.1f} s", flush=True)
    return seconds


def draw(path: str, rows: list[dict[str, Any]], what: str) -> None:
    figure, [axes] = new_figure(f"Training many models at once: {what}", which_is_faster(rows))
    for number, mode in enumerate(("sequential", "vmap")):
        thousands = [{"members": row["members"], mode: row[mode] / 1e3} for row in rows]
        name = {"sequential": "one after the other (sequential)", "vmap": "side by side (vmap)"}[mode]
        plot_rows(axes, thousands, "members", mode, **style(number), label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["members"] for row in rows], [str(row["members"]) for row in rows])
    axes.set(xlabel="members", ylabel="thousand tokens per second, of all together", ylim=(0, None))
    save_figure(figure, Path(path))


def which_is_faster(rows: list[dict[str, Any]]) -> str:
    """Both ways with the most members, and what more members gain beside one."""
    one, most = rows[0], rows[-1]
    names = {"sequential": "one after the other", "vmap": "side by side"}
    fast, slow = sorted(names, key=lambda mode: most[mode], reverse=True)
    return (
        f"{most['members']} members train {most[fast] / most[slow]:.1f} times as fast {names[fast]} as {names[slow]}, "
        f"and {most[fast] / one[fast]:.1f} times as fast as one member does."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for each cell; a quarter for each number of members"
    )
    parser.add_argument("--steps", type=int, default=100, help="training steps of a round")
    parser.add_argument("--whole", action="store_true", help="time the commands as well: minutes")
    parser.add_argument("--out", default="benchmarks/results/sweep.json", help="where the numbers go")
    parser.add_argument("--plot", default="docs/sweeps/population.png", help="where the picture goes")
    arguments = parser.parse_args()
    use_all_cores()
    commands = measure_commands() if arguments.whole else None
    cells = measure_cells(arguments.seconds, arguments.steps)
    sizes = measure_sizes("gru", arguments.seconds / 4, arguments.steps)
    about = machine()
    save(arguments.out, {"machine": about, "cells": cells, "sizes": sizes, "commands": commands})
    Path(arguments.plot).parent.mkdir(parents=True, exist_ok=True)
    draw(
        arguments.plot,
        sizes,
        f"GRU of 64 units on 32 × 32 tokens; {about['cpu']}, {about['cores']} cores, {about['device']}",
    )
    print(about)
    ratios = [
        [f"{row[mode][which]:.1f}" for mode in ("sequential", "vmap") for which in ("best", "median")] for row in cells
    ]
    head = ["32 members, times one alone", "sequential, best", "median", "vmap, best", "median"]
    print(table(head, [[row["cell"], *ratio] for row, ratio in zip(cells, ratios, strict=True)]))
    if commands:
        print(f"commands: {commands['sweep']:.0f} s of sweep, {commands['alone']:.0f} s of one run alone")


if __name__ == "__main__":
    main()
