"""Paths, atomic writes, JSON files with a format number, and a lock on a folder."""

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeAlias

from rnn_lm.errors import NewerFormat, Unreadable

Json: TypeAlias = dict[str, Any]  # a JSON object
VOCABULARY = "vocabulary.json"  # of a run and of an exported folder
EXPORTED = "rnn_lm.json"  # what an exported folder has in place of a run's config.json
ALONE = ".alone.lock"  # in a folder that several processes write
FORMAT = 1  # written by this version; 0: files without a number, otherwise the same


@contextmanager
def replacing(path: Path) -> Iterator[BufferedIOBase]:
    """Opens a temporary file that replaces `path` at the end, or is removed after an exception."""
    temporary = temporary_name(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone_in(folder: Path, give_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Locks a folder against other processes and threads. Proceeds without the lock once `give_up()` is true.

    By a file in it: on a network drive, a lock on the folder itself would hold on one machine only.
    """
    handle = os.open(folder / ALONE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not give_up():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)  # unlocks


def path_of(path: str | Path) -> Path:
    """The path that a user gave; `~` is the home folder."""
    return Path(os.path.expanduser(path))


def absolute(path: str | Path) -> str:
    """The path that a user gave, valid from any folder. Links are kept."""
    return os.path.abspath(path_of(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file atomically; makes its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` at the end, or is removed after an exception.

    If `path` is a folder already, its files of the same names are replaced, one after the other; others stay.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may be writing the same folder
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            for entry in sorted(temporary.iterdir()):
                os.replace(entry, path / entry.name)
            temporary.rmdir()
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def temporary_name(path: Path) -> Path:
    """The name while writing; always the same, so the next write replaces what a killed process left."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Json) -> None:
    """Writes an object with its format number."""
    write_text(path, dumps({"format": FORMAT} | value, indent=2) + "\n")


def read_json(path: Path) -> Json:
    """Reads a `write_json` file; raises Unreadable if it is missing or damaged, or NewerFormat."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    check_format(path, value.pop("format", 0))
    return value


def read_if_there(path: Path) -> Json | None:
    """`read_json`, or None if the file does not exist (another process may have removed it)."""
    try:
        return read_json(path)
    except Unreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def check_format(what: Path | str, number: object, newest: int = FORMAT) -> None:
    """Raises NewerFormat for a format above `newest`, Unreadable for one that is no format."""
    if type(number) is not int or number < 0:
        raise Unreadable(f"{what} is damaged: its format is {number!r}")
    if number > newest:
        raise NewerFormat(f"{what} has format {number}, this rnn_lm reads formats up to {newest}; use a newer rnn_lm")


def dumps(value: object, indent: int | None = None) -> str:
    """Standard JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
