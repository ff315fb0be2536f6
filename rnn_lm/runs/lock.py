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
from rnn_lm.files import absolute

LOCK = ".lock"  # in the folder of a sweep


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the folder and locks it against other processes. Removes it at the end if it is empty."""
    with _flocked(workdir), ExitStack() as stack:
        if (lock := _lock_of(workdir)).exists():
            _lock_byte(stack.enter_context(lock.open("r+b")), workdir)
        yield


@contextmanager
def locked_members(workdirs: Sequence[Path]) -> Iterator[None]:
    """Locks folders of one sweep as `locked` does, all under one descriptor. It creates the sweep's folder alone.

    Each folder is a byte of a file there. A process that trains a member by itself locks the folder and that byte.
    """
    lock = _lock_of(workdirs[0])
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        for workdir in workdirs:
            # A process may be training it that came before there was a lock file.
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
    return Path(absolute(workdir)).parent / LOCK


def _lock_byte(file: IO[bytes], workdir: Path) -> None:
    """Locks the folder's byte until the file is closed."""
    name = Path(absolute(workdir)).name
    offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    with _in_use(workdir):
        if sys.platform == "linux":  # held by this open file, so threads exclude each other, too
            lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)  # C's struct flock
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)


@contextmanager
def _in_use(workdir: Path) -> Iterator[None]:
    """Says so if a lock is another's."""
    try:
        yield
    except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, by the system
        raise UserError(f"another process is training in --workdir={workdir}; wait or give another") from error
