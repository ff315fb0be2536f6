"""Whether a program fits into the memory that is there, before it is run."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rnn_lm.data.batches import Batches
from rnn_lm.errors import UserError
from rnn_lm.members import Members
from rnn_lm.program import Numbers, Program
from rnn_lm.training.run import Run
from rnn_lm.training.step import new_state, train_steps


def check_memory(program: Program, numbers: Numbers) -> None:
    """Refuses what cannot fit: on a CPU, XLA was seen to wait for ever for an allocation that had failed."""
    state = jax.eval_shape(partial(new_state, program), numbers)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = physical_bytes()
    if jax.default_backend() == "cpu" and needed > there:
        raise UserError(
            f"out of memory: the model and its optimizer take {needed / 2**30:,.0f} GiB of this machine's "
            f"{there / 2**30:,.0f}; try a smaller config.model.num_hiddens"
        )


def physical_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def members_that_fit(runs: Sequence[Run], batches: Batches) -> int:
    """How many of these runs, all of one program, fit into the device at once, by the compiled program's account.

    Compiles for all of them and, where that is too many, for as many as that compilation promises.
    """
    program, numbers, count = runs[0].program, runs[0].numbers, len(runs)
    state = jax.eval_shape(partial(new_state, program), numbers)
    while count > 1:
        stacked = jax.tree.map(lambda a, n=count: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), (state, numbers))
        static = {"program": program, "members": Members(count)}  # in the Trainer's words, or it would compile anew
        compiled = train_steps.lower(stacked[0], jnp.int32(0), batches, stacked[1], **static).compile()
        needed, available = _bytes_of(compiled), available_bytes(*batches.rows.devices())
        if needed <= available:
            break
        count = max(1, min(count - 1, count * available // needed))
    return count


def _bytes_of(compiled: jax.stages.Compiled) -> int:
    """What a program takes on its device while it runs; 0 where the backend does not say."""
    sizes: Any = compiled.memory_analysis()
    if sizes is None:
        return 0
    inputs, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return inputs + outputs + sizes.temp_size_in_bytes


def available_bytes(device: jax.Device) -> int:
    """The memory that a program may take there: nine tenths of what is free, or of a CPU core's share."""
    if stats := device.memory_stats():
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(0.9 * physical_bytes() / jax.local_device_count())
