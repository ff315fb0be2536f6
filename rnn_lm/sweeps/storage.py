"""Where Optuna keeps the study of a search: in a file that workers append to, or in a database."""

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from rnn_lm.errors import UserError

DATABASES = ("postgresql", "mysql", "mariadb")
CONNECT_SECONDS = 10


class _Flock:
    """A lock on the journal that ends with its process. Optuna's own stays after `kill -9`, and all wait for it.

    Whoever has it removes a last line that was cut short, or the next one, appended to it, would damage the journal.
    """

    def __init__(self, path: Path):
        self._path = path

    def acquire(self) -> bool:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.ftruncate(self._handle, os.pread(self._handle, size, 0).rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        os.close(self._handle)


def journal(path: Path) -> BaseStorage:
    """The storage in a file, to which each line is appended at once."""
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_Flock(path)))  # type: ignore[arg-type]
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines()[-1:]:
            json.loads(line)  # Optuna fails only when another line follows
        return storage
    except Exception as error:
        raise UserError(f"{path} is not the journal of a study, or is damaged: {error}") from error


def database(url: str) -> BaseStorage:
    """The storage in a database. Messages leave out what may have a password."""
    from sqlalchemy.engine import make_url

    try:
        parts = make_url(url)
        kind = parts.get_backend_name()
    except Exception:
        raise UserError("--storage is not a URL such as postgresql+psycopg2://USER@HOST/DATABASE") from None
    if kind not in DATABASES:
        why = "SQLite is not made for many writers" if kind == "sqlite" else f"{kind} is not known"
        raise UserError(f"{why}; give a --storage of PostgreSQL or MySQL, or none for a file in the search's folder")
    shown = f"{parts.drivername}://{parts.host or ''}{f':{parts.port}' if parts.port else ''}/{parts.database or ''}"
    try:
        connect = {"connect_timeout": CONNECT_SECONDS}
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": connect})
    except Exception as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        for secret in (parts.password, *map(str, parts.query.values())):
            reason = reason.replace(str(secret), "…") if secret else reason
        raise UserError(f"--storage={shown} cannot be used: {reason}") from None


@contextmanager
def in_our_words() -> Iterator[None]:
    """Without Optuna's log and its warnings that a sampler is experimental; a storage's failure in a line.

    Raises:
      UserError: a database does not answer any more.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except optuna.exceptions.StorageInternalError as error:
        reason = str(getattr(error.__cause__, "orig", None) or error).strip().split("\n")[0]
        raise UserError(f"the storage of the study failed: {reason}; run the same command to go on") from error
    finally:
        optuna.logging.set_verbosity(before)
