"""The C++ of this folder as a library: a wheel's, or one that is compiled when first needed, in `~/.cache/rnn_lm`."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import alike
from rnn_lm.nn.cpu.compiler import FOLDER, compile_to, compiler, file_name, has_compiler, kind_of_cpu, reason_of

SYMBOLS = {
    "rnn_lm_forward": "RnnLmForward",
    "rnn_lm_backward": "RnnLmBackward",
    "rnn_lm_output": "RnnLmOutput",
    "rnn_lm_sample": "RnnLmSample",
}
COMPILING = "compiling the C++ kernels, once on this machine (RNN_LM_NATIVE=0 does without them) …"
_lock = threading.RLock()
_loaded: bool | None = None  # None: not tried yet


def is_wanted() -> bool:
    """Whether programs that are traced now may call the library: asked each time, and cheap."""
    return not why_not()


def is_available() -> bool:
    """Whether the library is there, and wanted; compiles and loads it the first time."""
    global _loaded
    with _lock:
        if is_wanted() and _loaded is None:
            path = build()
            _loaded = path is not None and _load(path)
    return is_wanted()


def call(name: str, results: Iterable[Any], *arguments: Array, **attributes: Any) -> list[Array]:
    """One of the library's functions. `results` are shapes, of float32, or `jax.ShapeDtypeStruct`s."""
    kinds = [jax.ShapeDtypeStruct(kind, jnp.float32) if isinstance(kind, tuple) else kind for kind in results]
    return alike((jax.ffi.ffi_call(name, kinds)(*arguments, **attributes), arguments))[0]


def absent(dtype: Any = jnp.float32) -> Array:
    """Stands for an array that is not there."""
    return jnp.zeros((0,), dtype)


def why_not() -> str:
    """Why the library is not available; an empty text where it is, or is being compiled."""
    return _obstacle() or ("it could not be compiled or loaded" if _loaded is False else "")


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
    """The library's file, compiled (in about 5 seconds) if it is not there yet; None where that cannot be done."""
    kind = kind_of_cpu()
    if kind is None or _obstacle():
        return None
    with _lock:
        if (packaged := _packaged(kind)) is not None:
            return packaged
        try:
            path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lm" / file_name(kind)
            if not path.exists():
                print(COMPILING, file=sys.stderr)
                compile_to(path, kind, include=jax.ffi.include_dir())
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: nobody's home
            print(f"no C++ kernels, JAX does everything: {reason_of(error)}", file=sys.stderr)
            return None
        return path


def _obstacle() -> str:
    """Why there can be no library, without a try; else an empty text."""
    kind = kind_of_cpu()
    if os.environ.get("RNN_LM_NATIVE") == "0":
        return "RNN_LM_NATIVE is 0"
    if kind is None:
        return "this CPU is not known to have AVX2"
    if _packaged(kind) is None and not has_compiler():
        return f"there is no C++ compiler {compiler()[0]}"
    return ""


@cache
def _packaged(kind: str) -> Path | None:
    """The library that came with the package."""
    return next(FOLDER.glob(f"kernels-{kind}-*.so"), None)
