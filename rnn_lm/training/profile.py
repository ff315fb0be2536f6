"""A trace of the training step, and which of its parts takes how long."""

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from rnn_lm.training.loop import Trainer

STEPS = 10
PARTS = ("batch", "gather", "recurrence", "output_layer", "optimizer")  # the named scopes, the innermost counts


def write_trace(trainer: "Trainer", folder: Path) -> None:
    """Writes a trace of `STEPS` steady steps in `folder` and tells the share of each part in their time.

    The steps are taken for it alone: training then starts as ever.
    """
    state, step = trainer.state, trainer.first_step
    trainer.state = jax.tree.map(jnp.copy, state)  # as it is donated
    program = trainer.compiled().as_text() or ""
    jax.block_until_ready(trainer.dispatch(step + STEPS))  # compiles
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        jax.block_until_ready(trainer.dispatch(step + 2 * STEPS))
    trainer.state = state
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    times = seconds_of_parts(trace, program)
    lines = [
        f"  {part:<24}{time / STEPS * 1e3:>8.2f} ms{time / sum(times.values()):>6.0%}" for part, time in times.items()
    ]
    print(
        f"a training step, by its parts (the sum over all threads of the device):\n{chr(10).join(lines)}\n"
        f"the trace: {trace}, to be opened at https://ui.perfetto.dev\n"
        f"or: pip install xprof && xprof --logdir={folder}",
        file=sys.stderr,
    )


def seconds_of_parts(trace: Path, program: str) -> dict[str, float]:
    """How long the device was at each part, forward and backward, by a trace and the text of the compiled program."""
    scopes = dict(re.findall(r'%?([\w.-]+) = .*op_name="([^"]*)"', program))
    loops = set(re.findall(r"%?([\w.-]+) = .* (?:while|call|conditional)\(", program))  # their bodies are told too
    times: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        operation = event.get("args", {}).get("hlo_op")
        if operation and operation not in loops:
            scope = scopes.get(operation, "")
            found = [(scope.rfind(part), part) for part in PARTS if part in scope]
            way = " backward" if "transpose(" in scope else ""
            times[max(found)[1] + way if found else "the rest"] += event["dur"] / 1e6
    return dict(times.most_common())
