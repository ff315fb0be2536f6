"""`--distributed`: this process becomes one of a job of JAX's distributed runtime, and leaves it again."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rnn_lm.commands.flags import FlagValues, define
from rnn_lm.errors import Abandoned, Diverged, UserError
from rnn_lm.interrupts import SIGNALS, Stopped

SHUTDOWN_SECONDS = 7 * 24 * 3600  # for the last process, which scores the run; one that is dead is found by its silence
# What XLA's exceptions say when another process is gone: Gloo adds up on CPUs, NCCL on GPUs.
LOST = re.compile(r"Gloo|NCCL|coordination service|heartbeat", re.IGNORECASE)
RESUME = "start all of them again, or fewer, to resume at the last checkpoint"
# JAX aborts a process whose job is broken, from C++. Then this one is left to say so.
WATCHER = f'read left || echo "error: this process, or another one of the job, was killed; {RESUME}" >&2'
_watcher: subprocess.Popen | None = None


def define_job_flags(flags: FlagValues) -> None:
    define(flags, "distributed", False, "train with the devices of several processes, each started with this flag")
    define(flags, "coordinator", "", "HOST:PORT where process 0 listens; by default as the cluster says")
    define(flags, "num_processes", 0, "number of processes; 0: as the cluster says")
    define(flags, "process_id", -1, "number of this process, from 0; -1: as the cluster says")
    define(flags, "timeout", 100, "seconds until processes that do not come, or are silent, count as dead")


@contextmanager
def job(flags: FlagValues) -> Iterator[None]:
    """Inside, JAX sees the devices of all processes, if `--distributed` is given. Call it before JAX computes.

    Raises:
      UserError: there is no job, or it is not complete in time.
      Abandoned: another process has ended.
    """
    if not flags.distributed:
        for name in ("coordinator", "num_processes", "process_id", "timeout"):
            if flags[name].present:
                raise UserError(f"--{name} needs --distributed")
        yield
        return
    _check(flags)
    _enter(flags)
    import jax

    ended: Exception | None = None
    try:
        try:
            yield
        except (Diverged, Stopped) as error:  # as in all processes
            ended = error
        jax.distributed.shutdown()  # waits for the others
    except Exception as error:
        reason = error.__cause__ if isinstance(error, UserError) else error  # such as of a checkpoint not written
        if not LOST.search(str(reason)):
            raise
        raise Abandoned(f"another process of the job has ended; {RESUME}") from error
    if ended:
        raise ended
    _tell_watcher()


def leave(code: int) -> None:
    """Ends a process of a job at once: Python's exit would wait for the others. Does nothing without a job."""
    if _watcher is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    _tell_watcher()
    os._exit(code)


def _tell_watcher() -> None:
    """From here on the process ends as it should."""
    assert _watcher
    _watcher.communicate(b"left\n")


def _check(flags: FlagValues) -> None:
    given = [name for name in ("coordinator", "num_processes", "process_id") if flags[name].present]
    if len(given) not in (0, 3):
        raise UserError("--coordinator, --num_processes and --process_id go together")
    if flags.timeout < 1:
        raise UserError(f"--timeout={flags.timeout} must be at least 1 second")
    if not given:
        return
    if not re.fullmatch(r".+:\d{1,5}", flags.coordinator):
        raise UserError(f"--coordinator={flags.coordinator} is not HOST:PORT, such as node1:1234")
    if not 0 <= flags.process_id < flags.num_processes:
        raise UserError(f"--process_id={flags.process_id} must be from 0 to --num_processes - 1")
    if flags.process_id == 0:
        with socket.socket() as listener:  # gRPC would share the port with another job
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # remains of a dead one do no harm
            try:
                listener.bind(("", int(flags.coordinator.rpartition(":")[2])))
            except (OSError, OverflowError) as error:
                raise UserError(f"--coordinator={flags.coordinator}: {error}; give another port") from error


def _enter(flags: FlagValues) -> None:
    import jax

    global _watcher
    _watcher = subprocess.Popen(["sh", "-c", WATCHER], stdin=subprocess.PIPE, start_new_session=True)
    for signum in SIGNALS:
        signal.signal(signum, lambda number, frame: leave(128 + number))
    sys.excepthook = _fail
    _keep_apart()
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM
    joining = ThreadPoolExecutor(1).submit(  # so that signals are heard, and JAX does not abort when it is too late
        jax.distributed.initialize,
        flags.coordinator or None,
        flags.num_processes or None,
        None if flags.process_id < 0 else flags.process_id,
        cluster_detection_method="deactivate" if flags.coordinator else None,
        initialization_timeout=flags.timeout + 60,
        heartbeat_timeout_seconds=flags.timeout,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    try:
        joining.result(flags.timeout)
    except TimeoutError as error:
        where = f" at {flags.coordinator}" if flags.coordinator else ""
        seconds = f"--timeout={flags.timeout} seconds"
        raise UserError(f"the processes did not all meet{where} within {seconds}") from error
    except Exception as error:  # of JAX, or of a cluster's library
        advice = "give --coordinator=HOST:PORT, --num_processes and --process_id"
        raise UserError(f"JAX finds no cluster here, such as SLURM or Kubernetes ({error}); {advice}") from error


def _fail(*error: Any) -> None:
    """What becomes of an exception that nobody expects."""
    sys.__excepthook__(*error)
    leave(1)


def _keep_apart() -> None:
    """Drops what C++ libraries write to stdout and stderr; Python's streams go on."""
    from rnn_lm.commands import DEBUG

    if os.environ.get(DEBUG, "0") not in ("", "0"):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()
        setattr(sys, name, open(os.dup(number), "w", encoding="utf-8", errors="replace", buffering=1))
        os.dup2(nowhere, number)
