"""Lossless compression: a model's probabilities drive a range coder. What decodes exactly cannot lie about its bits.

The file is cut into lanes, contiguous parts of about the same size that the model reads side by side, each from the
initial state; a block has the next 1024 characters of every lane. So the memory that it takes does not depend on the
file's size. Characters that the vocabulary lacks, and bytes that are no UTF-8, are coded as id 0, which is as likely as
they are frequent in the file, and then by how often each of them stands in it; the header has these counts. A block
that this would make longer, or all of a file that is mostly of such characters, is kept as it is.

Reference: Delétang et al., Language modeling is compression, ICLR 2024.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import Any

import constriction
import numpy as np
from jaxtyping import Float, Int

from rnn_lm.compression.archive import CODED, STORED, Header, damaged, machine, read_block, write_block
from rnn_lm.compression.lanes import TOTAL, Lanes, State
from rnn_lm.compression.symbols import Units
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.inference.dynamic import STEPS
from rnn_lm.nn.models import LanguageModel

MAX_LANES = 64
LANE_UNITS = 2000  # at least, where there are several lanes: a cold start costs as much as some ten characters
BLOCK_UNITS = 64 * STEPS  # of each lane
CATEGORICAL = constriction.stream.model.Categorical(perfect=False)

Progress = Callable[[int], Any]


@dataclass(frozen=True)
class Report:
    """What a compression came to."""

    file_bytes: int
    archive_bytes: int
    characters: int
    model_bits: float  # −log2 of the probabilities before they are rounded; 8 a byte in blocks that are kept as such

    def figures(self) -> dict[str, float]:
        characters = self.characters or math.nan
        return {
            "bits_per_char": 8 * self.archive_bytes / characters,
            "model_bits_per_char": self.model_bits / characters,
        }


def compress(
    model: LanguageModel,
    vocabulary: Vocabulary,
    source: BufferedIOBase,
    target: BufferedIOBase,
    *,
    mix: str = "none",
    dynamic: bool = False,
    verify: bool = True,
    on_progress: Progress = lambda size: None,
) -> Report:
    """Writes an archive of a file, and reads it back.

    Args:
      model: what predicts the next token.
      vocabulary: the model's, of characters or bytes.
      source: the file, which can be sought in.
      target: where the archive goes; it is opened for reading too.
      mix: what the model is mixed with, for whoever is to decompress.
      dynamic: whether the model goes on learning from what it has read.
      verify: whether the archive is decoded and compared.
      on_progress: is told how many more bytes of the file have been coded, or decoded.

    Raises:
      UserError: where the model reads words, or the archive does not decode to the file.
    """
    if vocabulary.kind == "word":
        raise UserError("the model reads words, which leave out how much space is between them; take one of characters")
    units = Units(vocabulary)
    survey = units.survey(source, on_progress)
    lanes = min(max(survey.units // LANE_UNITS, 1), MAX_LANES)
    starts = [survey.size * i // lanes for i in range(lanes)]
    header = Header(
        model=_identity(model, vocabulary),
        mix=mix,
        dynamic=dynamic,
        size=survey.size,
        sha256=survey.sha256,
        shifts="".join(str(units.shift(source, start)) for start in starts),
        units=survey.units,
        characters=survey.characters,
        unknown={} if survey.foreign else survey.unknown,
        probe="",
        made_with=machine(),
    )
    codec = _Codec(model, vocabulary, header, on_progress)
    header = replace(header, probe=codec.probe())
    header.write(target)
    bits = codec.encode(source, target, keep=survey.foreign)
    source.seek(0)
    if hashlib.file_digest(source, "sha256").hexdigest() != survey.sha256:
        raise _changed()
    report = Report(survey.size, target.tell(), survey.characters, bits)
    if verify:
        target.seek(0)
        try:
            if Header.read(target) != header:
                raise UserError("its header is another")
            codec.decode(target, _Compared(source))
        except UserError as error:
            raise UserError(f"the archive does not decode to the file ({error}), so it was not kept") from error
    return report


def decompress(
    model: LanguageModel,
    vocabulary: Vocabulary,
    source: BufferedIOBase,
    target: BufferedIOBase,
    *,
    on_progress: Progress = lambda size: None,
) -> Report:
    """Writes the file that an archive was made of.

    Args:
      model: the one that the archive was made with; `Header.read` tells what it was mixed with.
      vocabulary: the model's.
      source: the archive.
      target: where the file goes; it can be sought in and is opened for reading too.
      on_progress: is told how many more bytes of the file have been decoded.

    Raises:
      UserError: where the archive is damaged, of another model, or of a machine that computes differently.
    """
    header = Header.read(source)
    if header.model != _identity(model, vocabulary):
        raise UserError("the archive was made with another model (or an earlier checkpoint of this one)")
    codec = _Codec(model, vocabulary, header, on_progress)
    if header.probe != codec.probe():
        here = machine()
        differences = [
            f"{name} {value} there, {here.get(name)} here"
            for name, value in header.made_with.items()
            if value != here.get(name)
        ]
        raise UserError(
            "this machine computes other probabilities than the one that made the archive: "
            + ("; ".join(differences) or "its settings (XLA_FLAGS, RNN_LM_NATIVE) are others")
        )
    bits = codec.decode(source, target)
    target.seek(0)
    if hashlib.file_digest(target, "sha256").hexdigest() != header.sha256:
        raise damaged()
    return Report(header.size, source.tell(), header.characters, bits)


class _Codec:
    """One archive's units ↔ bits."""

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, header: Header, on_progress: Progress):
        self.units = Units(vocabulary)
        self.on_progress = on_progress
        lanes = len(header.shifts)
        starts = [header.size * i // lanes + int(shift) for i, shift in enumerate(header.shifts)]
        self.starts, self.ends = np.array(starts), np.array([*starts[1:], header.size])  # of the lanes, in the file
        self.unknown = np.array(sorted(header.unknown), np.uint32)
        counts = np.array([header.unknown[code] for code in self.unknown.tolist()], float)
        self.unknown_probs = counts / max(counts.sum(), 1)
        self.unknown_model = None  # of one alone there is nothing to tell
        if len(counts) > 1:
            self.unknown_model = constriction.stream.model.Categorical(self.unknown_probs, perfect=False)
        escape = counts.sum() / max(header.units, 1)
        self.lanes = Lanes(model, lanes, first=vocabulary.start, escape=escape, dynamic=header.dynamic)

    def probe(self) -> str:
        """A hash of what becomes of a fixed text: if it learns, the model is updated twice on the way."""
        encoder, digest = constriction.stream.queue.RangeEncoder(), hashlib.sha256()
        size, steps = len(self.lanes.start.last), 2 * STEPS + 1
        text = 1 + np.arange(steps * size, dtype=np.int32).reshape(steps, size) * 7919 % (len(self.units.by_id) - 1)
        rows = iter(text)

        def choose(frequencies, log_probs):
            tokens = next(rows)
            digest.update(frequencies.astype("<i4").tobytes())
            encoder.encode(tokens, CATEGORICAL, _shares(frequencies))
            return tokens, np.ones(size, bool)

        self.lanes.read(self.lanes.start, steps, choose)
        digest.update(encoder.get_compressed().astype("<u4").tobytes())
        return digest.hexdigest()[:16]

    def encode(self, source: BufferedIOBase, target: BufferedIOBase, *, keep: bool) -> float:
        """Writes all blocks, each as it is where `keep` says so. Returns the model's bits."""
        state, places, bits = self.lanes.start, self.starts.copy(), 0.0
        while (places < self.ends).any():
            parts = []
            for place, end in zip(places, self.ends, strict=True):
                source.seek(place)
                parts.append(
                    self.units.codes(source.read(min(end - place, BLOCK_UNITS * self.units.max_bytes)))[:BLOCK_UNITS]
                )
            raws = [self.units.join(part) for part in parts]
            raw = b"".join(raws)
            if not raw:
                raise _changed()
            stored = struct.pack(f"<{len(raws)}H", *map(len, raws)) + raw
            if keep:
                self.on_progress(len(raw))
            else:
                content, after, block_bits = self._encode_block(state, parts)
            if keep or len(content) > len(stored):  # the model goes on as if this block were not there
                write_block(target, STORED, stored, raw)
                bits += 8 * len(raw)
            else:
                write_block(target, CODED, content, raw)
                state, bits = after, bits + block_bits
            places += [len(raw) for raw in raws]
        return bits

    def decode(self, source: BufferedIOBase, target: Any) -> float:
        """Reads all blocks, to the archive's end. Returns the model's bits."""
        state, places, bits = self.lanes.start, self.starts.copy(), 0.0
        while (places < self.ends).any():
            kind, content, checksum = read_block(source, longest=len(places) * (4 * BLOCK_UNITS + 2))
            if kind == STORED:
                raws = _unpack(content, len(places))
                self.on_progress(sum(map(len, raws)))
                block_bits = 8.0 * sum(map(len, raws))
            else:
                raws, state, block_bits = self._decode_block(state, content, self.ends - places)
            sizes = np.array([len(raw) for raw in raws])
            if zlib.crc32(b"".join(raws)) != checksum or (places + sizes > self.ends).any():
                raise damaged()
            for place, raw in zip(places, raws, strict=True):
                target.seek(int(place))
                target.write(raw)
            places, bits = places + sizes, bits + block_bits
        if source.read(1):
            raise damaged()
        return bits

    def _encode_block(self, state: State, parts: list[np.ndarray]) -> tuple[bytes, State, float]:
        """The code of the next units of each lane, the model's state after them, and its bits."""
        steps = max(map(len, parts))
        codes = np.stack([np.pad(part, (0, steps - len(part))) for part in parts], axis=1)
        real = np.arange(steps)[:, None] < [len(part) for part in parts]
        ids = np.where(real, self.units.ids(codes), 0)
        rows = iter(zip(codes, ids, real, strict=True))
        encoder, bits = constriction.stream.queue.RangeEncoder(), 0.0

        def choose(frequencies, log_probs):
            nonlocal bits
            codes, ids, real = next(rows)
            encoder.encode(ids[real], CATEGORICAL, _shares(frequencies[real]))
            unknown = codes[real & (ids == 0)]
            if not np.isin(unknown, self.unknown).all():
                raise _changed()
            escaped = np.searchsorted(self.unknown, unknown).astype(np.int32)
            if len(escaped) and self.unknown_model is not None:
                encoder.encode(escaped, self.unknown_model)
            bits += self._bits(log_probs[real, ids[real]], escaped)
            self.on_progress(int(self.units.sizes(codes[real]).sum()))
            return ids, real

        state = self.lanes.read(state, steps, choose)
        return encoder.get_compressed().astype("<u4").tobytes(), state, bits

    def _decode_block(
        self, state: State, content: bytes, left: Int[np.ndarray, "L"]
    ) -> tuple[list[bytes], State, float]:
        """The next bytes of each lane, of which so many are left, the model's state after them, and its bits."""
        if len(content) % 4:
            raise damaged()
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        bits = 0.0

        def choose(frequencies, log_probs):
            nonlocal bits
            real = left > 0
            ids = np.zeros(len(left), np.int32)
            if real.any():
                ids[real] = decoder.decode(CATEGORICAL, _shares(frequencies[real]))
            codes, is_escaped = self.units.by_id[ids], real & (ids == 0)
            escaped = np.zeros(is_escaped.sum(), np.int32)
            if len(escaped) and self.unknown_model is not None:
                escaped = decoder.decode(self.unknown_model, len(escaped))
            if len(escaped) and not len(self.unknown):
                raise damaged()
            codes[is_escaped] = self.unknown[escaped]
            bits += self._bits(log_probs[real, ids[real]], escaped)
            sizes = self.units.sizes(codes[real])
            left[real] -= sizes
            rows.append((codes, real))
            self.on_progress(int(sizes.sum()))
            return ids, real

        steps = min(BLOCK_UNITS, int(left.max()))  # at most: no lane has fewer bytes than units
        try:
            state = self.lanes.read(state, steps, choose)
        except AssertionError as error:  # constriction's, of bits that nothing is coded as
            raise damaged() from error
        codes, real = map(np.stack, zip(*rows, strict=True))
        return [self.units.join(codes[real[:, lane], lane]) for lane in range(len(left))], state, bits

    def _bits(self, log_probs: Float[np.ndarray, "n"], escaped: Int[np.ndarray, "m"]) -> float:
        """What ids, and after them units that the vocabulary lacks, cost by their probabilities."""
        return -float(log_probs.sum(dtype=float) / math.log(2) + np.log2(self.unknown_probs[escaped]).sum())


class _Compared:
    """Takes what is decoded, and keeps nothing of it but whether it is the file's."""

    def __init__(self, file: BufferedIOBase):
        self.file = file

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def write(self, data: bytes) -> None:
        if self.file.read(len(data)) != data:
            raise UserError("other bytes come out")


def _changed() -> UserError:
    return UserError("the file changed while it was read; compress a copy of it")


def _shares(frequencies: Int[np.ndarray, "L V"]) -> np.ndarray:
    """What the range coder is told. They are exact, and so are their sums, so that it rounds both ways alike."""
    return (frequencies / TOTAL).astype(np.float32)


def _identity(model: LanguageModel, vocabulary: Vocabulary) -> str:
    return hashlib.sha256(json.dumps([model.fingerprint(), vocabulary.to_json()]).encode()).hexdigest()[:32]


def _unpack(content: bytes, lanes: int) -> list[bytes]:
    """The bytes of each lane in a stored block."""
    if len(content) < 2 * lanes:
        raise damaged()
    ends = np.cumsum([2 * lanes, *struct.unpack_from(f"<{lanes}H", content)])
    if ends[-1] != len(content):
        raise damaged()
    return [content[start:end] for start, end in zip(ends, ends[1:], strict=False)]
