"""The cores that this process may use."""

import os


def usable_cores() -> int:
    """Their number. Systems without affinities, such as macOS, let a process use all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
