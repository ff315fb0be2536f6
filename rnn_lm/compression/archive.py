"""The format of an archive: a header, then blocks, each with its own checksum."""

import json
import platform
import struct
import zlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BufferedIOBase

import jax

from rnn_lm.cores import usable_cores
from rnn_lm.errors import UserError
from rnn_lm.files import check_format
from rnn_lm.nn import native

MAGIC = b"rnn_lm\x00\x01"  # the last byte is the format's version
MAX_HEADER = 2**26  # bytes
CODED, STORED = 0, 1  # kinds of blocks
_LENGTHS = struct.Struct("<II")  # the header's length and CRC-32
_BLOCK = struct.Struct("<BIII")  # kind, length, CRC-32 of the content and of the decoded bytes


@dataclass(frozen=True)
class Header:
    """The fields that decoding needs. Their names are part of the format."""

    model: str  # fingerprint of the model and its vocabulary
    mix: str  # name of the mixture
    dynamic: bool
    size: int  # bytes of the file
    sha256: str  # of the file
    shifts: str  # one digit per lane: bytes from an equal division to the next symbol, where the lane starts
    units: int  # symbols of the file
    characters: int
    unknown: dict[int, int]  # code of each symbol outside the vocabulary → its count
    probe: str  # hash of a fixed text's frequencies and code
    made_with: dict[str, str]

    def write(self, file: BufferedIOBase) -> None:
        packed = zlib.compress(json.dumps(asdict(self), separators=(",", ":")).encode(), 9)
        file.write(MAGIC + _LENGTHS.pack(len(packed), zlib.crc32(packed)) + packed)

    @classmethod
    def read(cls, file: BufferedIOBase) -> "Header":
        """Reads the header of an archive, up to its first block.

        Raises:
          UserError: if there is no header, or it is damaged.
        """
        magic = file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1] or magic[-1] == 0:
            raise UserError("not an archive written by `compress`")
        check_format("the archive", magic[-1], newest=MAGIC[-1])
        try:
            length, checksum = _LENGTHS.unpack(file.read(_LENGTHS.size))
            packed = file.read(min(length, MAX_HEADER))
            if zlib.crc32(packed) != checksum:
                raise ValueError("checksum")
            fields = json.loads(zlib.decompressobj().decompress(packed, MAX_HEADER))
            return cls(**fields | {"unknown": {int(code): count for code, count in fields["unknown"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError, struct.error, zlib.error) as error:
            raise UserError("the archive is damaged: its header cannot be read") from error


def write_block(file: BufferedIOBase, kind: int, content: bytes, raw: bytes) -> None:
    """Writes a block that decodes to `raw`."""
    file.write(_BLOCK.pack(kind, len(content), zlib.crc32(content), zlib.crc32(raw)) + content)


def read_block(file: BufferedIOBase, longest: int) -> tuple[int, bytes, int]:
    """The kind of the next block, its content, and the CRC-32 of its decoded bytes.

    Raises:
      UserError: if the block is cut short, damaged, or longer than `longest`.
    """
    start = file.read(_BLOCK.size)
    if len(start) == _BLOCK.size:
        kind, length, checksum, raw_checksum = _BLOCK.unpack(start)
        content = file.read(min(length, longest))
        if kind in (CODED, STORED) and len(content) == length and zlib.crc32(content) == checksum:
            return kind, content, raw_checksum
    raise damaged()


def damaged() -> UserError:
    return UserError("the archive is damaged: it was cut short, or bytes of it have changed")


def machine() -> dict[str, str]:
    """Everything that the last bit of a probability may depend on."""
    from numpy._core._multiarray_umath import __cpu_features__  # numpy has no public function for them

    features = " ".join(sorted(name for name, has in __cpu_features__.items() if has))
    return {
        **{name: version(name) for name in ("jax", "jaxlib", "constriction")},
        "device": jax.devices()[0].device_kind,
        "machine code": native.version() if jax.default_backend() == "cpu" else "none",
        "cores": str(usable_cores()),
        "cpu": f"{platform.machine()} {zlib.crc32(features.encode()):08x}",
    }
