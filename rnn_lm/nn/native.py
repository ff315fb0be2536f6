"""The door to machine code. Without the folders `cpu` and `gpu` there is none, and the scan does everything."""

from typing import Any

cpu: Any
try:
    from rnn_lm.nn import cpu
except ImportError:
    cpu = None
gpu: Any
try:
    from rnn_lm.nn import gpu
except ImportError:
    gpu = None


def wanted() -> tuple[bool, bool]:
    """Whether programs traced now may call machine code, and have kernels for a GPU."""
    return is_wanted(), gpu is not None and gpu.is_wanted()


def is_wanted() -> bool:
    """Whether programs traced now may call machine code. Cheap, asked at each call of `unroll`."""
    return cpu is not None and cpu.is_wanted()


def is_available() -> bool:
    """Whether machine code is there and wanted; compiles and loads it the first time."""
    return cpu is not None and cpu.is_available()


def version() -> str:
    """Which machine code computes here; "none" where none does."""
    return cpu.version() if is_available() else "none"


def on_gpu(scan: Any, *layer: Any) -> Any:
    """The scan by kernels for the GPU that is here, differentiable; None without."""
    return gpu.run_of(scan, *layer) if wanted()[1] else None
