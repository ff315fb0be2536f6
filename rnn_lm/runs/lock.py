"""Locks on the folders of runs: no two processes train in one. A lock ends with its process, however that ends."""

import fcntl
import hashlib
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO

from rnn_lm.errors import UserError

LOCK = ".rnn_lm.lock"  # in the folder of a sweep


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the folder and locks it against other processes. Removes it at the end if it is empty."""
    with _flocked(workdir), ExitStack() as stack:
        if (lock := _lock_of(workdir)).is_file():
            _lock_byte(stack.enter_context(_opened(lock)), workdir)
        yield


@contextmanager
def locked_members(workdirs: Sequence[Path]) -> Iterator[None]:
    """Locks folders of one sweep as `locked` does; on Linux all under one descriptor, and without creating them.

    There each folder is a byte of a file in the sweep's folder, which `locked` locks, too.
    """
    with ExitStack() as stack:
        if sys.platform != "linux":  # other systems drop such locks when any descriptor of the file is closed
            for workdir in workdirs:
                stack.enter_context(_flocked(workdir))
        else:
            lock = _lock_of(workdirs[0])
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_opened(lock))
            for workdir in workdirs:
                # A run by itself that started before there was a lock file holds the lock of its folder alone.
                with _flocked(workdir) if workdir.exists() else nullcontext():
                    _lock_byte(file, workdir)
        yield


@contextmanager
def _flocked(workdir: Path) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        with _in_use(workdir):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            if not any(workdir.iterdir()):
                workdir.rmdir()
    finally:
        os.close(handle)  # unlocks


def _lock_of(workdir: Path) -> Path:
    """The lock file of the sweep that a folder may be a member of."""
    return workdir.resolve().parent / LOCK


def _opened(lock: Path) -> IO[bytes]:
    try:
        return lock.open("ab")
    except OSError as error:
        raise UserError(f"{lock} cannot be opened: {error.strerror}; check its permissions") from error


def _lock_byte(file: IO[bytes], workdir: Path) -> None:
    """Locks the folder's byte until the file is closed, also against other threads that open it (Linux)."""
    offset = int.from_bytes(hashlib.sha256(workdir.resolve().name.encode()).digest()[:7], "big")
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)  # C's struct flock
    with _in_use(workdir):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)


@contextmanager
def _in_use(workdir: Path) -> Iterator[None]:
    """Says so if a lock is another's."""
    try:
        yield
    except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, by the system
        raise UserError(f"another process is training in --workdir={workdir}; wait or give another") from error
