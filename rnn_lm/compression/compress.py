"""Lossless compression with a language model: archives prove the bits that an evaluation reports.

The file is cut into lanes of about equal size, which the model reads side by side, each from the initial state. A
block holds the next 1024 symbols of every lane, so memory does not depend on the file's size. An unknown symbol, such
as a byte that is not UTF-8, is coded as id 0, whose probability is the share of all unknown symbols, then by its own
count; the header stores the counts. A block that would grow is stored uncompressed; so are all blocks of a file that is
mostly unknown.

Reference: Delétang et al., Language modeling is compression, ICLR 2024.
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from io import BufferedIOBase

from rnn_lm.compression.archive import Header, damaged, machine
from rnn_lm.compression.codec import Codec, file_changed
from rnn_lm.compression.symbols import Progress, Symbols
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.nn.models import LanguageModel

MAX_LANES = 64
LANE_SYMBOLS = 2000  # minimum per lane of several: a cold start costs as much as about ten characters


@dataclass(frozen=True)
class Report:
    """The sizes of a file and its archive."""

    file_bytes: int
    archive_bytes: int
    characters: int
    model_bits: float  # −log2 of the probabilities before rounding; 8 per byte in stored blocks

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
    """Writes a file's archive and verifies it.

    Args:
      model: predicts the next token.
      vocabulary: the model's, of characters or bytes.
      source: the file; seekable.
      target: the archive, opened for writing and reading.
      mix: name of the mixture that `model` is, stored for `decompress`.
      dynamic: whether the model keeps training on the file.
      verify: whether to decode the archive and compare it with the file.
      on_progress: called with the number of bytes encoded or decoded since the last call.

    Raises:
      UserError: if the model reads words, or the archive does not decode to the file.
    """
    if vocabulary.kind == "word":
        raise UserError("word models cannot compress: words do not keep the spacing; use a character model")
    symbols = Symbols(vocabulary)
    survey = symbols.survey(source, on_progress)
    lanes = min(max(survey.symbols // LANE_SYMBOLS, 1), MAX_LANES)
    header = Header(
        model=_identity(model, vocabulary),
        mix=mix,
        dynamic=dynamic,
        size=survey.size,
        sha256=survey.sha256,
        shifts="".join(str(symbols.shift(source, survey.size * i // lanes)) for i in range(lanes)),
        units=survey.symbols,
        characters=survey.characters,
        unknown={} if survey.mostly_unknown else survey.unknown,
        probe="",
        made_with=machine(),
    )
    codec = Codec(model, vocabulary, header, on_progress)
    header = replace(header, probe=codec.probe())
    header.write(target)
    bits = codec.encode(source, target, store=survey.mostly_unknown)
    if _sha256(source) != survey.sha256:
        raise file_changed()
    report = Report(survey.size, target.tell(), survey.characters, bits)
    if verify:
        _verify(codec, header, source, target)
    return report


def decompress(
    model: LanguageModel,
    vocabulary: Vocabulary,
    source: BufferedIOBase,
    target: BufferedIOBase,
    *,
    on_progress: Progress = lambda size: None,
) -> Report:
    """Restores a file, `target`, from its archive, `source`. The field `mix` of the `Header` names the mixture to load.

    Raises:
      UserError: if the archive is damaged or belongs to another model, or this machine computes differently.
    """
    header = Header.read(source)
    if header.model != _identity(model, vocabulary):
        raise UserError("the archive was made with another model (or an earlier checkpoint of this one)")
    codec = Codec(model, vocabulary, header, on_progress)
    if header.probe != codec.probe():
        there = header.made_with
        differences = [
            f"{name} {there.get(name, 'not said')} there, {here} here"
            for name, here in machine().items()
            if here != there.get(name)
        ]
        raise UserError(
            "this machine computes other probabilities than the machine that made the archive: "
            + ("; ".join(differences) or "the settings (XLA_FLAGS) differ")
        )
    bits = codec.decode(source, target)
    if _sha256(target) != header.sha256:
        raise damaged()
    return Report(header.size, source.tell(), header.characters, bits)


def _verify(codec: Codec, header: Header, file: BufferedIOBase, archive: BufferedIOBase) -> None:
    archive.seek(0)
    try:
        if Header.read(archive) != header:
            raise UserError("the header differs")
        codec.decode(archive, _Compared(file))
    except UserError as error:
        raise UserError(f"the archive does not decode to the file ({error}), so it was not kept") from error


class _Compared:
    """A target that compares decoded bytes with a file instead of writing them."""

    def __init__(self, file: BufferedIOBase):
        self.file = file

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def write(self, data: bytes) -> None:
        if self.file.read(len(data)) != data:
            raise UserError("the decoded bytes differ")


def _identity(model: LanguageModel, vocabulary: Vocabulary) -> str:
    return hashlib.sha256(json.dumps([model.fingerprint(), vocabulary.to_json()]).encode()).hexdigest()[:32]


def _sha256(file: BufferedIOBase) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
