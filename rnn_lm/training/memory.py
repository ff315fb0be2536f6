"""Checks before training that a program fits into memory."""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rnn_lm.data.batches import Batches
from rnn_lm.errors import UserError
from rnn_lm.members import Members
from rnn_lm.mesh import ONE_DEVICE, WHOLE, DataMesh
from rnn_lm.program import Numbers, Program
from rnn_lm.training.step import new_state, specs_of, train_steps


def check_memory(program: Program, numbers: Numbers) -> None:
    """Raises UserError if the state exceeds the memory of a CPU: XLA may hang when an allocation fails there."""
    state = jax.eval_shape(partial(new_state, program), numbers)
    copies = min(program.mesh_data, jax.local_device_count())
    needed = copies * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    available = physical_bytes()
    if jax.default_backend() == "cpu" and needed > available:
        raise UserError(
            f"out of memory: the model and its optimizer need {needed / 2**30:,.0f} GiB, this machine has "
            f"{available / 2**30:,.0f} GiB; try a smaller config.model.num_hiddens"
        )


def physical_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def members_that_fit(
    program: Program, numbers: Numbers, count: int, batches: Batches, mesh: DataMesh = ONE_DEVICE
) -> int:
    """The number of members, at most `count`, that fit into the memory of the device, or of each of a mesh, at once.

    Compiles for all of them. If they need too much memory, compiles again for as many as should fit.
    """
    state = jax.eval_shape(partial(new_state, program), numbers)
    while count > 1:
        stacked = jax.tree.map(lambda a, n=count: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), (state, numbers))
        # As the Trainer passes them, to compile only once.
        static = {"program": program, "members": Members(count), "mesh": mesh}
        given, own, until = mesh.shapes((*stacked, jnp.int32(0)), (specs_of(Members(count)), WHOLE, WHOLE))
        compiled = train_steps.lower(given, until, batches, own, **static).compile()
        needed, available = _bytes_of(compiled), min(map(available_bytes, batches.rows.devices()))
        if needed <= available:
            break
        count = max(1, min(count - 1, count * available // needed))
    return count


def _bytes_of(compiled: jax.stages.Compiled) -> int:
    """The memory that a program takes on its device; 0 if the backend does not tell."""
    sizes: Any = compiled.memory_analysis()
    if sizes is None:
        return 0
    inputs, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return inputs + outputs + sizes.temp_size_in_bytes


def available_bytes(device: jax.Device) -> int:
    """Nine tenths of a device's free memory, or of a CPU core's share of the machine's."""
    if stats := device.memory_stats():
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(0.9 * physical_bytes() / jax.local_device_count())
