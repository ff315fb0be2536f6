"""What processes that train one model do together. Alone, a process is the first one, and agrees with itself."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from rnn_lm.errors import UserError

SEEN_SECONDS = 60  # until the file system of a network shows other machines a new file
SHARE = "--workdir must be a folder that all processes share"


def is_first() -> bool:
    """Whether this process writes the record of the run."""
    return jax.process_index() == 0


def largest(value: float) -> float:
    """The largest value that a process has, to the bit. All of them must ask, in the same order."""
    return float(_values(value).max())


def of_first(value: float) -> float:
    """The value of the first process."""
    return float(_values(value)[0])


def check_same(values: Mapping[str, str], advice: str) -> None:
    """Raises UserError in all processes if one has another value than the first. `values`: by what they are."""
    if jax.process_count() == 1:
        return
    digests = b"".join(hashlib.sha256(value.encode()).digest() for value in values.values())
    of_all = _of_all(digests).reshape(jax.process_count(), len(values), -1)
    different = (of_all != of_all[0]).any(axis=2)
    for what, others in zip(values, different.T, strict=True):
        if others.any():
            raise UserError(f"process {others.argmax()} of the job has another {what} than process 0; {advice}")


def check_shared(folder: Path) -> None:
    """Raises UserError in all processes unless each sees, by the same name, the folder that the first one has."""
    if jax.process_count() == 1:
        return
    # A name that nobody has looked up before, and may remember as missing.
    mark = folder / f".job-{of_first(time.time())}"
    try:
        if is_first():
            mark.touch()
        deadline = time.monotonic() + SEEN_SECONDS
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        check_same({"--workdir": str(mark.exists())}, SHARE)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)


def code_version() -> str:
    """A hash of this package's files."""
    root = Path(__file__).parent
    files = sorted(path for kind in ("py", "h", "cc") for path in root.rglob(f"*.{kind}"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def _values(value: float) -> np.ndarray:
    """The values of all processes, to the bit."""
    own = np.array([value], np.float64)
    return own if jax.process_count() == 1 else _of_all(own.tobytes()).view(np.float64)[:, 0]


def _of_all(content: bytes) -> np.ndarray:
    """The same number of bytes of each process, [P, N]."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.frombuffer(content, np.uint8)))
