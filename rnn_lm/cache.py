"""What is kept on a machine between runs: downloads, and programs that JAX has compiled."""

import os
import platform
import warnings
import zlib
from pathlib import Path


def cache_folder() -> Path:
    """Raises RuntimeError where there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lm"


def keep_programs(within: Path | None = None) -> None:
    """Turns on JAX's compilation cache, in `cache_folder()` or another one. Call it before JAX is imported.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
    """
    try:
        # Programs are for one kind of CPU, which JAX does not look at, and machines may share the folder.
        folder = (within or cache_folder()) / f"programs-{zlib.crc32(_cpu().encode()):08x}"
    except RuntimeError:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # there are many small ones
    # A folder that is not writable, or a file that was cut short there, costs time at each start and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"
