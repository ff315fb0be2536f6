"""Files whose format has a number, written so that a reader, or a crash, never sees half of one."""

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from rnn_lm.errors import NewerFormat, Unreadable

FORMAT = 1  # of what this version writes; 0 is what had no number yet, and all else in it is the same


@contextmanager
def replacing(path: Path) -> Iterator[BufferedIOBase]:
    """A file that becomes `path` at the end, or never was: written under a temporary name beside it, then renamed."""
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
    """Waits until no other process, or thread, is in here with that folder; not for longer than `give_up` lets it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        while not give_up():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)  # which unlocks


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def temporary_name(path: Path) -> Path:
    """Always the same, so that what a kill leaves behind is overwritten the next time."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """An object, beside the number of its format."""
    write_text(path, dumps({"format": FORMAT} | value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of ours.

    Raises:
      Unreadable: the file is missing or damaged.
      NewerFormat: a newer version wrote it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    check_format(path, value.pop("format", 0))
    return value


def read_if_there(path: Path) -> dict[str, Any] | None:
    """`read_json` of a file that another process may just be taking away."""
    try:
        return read_json(path)
    except Unreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def check_format(what: Path | str, number: Any, newest: int = FORMAT) -> None:
    """Raises NewerFormat, or Unreadable if the number is not a format."""
    if type(number) is not int or number < 0:
        raise Unreadable(f"{what} is damaged: its format is {number!r}")
    if number > newest:
        raise NewerFormat(
            f"{what} has format {number}, and this version of rnn_lm reads formats up to {newest}; use a newer rnn_lm"
        )


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON in which numbers that are not finite are null, as the standard wants."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
