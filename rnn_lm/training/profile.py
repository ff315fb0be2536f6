"""A trace of the training step, and the time of each of its parts."""

import gzip
import json
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from rnn_lm.training.loop import Trainer

STEPS = 10
# The named scopes of a step. In nested scopes the innermost counts.
PARTS = ("batch", "projection", "gather", "recurrence", "hidden_layer", "output_layer", "optimizer")


def write_trace(trainer: "Trainer", folder: Path) -> None:
    """Traces `STEPS` extra steps, writes the trace to `folder`, and prints the time of each part of a step.

    The steps leave the run unchanged, and its `wall_seconds` do not count them.
    """
    started, state, first = time.perf_counter(), trainer.state, trainer.first_step
    print(f"tracing {STEPS} steps …", file=sys.stderr, flush=True)
    program = trainer.traced().lower().compile().as_text() or ""
    trainer.state = jax.tree.map(jnp.copy, state)  # a dispatch donates it
    jax.block_until_ready(trainer.dispatch(first + 1))
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        report = jax.device_get(trainer.dispatch(first + 1 + STEPS))
    trainer.state = state
    traced = int(report["step"]) - first - 1  # fewer if the loss is not finite
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    lines = ["time of each part of a training step (sum over threads):"]
    times = seconds_of_parts(trace, program)
    for part, seconds in times.items():
        lines.append(f"  {part:<24}{seconds / max(traced, 1) * 1e3:>8.2f} ms{seconds / sum(times.values()):>6.0%}")
    lines.append(f"the trace is {trace}; open it at https://ui.perfetto.dev")
    lines.append(f"or: pip install xprof && xprof --logdir={shlex.quote(str(folder))}")
    print(*lines, sep="\n", file=sys.stderr)
    trainer.started += time.perf_counter() - started


def seconds_of_parts(trace: Path, program: str) -> dict[str, float]:
    """Seconds of each part, forward and backward, from a trace and the text of the compiled program."""
    scopes = dict(re.findall(r'%?([\w.-]+) = .*op_name="([^"]*)"', program))
    loops = set(re.findall(r"%?([\w.-]+) = .* (?:while|call|conditional)\(", program))  # the trace has their bodies too
    times: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        operation = event.get("args", {}).get("hlo_op")
        if operation and operation not in loops:
            scope = scopes.get(operation, "")
            *names, _ = re.split(r"[/()]+", scope)  # the last is the operation, perhaps a gather
            parts = [name for name in names if name in PARTS] or ["other"]
            times[parts[-1] + (" backward" if "transpose" in names else "")] += event["dur"] / 1e6
    return dict(times.most_common())
