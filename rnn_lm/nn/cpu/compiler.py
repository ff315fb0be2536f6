"""Compiles the C++ of this folder for a kind of CPU. Imports the standard library only, as `setup.py` runs it too."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fPIC")

# Kinds of x86 CPUs, the fastest first, and their features as Linux names them.
V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
LEVELS = {"x86-64-v4": V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, "x86-64-v3": V3}


def kind_of_cpu() -> str | None:
    """What kernels are compiled for on this machine; None if its CPU is of no such kind."""
    kinds = kinds_here()
    return next((kind for kind in kinds if LEVELS.get(kind, set()) <= _cpu_features()), None)


def kinds_here() -> list[str]:
    """The kinds of CPU that this machine compiles for."""
    machine = platform.machine()
    return list(LEVELS) if machine == "x86_64" else [machine]


def compiler() -> list[str]:
    """The command; it may not exist."""
    return shlex.split(os.environ.get("CXX") or "c++")


def has_compiler() -> bool:
    return _is_there(compiler()[0])


@cache
def _is_there(command: str) -> bool:
    return shutil.which(command) is not None


def file_name(kind: str) -> str:
    """Of the library for a kind of CPU. Other sources, compilers or flags may give other bits, and another name."""
    sources = [path.read_bytes() for pattern in ("*.h", "*.cc") for path in sorted(FOLDER.glob(pattern))]
    about = sources, _flags(kind), _run([*compiler(), "--version"]).stdout
    return f"kernels-{kind}-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"


def compile_to(path: Path, kind: str, *, include: str, link: tuple[str, ...] = ()) -> None:
    """Makes the library, whole or not at all; `include` is the folder of XLA's headers.

    Raises:
      OSError, subprocess.SubprocessError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def compiled(source: Path) -> str:
            made = str(Path(folder) / f"{source.stem}.o")
            _run([*compiler(), *_flags(kind), f"-isystem{include}", "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compiled, sorted(FOLDER.glob("*.cc"))))
        made = Path(folder) / path.name
        _run([*compiler(), *_flags(kind), "-shared", *link, *objects, "-o", str(made)])
        made.replace(path)


def reason_of(error: Exception) -> str:
    """Why nothing was made, in one line: the compiler's first words."""
    said = getattr(error, "stderr", None) or b""
    return next(iter(said.decode(errors="replace").splitlines()), str(error))


_run = partial(subprocess.run, check=True, capture_output=True, timeout=300)


def _flags(kind: str) -> list[str]:
    return [*FLAGS, *([f"-march={kind}"] if kind in LEVELS else [])]


@cache
def _cpu_features() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())
