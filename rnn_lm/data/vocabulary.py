"""Characters, words or bytes ↔ ids."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from rnn_lm.errors import UserError, unknown_name

UNKNOWN = "<unk>"
NORMALIZE = {
    "none": lambda text: text,
    # The d2l rule: each run of anything but letters becomes one space.
    "letters": lambda text: re.sub("[^A-Za-z]+", " ", text).lower(),
}
# A text as the sequence of its tokens: a str for characters, bytes for bytes, a list for words. A word is a run of
# anything but white space; the end of a line is a token too; other white space is only what stands between words.
TOKENIZE = {
    "char": lambda text: text,
    "word": lambda text: re.findall(r"\n|\S+", text),
    "byte": lambda text: text.encode(),
}
Tokens = str | bytes | list[str]


def tokenize(text: str, kind: str, normalize: str) -> Tokens:
    """The normalized text as a sequence of tokens: of characters, words or bytes."""
    if kind not in TOKENIZE:
        raise unknown_name("corpus.tokens", kind, TOKENIZE)
    if normalize not in NORMALIZE:
        raise unknown_name("corpus.normalize", normalize, NORMALIZE)
    return TOKENIZE[kind](NORMALIZE[normalize](text))


def num_characters(tokens: Tokens) -> int:
    """How many characters of text the tokens stand for: what bits per character are divided by."""
    if isinstance(tokens, bytes):
        return int(np.count_nonzero(np.frombuffer(tokens, np.uint8) & 0xC0 != 0x80))  # all but continuation bytes
    return len(tokens) if isinstance(tokens, str) else len(_join(tokens))


class Vocabulary:
    """The tokens of a training text, most frequent first, ↔ ids. Id 0 is `<unk>`, all that the text did not have.

    >>> vocabulary = Vocabulary.of(tokenize("machine", "char", "none"), kind="char", normalize="none")
    >>> vocabulary.decode(vocabulary.encode("chain"))
    'chain'
    """

    def __init__(self, tokens: Sequence[str | int], *, kind: str, normalize: str):
        self.tokens: list[str | int] = [UNKNOWN, *tokens]  # words or characters; for bytes their numbers
        self.kind = kind
        self.normalize = normalize
        self._ids = {token: i + 1 for i, token in enumerate(tokens)}

    @classmethod
    def of(cls, tokens: Tokens, *, kind: str, normalize: str, max_vocab: int = 0) -> "Vocabulary":
        """The vocabulary of a text; `max_vocab` entries of it at most, `<unk>` included (0: all)."""
        counts: Counter[Any] = Counter(tokens)
        del counts[UNKNOWN]  # a text that has this very word means the same by it
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(
            [token for token, _ in ranked][: max_vocab - 1 if max_vocab else None], kind=kind, normalize=normalize
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def start(self) -> int:
        """The token that stands before a text: the end of a line or, where there is none, the most frequent one."""
        return int(next(iter(self.encode("\n")), 0)) or 1

    def encode(self, text: str) -> np.ndarray:
        """The ids [N] of a text, normalized as the training text was. What is not in the vocabulary is 0."""
        return self.encode_tokens(tokenize(text, self.kind, self.normalize))

    def encode_tokens(self, tokens: Tokens) -> np.ndarray:
        """The ids [N] of tokens that `tokenize` made."""
        if isinstance(tokens, list):
            return np.fromiter((self._ids.get(token, 0) for token in tokens), np.int32, len(tokens))
        if isinstance(tokens, bytes):
            return self.encode_codes(np.frombuffer(tokens, np.uint8))
        return self.encode_codes(np.frombuffer(tokens.encode("utf-32-le"), np.uint32))

    @property
    def codes(self) -> np.ndarray:
        """What each id stands for, in a vocabulary of characters or bytes: the code point, the byte; 0 for `<unk>`."""
        return np.array([0, *(t if isinstance(t, int) else ord(t) for t in self.tokens[1:])], np.uint32)

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """The ids of code points, or of bytes, in an array of any shape."""
        known = self.codes[1:]
        table = np.zeros(int(max(known.max(initial=0), codes.max(initial=0))) + 1, np.int32)
        table[known] = np.arange(1, len(self))
        return table[codes]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD, `<unk>` stays itself."""
        tokens = [self.tokens[i] for i in ids]
        if self.kind == "byte":
            return b"".join(t.encode() if isinstance(t, str) else bytes([t]) for t in tokens).decode(errors="replace")
        return "".join(map(str, tokens)) if self.kind == "char" else _join(list(map(str, tokens)))

    def continue_text(self, prompt: str, ids: Iterable[int]) -> str:
        """The prompt as it was given, with the text of ids after it."""
        start = self.encode(prompt)
        added = self.decode([*start, *ids])[len(self.decode(start)) :]
        return prompt + (added.removeprefix(" ") if self.kind == "word" and prompt[-1:].isspace() else added)

    def unknown_in(self, *texts: str) -> list[str]:
        """The different tokens of texts that the vocabulary lacks, in the order of their appearance."""
        tokens: Iterable[Any] = chain.from_iterable(tokenize(text, self.kind, self.normalize) for text in texts)
        return [chr(t) if isinstance(t, int) else t for t in dict.fromkeys(tokens) if t not in self._ids]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "normalize": self.normalize, "tokens": self.tokens}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Vocabulary":
        try:
            return cls(value["tokens"][1:], kind=value["kind"], normalize=value["normalize"])
        except (KeyError, TypeError) as error:
            raise UserError(f"no vocabulary: {error!r} in {str(value)[:60]!r}") from error


def _join(words: Sequence[str]) -> str:
    return re.sub(" ?\n ?", "\n", " ".join(words))
