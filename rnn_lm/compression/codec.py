"""Symbols ↔ blocks: the model's probabilities drive a range coder."""

import hashlib
import math
import struct
import zlib
from io import BufferedIOBase
from typing import Any

import constriction
import numpy as np
from jaxtyping import Float, Int

from rnn_lm.compression.archive import CODED, STORED, Header, damaged, read_block, write_block
from rnn_lm.compression.lanes import TOTAL, Lanes, State
from rnn_lm.compression.symbols import Progress, Symbols
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.inference.dynamic import STEPS
from rnn_lm.nn.models import LanguageModel

BLOCK_SYMBOLS = 64 * STEPS  # per lane
CATEGORICAL = constriction.stream.model.Categorical(perfect=False)


class Codec:
    """Encodes and decodes the blocks of one archive."""

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, header: Header, on_progress: Progress):
        self.symbols = Symbols(vocabulary)
        self.on_progress = on_progress
        lanes = len(header.shifts)
        starts = [header.size * i // lanes + int(shift) for i, shift in enumerate(header.shifts)]
        self.starts, self.ends = np.array(starts), np.array([*starts[1:], header.size])  # of the lanes, in the file
        self.unknown = np.array(sorted(header.unknown), np.uint32)
        counts = np.array([header.unknown[code] for code in self.unknown.tolist()], float)
        self.unknown_probs = counts / max(counts.sum(), 1)
        self.unknown_model = None  # a single unknown symbol needs no bits
        if len(counts) > 1:
            self.unknown_model = constriction.stream.model.Categorical(self.unknown_probs, perfect=False)
        escape = counts.sum() / max(header.units, 1)
        self.lanes = Lanes(model, lanes, first=vocabulary.start, escape=escape, dynamic=header.dynamic)

    def probe(self) -> str:
        """A hash of a fixed text's frequencies and code. A dynamic model is updated twice on the way."""
        encoder, digest = constriction.stream.queue.RangeEncoder(), hashlib.sha256()
        size, steps = len(self.lanes.start.last), 2 * STEPS + 1
        text = 1 + np.arange(steps * size, dtype=np.int32).reshape(steps, size) * 7919 % (len(self.symbols.by_id) - 1)
        rows = iter(text)

        def choose(frequencies, log_probs):
            tokens = next(rows)
            digest.update(frequencies.astype("<i4").tobytes())
            encoder.encode(tokens, CATEGORICAL, _shares(frequencies))
            return tokens, np.ones(size, bool)

        self.lanes.read(self.lanes.start, steps, choose)
        digest.update(encoder.get_compressed().astype("<u4").tobytes())
        return digest.hexdigest()[:16]

    def encode(self, source: BufferedIOBase, target: BufferedIOBase, *, store: bool) -> float:
        """Writes all blocks, uncompressed if `store` is set. Returns the model's bits."""
        state, places, bits = self.lanes.start, self.starts.copy(), 0.0
        while (places < self.ends).any():
            parts = []
            for place, end in zip(places, self.ends, strict=True):
                source.seek(place)
                data = source.read(min(end - place, BLOCK_SYMBOLS * self.symbols.max_bytes))
                parts.append(self.symbols.codes(data)[:BLOCK_SYMBOLS])
            raws = [self.symbols.join(part) for part in parts]
            raw = b"".join(raws)
            if not raw:
                raise file_changed()
            stored = struct.pack(f"<{len(raws)}H", *map(len, raws)) + raw
            if store:
                self.on_progress(len(raw))
            else:
                content, after, block_bits = self._encode_block(state, parts)
            if store or len(content) > len(stored):  # the model continues as if this block did not exist
                write_block(target, STORED, stored, raw)
                bits += 8 * len(raw)
            else:
                write_block(target, CODED, content, raw)
                state, bits = after, bits + block_bits
            places += [len(raw) for raw in raws]
        return bits

    def decode(self, source: BufferedIOBase, target: Any) -> float:
        """Reads all blocks up to the end of the archive. Returns the model's bits."""
        state, places, bits = self.lanes.start, self.starts.copy(), 0.0
        while (places < self.ends).any():
            kind, content, checksum = read_block(source, longest=len(places) * (4 * BLOCK_SYMBOLS + 2))
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
        """The code of each lane's next symbols, the state after them, and the model's bits."""
        steps = max(map(len, parts))
        codes = np.stack([np.pad(part, (0, steps - len(part))) for part in parts], axis=1)
        real = np.arange(steps)[:, None] < [len(part) for part in parts]
        ids = np.where(real, self.symbols.ids(codes), 0)
        rows = iter(zip(codes, ids, real, strict=True))
        encoder, bits = constriction.stream.queue.RangeEncoder(), 0.0

        def choose(frequencies, log_probs):
            nonlocal bits
            codes, ids, real = next(rows)
            encoder.encode(ids[real], CATEGORICAL, _shares(frequencies[real]))
            unknown = codes[real & (ids == 0)]
            if not np.isin(unknown, self.unknown).all():
                raise file_changed()
            escaped = np.searchsorted(self.unknown, unknown).astype(np.int32)
            if len(escaped) and self.unknown_model is not None:
                encoder.encode(escaped, self.unknown_model)
            bits += self._bits(log_probs[real, ids[real]], escaped)
            self.on_progress(int(self.symbols.sizes(codes[real]).sum()))
            return ids, real

        state = self.lanes.read(state, steps, choose)
        return encoder.get_compressed().astype("<u4").tobytes(), state, bits

    def _decode_block(
        self, state: State, content: bytes, left: Int[np.ndarray, "L"]
    ) -> tuple[list[bytes], State, float]:
        """Each lane's next bytes, the state after them, and the model's bits. `left`: bytes that each lane lacks."""
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
            codes, is_escaped = self.symbols.by_id[ids], real & (ids == 0)
            escaped = np.zeros(is_escaped.sum(), np.int32)
            if len(escaped) and self.unknown_model is not None:
                escaped = decoder.decode(self.unknown_model, len(escaped))
            if len(escaped) and not len(self.unknown):
                raise damaged()
            codes[is_escaped] = self.unknown[escaped]
            bits += self._bits(log_probs[real, ids[real]], escaped)
            sizes = self.symbols.sizes(codes[real])
            left[real] -= sizes
            rows.append((codes, real))
            self.on_progress(int(sizes.sum()))
            return ids, real

        steps = min(BLOCK_SYMBOLS, int(left.max()))  # an upper bound: a symbol has at least one byte
        try:
            state = self.lanes.read(state, steps, choose)
        except AssertionError as error:  # constriction raises it for an impossible code
            raise damaged() from error
        codes, real = map(np.stack, zip(*rows, strict=True))
        return [self.symbols.join(codes[real[:, lane], lane]) for lane in range(len(left))], state, bits

    def _bits(self, log_probs: Float[np.ndarray, "n"], escaped: Int[np.ndarray, "m"]) -> float:
        """−log2 P of ids and of the unknown symbols among them."""
        return -float(log_probs.sum(dtype=float) / math.log(2) + np.log2(self.unknown_probs[escaped]).sum())


def file_changed() -> UserError:
    return UserError("the file changed while it was read; compress a copy of it")


def _shares(frequencies: Int[np.ndarray, "L V"]) -> np.ndarray:
    """Probabilities for the range coder. They and their sums are exact, so it rounds alike in both directions."""
    return (frequencies / TOTAL).astype(np.float32)


def _unpack(content: bytes, lanes: int) -> list[bytes]:
    """The bytes of each lane in a stored block."""
    if len(content) < 2 * lanes:
        raise damaged()
    ends = np.cumsum([2 * lanes, *struct.unpack_from(f"<{lanes}H", content)])
    if ends[-1] != len(content):
        raise damaged()
    return [content[start:end] for start, end in zip(ends, ends[1:], strict=False)]
