"""A file as the sequence of units that a model reads: characters or bytes, each known by a number, its code.

Any bytes are characters too: where they are no UTF-8 each one becomes a code of its own, by Python's surrogate escape,
which gives it back.
"""

import codecs
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from rnn_lm.data.vocabulary import Vocabulary

READ_BYTES = 2**20  # at once, when a file is looked through


@dataclass(frozen=True)
class Survey:
    """What a first look at a file finds."""

    size: int  # bytes
    sha256: str
    units: int
    characters: int
    unknown: dict[int, int]  # the code of each unit that the vocabulary lacks → how often it stands in the file

    @property
    def foreign(self) -> bool:
        """Whether it is mostly of units that the vocabulary lacks: another script, or no text."""
        return 2 * sum(self.unknown.values()) > self.units


class Units:
    """Bytes ↔ codes ↔ the ids of a vocabulary of characters or bytes."""

    def __init__(self, vocabulary: Vocabulary):
        self.of_bytes = vocabulary.kind == "byte"
        self.max_bytes = 1 if self.of_bytes else 4  # of a unit
        self.by_id = vocabulary.codes
        self.ids = vocabulary.encode_codes

    def codes(self, data: bytes) -> UInt[np.ndarray, "N"]:
        """Those of some bytes. The first N of them do not change with what comes after N · `max_bytes` bytes."""
        if self.of_bytes:
            return np.frombuffer(data, np.uint8).astype(np.uint32)
        return _code_points(data.decode("utf-8", "surrogateescape"))

    def join(self, codes: UInt[np.ndarray, "N"]) -> bytes:
        """The bytes that `codes` was given."""
        if self.of_bytes:
            return codes.astype(np.uint8).tobytes()
        return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogateescape")

    def sizes(self, codes: UInt[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """How many bytes each unit takes."""
        if self.of_bytes:
            return np.ones(len(codes), np.int64)
        is_byte = (codes >= 0xDC80) & (codes < 0xDD00)
        return np.where(is_byte, 1, 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000))

    def survey(self, file: BufferedIOBase, on_progress: Callable[[int], Any] = lambda size: None) -> Survey:
        """Looks through a file, from its start. `on_progress` is called now and then, with 0: nothing is coded yet."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        digest, size, units, characters = hashlib.sha256(), 0, 0, 0
        unknown: Counter[int] = Counter()
        file.seek(0)
        for data in chain(iter(partial(file.read, READ_BYTES), b""), [b""]):
            on_progress(0)
            text = decoder.decode(data, final=not data)
            part = self.codes(data) if self.of_bytes else _code_points(text)
            digest.update(data)
            size, units, characters = size + len(data), units + len(part), characters + len(text)
            found, counts = np.unique(part[self.ids(part) == 0], return_counts=True)
            unknown.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        return Survey(size, digest.hexdigest(), units, characters, dict(unknown))

    def shift(self, file: BufferedIOBase, place: int) -> int:
        """How many bytes after a place in a file the next unit starts, at most 3."""
        if self.of_bytes or not place:
            return 0
        file.seek(place)
        return [*(byte & 0xC0 == 0x80 for byte in file.read(3)), False].index(False)


def _code_points(text: str) -> UInt[np.ndarray, "N"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
