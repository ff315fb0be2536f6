"""A file as a sequence of symbols: characters or bytes, each with a number, its code.

Bytes that are not UTF-8 become one code each, by Python's surrogate escape, which is lossless.
"""

import codecs
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from itertools import chain

import numpy as np
from jaxtyping import Int, UInt

from rnn_lm.data.vocabulary import Vocabulary

READ_BYTES = 2**20  # at once, in a survey

Progress = Callable[[int], object]  # called with a number of bytes


@dataclass(frozen=True)
class Survey:
    """Counts from a first pass over a file."""

    size: int  # bytes
    sha256: str
    symbols: int
    characters: int
    unknown: dict[int, int]  # code of each symbol outside the vocabulary → its count

    @property
    def mostly_unknown(self) -> bool:
        """Whether most symbols are outside the vocabulary: another script, or not text."""
        return 2 * sum(self.unknown.values()) > self.symbols


class Symbols:
    """Bytes ↔ codes ↔ the ids of a vocabulary of characters or bytes."""

    def __init__(self, vocabulary: Vocabulary):
        self.of_bytes = vocabulary.kind == "byte"
        self.max_bytes = 1 if self.of_bytes else 4  # per symbol
        self.by_id = vocabulary.codes
        self.ids = vocabulary.encode_codes

    def codes(self, data: bytes) -> UInt[np.ndarray, "N"]:
        """The codes of some bytes. The first N codes depend on the first N · `max_bytes` bytes only."""
        if self.of_bytes:
            return np.frombuffer(data, np.uint8).astype(np.uint32)
        return _code_points(data.decode("utf-8", "surrogateescape"))

    def join(self, codes: UInt[np.ndarray, "N"]) -> bytes:
        """The inverse of `codes`."""
        if self.of_bytes:
            return codes.astype(np.uint8).tobytes()
        return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogateescape")

    def sizes(self, codes: UInt[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """The number of bytes of each symbol."""
        if self.of_bytes:
            return np.ones(len(codes), np.int64)
        is_byte = (codes >= 0xDC80) & (codes < 0xDD00)
        return np.where(is_byte, 1, 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000))

    def survey(self, file: BufferedIOBase, on_progress: Progress = lambda size: None) -> Survey:
        """Reads a file from its start. Calls `on_progress` with 0 from time to time, as nothing is encoded yet."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        digest, size, symbols, characters = hashlib.sha256(), 0, 0, 0
        unknown: Counter[int] = Counter()
        file.seek(0)
        for data in chain(iter(partial(file.read, READ_BYTES), b""), [b""]):
            on_progress(0)
            text = decoder.decode(data, final=not data)
            part = self.codes(data) if self.of_bytes else _code_points(text)
            digest.update(data)
            size, symbols, characters = size + len(data), symbols + len(part), characters + len(text)
            found, counts = np.unique(part[self.ids(part) == 0], return_counts=True)
            unknown.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        return Survey(size, digest.hexdigest(), symbols, characters, dict(unknown))

    def shift(self, file: BufferedIOBase, place: int) -> int:
        """The number of bytes, 0 to 3, from a place in a file to the start of the next symbol."""
        if self.of_bytes or not place:
            return 0
        file.seek(place)
        return [*(byte & 0xC0 == 0x80 for byte in file.read(3)), False].index(False)


def _code_points(text: str) -> UInt[np.ndarray, "N"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
