"""The C++ of this folder as a library: compiled when first needed, and kept in `~/.cache/rnn_lm`."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import alike

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC"]
SYMBOLS = {"rnn_lm_forward": "RnnLmForward", "rnn_lm_backward": "RnnLmBackward", "rnn_lm_output": "RnnLmOutput"}
_lock = threading.RLock()
_loaded: bool | None = None  # None: not tried yet


def is_wanted() -> bool:
    """Whether programs that are traced now may call the library: asked each time, and cheap."""
    return os.environ.get("RNN_LM_NATIVE") != "0" and _loaded is not False and _is_there(*_compiler()[:1])


def is_available() -> bool:
    """Whether the library is there, and wanted; compiles and loads it the first time."""
    global _loaded
    with _lock:
        if is_wanted() and _loaded is None:
            path = build()
            _loaded = path is not None and _load(path)
    return is_wanted()


def call(name: str, results: Iterable[tuple[int, ...]], *arguments: Array, **attributes: Any) -> list[Array]:
    """One of the library's functions: float32 results of these shapes."""
    kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
    return alike((jax.ffi.ffi_call(name, kinds)(*arguments, **attributes), arguments))[0]


def absent(dtype: Any = jnp.float32) -> Array:
    """Stands for an array that is not there."""
    return jnp.zeros((0,), dtype)


def why_not() -> str:
    """Why the library is not available; an empty text where it is. Waits until it is compiled."""
    if os.environ.get("RNN_LM_NATIVE") == "0":
        return "RNN_LM_NATIVE is 0"
    if not _is_there(_compiler()[0]):
        return f"there is no C++ compiler {_compiler()[0]}"
    return "" if is_available() else "it could not be compiled or loaded"


def version() -> str:
    """Which machine code this is: other sources, compilers and CPUs may give other bits."""
    path = build()
    return "none" if path is None else path.stem.rpartition("-")[2][:8]


def _load(path: Path) -> bool:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # made for another C++ runtime, or in a folder that must not hold code
        return False
    for target, symbol in SYMBOLS.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    return True


def build() -> Path | None:
    """The library's file, compiled (in about 8 seconds) if it is not there yet; None where that cannot be done."""
    compiler = _compiler()
    if os.environ.get("RNN_LM_NATIVE") == "0" or not _is_there(compiler[0]):
        return None
    run = partial(subprocess.run, check=True, capture_output=True, timeout=120)
    with _lock:
        try:
            # Another source, JAX, compiler or CPU makes another library.
            about = _sources(), compiler, FLAGS, jax.lib.__version__, run([*compiler, "--version"]).stdout, _cpu()
            name = f"kernels-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"
            path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lm" / name
            if path.exists():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / name

                def compiled(source: Path) -> str:
                    out = str(Path(folder) / f"{source.stem}.o")
                    run([*compiler, *FLAGS, f"-isystem{jax.ffi.include_dir()}", "-c", str(source), "-o", out])
                    return out

                with ThreadPoolExecutor() as pool:
                    objects = list(pool.map(compiled, sorted(FOLDER.glob("*.cc"))))
                run([*compiler, *FLAGS, "-shared", *objects, "-o", str(made)])
                made.replace(path)
        except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: nobody's home
            return None
        return path


def _sources() -> list[bytes]:
    return [path.read_bytes() for pattern in ("*.h", "*.cc") for path in sorted(FOLDER.glob(pattern))]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


@cache
def _is_there(compiler: str) -> bool:
    return shutil.which(compiler) is not None


def _cpu() -> tuple[str, str]:
    """What code for this machine's own CPU depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return platform.machine(), next((line for line in lines if line.startswith(("flags", "Features"))), "")
