"""The recurrence of the three cells as machine code for CPUs.

`native.cc` is compiled when it is first needed, by the machine's own C++ compiler, and kept in `~/.cache/rnn_lm`. Where
there is no compiler, and with `RNN_LM_NATIVE=0` in the environment, `unroll` does without. The two ways differ by
rounding.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rnn_lm.nn.arrays import alike, rows, shifted
from rnn_lm.nn.cells import Cell, ElmanCell, GRUCell, LSTMCell, LSTMState

SOURCE = Path(__file__).with_suffix(".cc")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
# `enum Cell` of the source.
NUMBERS = {"tanh": 0, "relu": 1, "identity": 2, GRUCell: 3, LSTMCell: 4}
_building = threading.Lock()


def is_for(cell: Cell, arguments: tuple[Any, Array, Any, Array]) -> bool:
    """Whether the machine code runs this cell: plain, in float32, with one batch axis and more than one step."""
    *_, projected = arguments
    plain = _kind(cell) in NUMBERS and cell.scale_h is None
    dtypes = {jnp.dtype(cell.dtype or projected.dtype), *(a.dtype for a in jax.tree.leaves(arguments))}
    sequences = projected.ndim == 3 and projected.shape[0] > 1  # one step is not worth the packing of w_hh
    return plain and dtypes == {jnp.dtype(jnp.float32)} and sequences and is_available()


def _kind(cell: Cell) -> Any:
    return cell.activation if type(cell) is ElmanCell else type(cell)


@cache
def is_available() -> bool:
    """Whether there is machine code for JAX's default device; loads it."""
    path = build() if jax.default_backend() == "cpu" else None
    if path is None:
        return False
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # made for another C++ runtime, or in a folder that must not hold code
        return False
    for name, function in (("forward", library.RnnLmForward), ("backward", library.RnnLmBackward)):
        jax.ffi.register_ffi_target(f"rnn_lm_{name}", jax.ffi.pycapsule(function), platform="cpu")
    return True


def build() -> Path | None:
    """The library's file, compiled (in about 4 seconds) if it is not there yet; None where that cannot be done."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if os.environ.get("RNN_LM_NATIVE") == "0" or shutil.which(compiler[0]) is None:
        return None
    run = partial(subprocess.run, check=True, capture_output=True, timeout=120)
    with _building:
        try:
            # Another source, JAX, compiler or CPU makes another library.
            about = SOURCE.read_bytes(), FLAGS, jax.lib.__version__, run([*compiler, "--version"]).stdout, _cpu()
            name = f"recurrence-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"
            path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lm" / name
            if path.exists():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / name
                run([*compiler, *FLAGS, f"-isystem{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)])
                made.replace(path)
        except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: nobody's home
            return None
        return path


def _cpu() -> tuple[str, str]:
    """What code for this machine's own CPU depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return platform.machine(), next((line for line in lines if line.startswith(("flags", "Features"))), "")


def accelerated(reference: Callable, cell: Cell, reverse: bool) -> Callable:
    """`reference(small, w_hh, carry, projected) → carries` and its gradient by the machine code."""
    is_lstm, is_gru = isinstance(cell, LSTMCell), isinstance(cell, GRUCell)

    def call(name: str, *arguments: Array, results: list[tuple[int, ...]]) -> list[Array]:
        kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
        made = jax.ffi.ffi_call(name, kinds)(*arguments, cell=NUMBERS[_kind(cell)], reverse=reverse)
        return alike((made, arguments))[0]

    def h_and_c(carry: Any) -> tuple[Array, Array]:
        return (carry.h, carry.c) if is_lstm else (carry, jnp.zeros((0,), jnp.float32))

    def carry_of(h: Array, c: Array) -> Any:
        return LSTMState(c=c, h=h) if is_lstm else h

    def saved_shape(projected: Array) -> tuple[int, ...]:
        """Of what the way back needs to know of the gates."""
        return (*projected.shape[:2], 4 * cell.hidden_features if is_lstm or is_gru else 0)

    def forward(small: Any, w_hh: Array, carry: Any, projected: Array, *, saving: bool) -> tuple[Any, Array]:
        states = (*projected.shape[:2], cell.hidden_features)
        results = [states, states if is_lstm else (0,), saved_shape(projected) if saving else (0,)]
        b_hn = small["b_hn"][...] if is_gru else jnp.zeros((0,), jnp.float32)
        hs, cs, saved = call("rnn_lm_forward", projected, w_hh, *h_and_c(carry), b_hn, results=results)
        return carry_of(hs, cs), saved

    def gradient(primals: tuple, carries: Any, saved: Array, d_carries: Any) -> tuple:
        small, w_hh, carry, projected = primals
        (h0, c0), (hs, cs) = h_and_c(carry), h_and_c(carries)
        results = [projected.shape, projected.shape if is_gru else (0,), h0.shape, c0.shape]
        d_projected, d_recurrent, d_h0, d_c0 = call(
            "rnn_lm_backward", w_hh, h0, c0, hs, cs, saved, *h_and_c(d_carries), results=results
        )
        adjoint = d_recurrent if is_gru else d_projected
        d_w_hh = rows(shifted(h0, hs, reverse=reverse)).T @ rows(adjoint)
        d_small = jax.tree.map(lambda b_hn: adjoint[..., -b_hn.size :].sum((0, 1)), small)
        return d_small, d_w_hh, carry_of(d_h0, d_c0), d_projected

    values = _foreign(lambda *primals: forward(*primals, saving=False)[0], reference)
    values_and_saved = _foreign(
        partial(forward, saving=True),
        lambda *primals: (reference(*primals), jnp.zeros(saved_shape(primals[-1]), jnp.float32)),
    )
    pullback = _foreign(gradient, lambda primals, carries, saved, d_carries: jax.vjp(reference, *primals)[1](d_carries))

    def save(*primals: Any) -> tuple[Any, tuple]:
        carries, saved = values_and_saved(*primals)
        return carries, (primals, carries, saved)

    run = jax.custom_vjp(values)
    run.defvjp(save, lambda residuals, d_carries: pullback(*residuals, d_carries))
    return run


def _foreign(fast: Callable, slow: Callable) -> Callable:
    """`fast`, code that JAX knows nothing of; where it is to be mapped or differentiated, `slow` stands in for it."""
    one = jax.custom_batching.custom_vmap(fast)

    @one.def_vmap
    def _(size: int, is_mapped: Any, *args: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda mapped: 0 if mapped else None, is_mapped)
        made = jax.vmap(slow, axes, axis_size=size)(*args)
        return made, jax.tree.map(lambda _: True, made)

    function = jax.custom_jvp(one)

    @function.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        return function(*primals), jax.jvp(slow, primals, tangents)[1]

    return function
