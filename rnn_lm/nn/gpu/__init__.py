"""The recurrence as kernels for NVIDIA's Hopper GPUs (H100, H200). Without them the scan does everything.

`RNN_LM_GPU_KERNELS=1` in the environment, looked at each time a program is traced, turns them on. They are off unless
asked for: one size gave wrong gradients, for a reason that is not known (benchmarks/NOTES.md).
"""

import os
from typing import Any

import jax


def is_wanted() -> bool:
    """Whether programs that are traced now may have the kernels."""
    return os.environ.get("RNN_LM_GPU_KERNELS") == "1" and is_possible()


def is_possible() -> bool:
    """Whether there is a GPU that they are for, and a JAX that compiles them."""
    if jax.__version_info__ < (0, 11) or jax.default_backend() != "gpu":
        return False
    return getattr(jax.devices()[0], "compute_capability", "") == "9.0"


def run_of(scan: Any, cell: Any, *layer: Any) -> Any:
    """A layer of `fused` by the kernels, differentiable; None where they do not fit."""
    from rnn_lm.nn.gpu import recurrence  # Pallas takes a second to import

    plan = recurrence.plan_for(cores(), scan, cell, *layer)
    return None if plan is None else recurrence.Kernels(scan, plan).run()


def cores() -> int:
    """Of the GPU: its multiprocessors."""
    return jax.devices()[0].core_count
