"""A trace of the training step: which of its parts takes how long."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from rnn_lm.training.loop import Trainer

STEPS = 10


def write_trace(trainer: "Trainer", folder: Path) -> None:
    """Writes a trace of `STEPS` steady steps in `folder`. They are taken for it alone: training then starts as ever.

    The parts go by the names batch, gather, recurrence, output_layer and optimizer.
    """
    state, step = trainer.state, trainer.first_step
    trainer.state = jax.tree.map(jnp.copy, state)  # as it is donated
    jax.block_until_ready(trainer.dispatch(step + STEPS))  # compiles
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        jax.block_until_ready(trainer.dispatch(step + 2 * STEPS))
    trainer.state = state
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    print(
        f"a trace of {STEPS} steps: {trace}, to be opened at https://ui.perfetto.dev\n"
        f"or: pip install xprof && xprof --logdir={folder}",
        file=sys.stderr,
    )
