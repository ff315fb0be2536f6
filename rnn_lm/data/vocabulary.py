"""Characters, words or bytes ↔ ids."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from rnn_lm.errors import UserError, unknown_name

UNKNOWN = "<unk>"
# The logit of an `<unk>` that their model does not have. Its probability is 0 in float32 and float64, and it is a
# number: infinities make NaN of p log p, −1e9 is infinite in half floats and swamps float32 sums of nats.
NEVER = -1e4
NORMALIZE = {
    "none": lambda text: text,
    # The d2l rule: each run of anything but letters becomes one space.
    "letters": lambda text: re.sub("[^A-Za-z]+", " ", text).lower(),
}
# Text → tokens: a str of characters, bytes, or a list of words. White space separates words; a newline is a token.
TOKENIZE = {
    "char": lambda text: text,
    "word": lambda text: re.findall(r"\n|\S+", text),
    "byte": lambda text: text.encode(),
}
Tokens = str | bytes | list[str]
CHUNK = 2**20  # characters or bytes that are counted or encoded at once; it takes 16 bytes of memory for each
KINDS = {"char": "characters", "word": "words", "byte": "bytes"}
# Whether a text can be cut into such tokens.
FITS: dict[str, Callable[[object], bool]] = {
    "char": lambda token: isinstance(token, str) and len(token) == 1,
    "byte": lambda token: type(token) is int and 0 <= token <= 255,
    "word": lambda token: isinstance(token, str) and re.fullmatch(r"\n|\S+", token) is not None,
}


def tokenize(text: str, kind: str, normalize: str) -> Tokens:
    """Normalizes a text and splits it into characters, words or bytes."""
    if kind not in TOKENIZE:
        raise unknown_name("corpus.tokens", kind, TOKENIZE)
    if normalize not in NORMALIZE:
        raise unknown_name("corpus.normalize", normalize, NORMALIZE)
    return TOKENIZE[kind](NORMALIZE[normalize](text))


def counted(tokens: Tokens) -> Mapping[Any, int]:
    """The number of times that each token occurs, in order of appearance."""
    if isinstance(tokens, list) or len(tokens) <= CHUNK // 16:  # tables of all codes take longer for few tokens
        return Counter(tokens)
    counts: Counter[Any] = Counter()
    for start in range(0, len(tokens), CHUNK):
        codes = _codes(tokens[start : start + CHUNK])
        times = np.bincount(codes)
        first = np.zeros_like(times)
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        present = np.flatnonzero(times)
        in_order = present[np.argsort(first[present])].tolist()
        counts.update({code if isinstance(tokens, bytes) else chr(code): int(times[code]) for code in in_order})
    return counts


def _codes(tokens: str | bytes) -> np.ndarray:
    """The code points of characters, or bytes as numbers."""
    if isinstance(tokens, bytes):
        return np.frombuffer(tokens, np.uint8)
    return np.frombuffer(tokens.encode("utf-32-le"), np.uint32)


def num_characters(tokens: Tokens) -> int:
    """The number of characters of text in tokens."""
    if isinstance(tokens, bytes):
        return int(np.count_nonzero(np.frombuffer(tokens, np.uint8) & 0xC0 != 0x80))  # all but continuation bytes
    return len(joined(tokens))


def joined(tokens: Tokens) -> str:
    """The text of tokens. Words get single blanks between them."""
    if isinstance(tokens, bytes):
        return tokens.decode(errors="replace")
    return tokens if isinstance(tokens, str) else _join(tokens)


def characters_after(before: Tokens, tokens: Tokens) -> int:
    """The number of characters that tokens add to a text that ends with `before`: words bring a blank."""
    if not isinstance(tokens, list):
        return num_characters(tokens)
    return num_characters(before + tokens) - num_characters(before)  # type: ignore[operator]


def readable(token: object) -> str:
    """A token as text: bytes, which are numbers, outside ASCII in hexadecimal."""
    if isinstance(token, int):
        return chr(token) if token < 0x80 else f"\\x{token:02x}"
    return str(token)


class Vocabulary:
    """Tokens of a training text, most frequent first, ↔ ids. Id 0 is `<unk>`, any other token.

    >>> vocabulary = Vocabulary.of(tokenize("machine", "char", "none"), kind="char", normalize="none")
    >>> vocabulary.decode(vocabulary.encode("chain"))
    'chain'
    """

    def __init__(self, tokens: Sequence[str | int], *, kind: str, normalize: str):
        self.tokens: list[str | int] = [UNKNOWN, *tokens]  # words or characters, or bytes as numbers
        self.kind = kind
        self.normalize = normalize
        self._ids = {token: i + 1 for i, token in enumerate(tokens)}

    @classmethod
    def of(cls, tokens: Tokens, *, kind: str, normalize: str, max_vocab: int = 0) -> "Vocabulary":
        """The vocabulary of a text, with at most `max_vocab` entries including `<unk>` (0: all)."""
        return cls([], kind=kind, normalize=normalize).extended(counted(tokens), max_vocab=max_vocab)

    def extended(self, counts: Mapping[Any, int], *, max_vocab: int = 0) -> "Vocabulary":
        """The same, and at the end the counted tokens that it lacks, up to `max_vocab` entries (0: all)."""
        # The word <unk> in a text is id 0 too.
        lacking = (item for item in counts.items() if item[0] not in self._ids and item[0] != UNKNOWN)
        new = sorted(lacking, key=lambda item: (-item[1], item[0]))
        free = max(0, max_vocab - len(self)) if max_vocab else None
        return Vocabulary(
            self.tokens[1:] + [token for token, _ in new][:free], kind=self.kind, normalize=self.normalize
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def start(self) -> int:
        """The token before a text: newline or, without one, the most frequent token."""
        return int(next(iter(self.encode("\n")), 0)) or 1

    def prompt_of(self, prompt: str | None) -> tuple[str, np.ndarray]:
        """A prompt and its ids; the default is `start`, whose text is "" if it is a part of a character."""
        if prompt is not None:
            return prompt, self.encode(prompt)
        text = self.decode([self.start])
        return text if self.encode(text).tolist() == [self.start] else "", np.array([self.start])

    def encode(self, text: str) -> np.ndarray:
        """The ids [N] of a text, normalized like the training text. Unknown tokens are 0."""
        return self.encode_tokens(tokenize(text, self.kind, self.normalize))

    def encode_tokens(self, tokens: Tokens) -> np.ndarray:
        """The ids [N] of tokens from `tokenize`."""
        if isinstance(tokens, list):
            return np.fromiter((self._ids.get(token, 0) for token in tokens), np.int32, len(tokens))
        ids = np.empty(len(tokens), np.int32)
        for start in range(0, len(tokens), CHUNK):
            ids[start : start + CHUNK] = self.encode_codes(_codes(tokens[start : start + CHUNK]))
        return ids

    @cached_property
    def codes(self) -> np.ndarray:
        """The code point or byte of each id, in a vocabulary of characters or bytes; 0 for `<unk>`."""
        return np.array([0, *(t if isinstance(t, int) else ord(t) for t in self.tokens[1:])], np.uint32)

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """The ids of code points or bytes, in an array of any shape."""
        return self._ids_by_code[np.minimum(codes, np.uint32(len(self._ids_by_code) - 1))]

    @cached_property
    def _ids_by_code(self) -> np.ndarray:
        """The id of each code up to the largest, and 0 for all above it."""
        known = self.codes[1:]
        table = np.zeros(int(known.max(initial=0)) + 2, np.int32)
        table[known] = np.arange(1, len(self))
        return table

    def tokens_of(self, ids: Iterable[int]) -> Tokens:
        """The tokens of ids."""
        tokens: list[Any] = [self.tokens[i] for i in ids]
        if self.kind == "byte":
            return b"".join(t.encode() if isinstance(t, str) else bytes([t]) for t in tokens)
        return "".join(tokens) if self.kind == "char" else tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD; `<unk>` is kept."""
        return joined(self.tokens_of(ids))

    def continue_text(self, prompt: str, ids: Iterable[int]) -> str:
        """The unchanged prompt, followed by the text of ids."""
        start = self.encode(prompt)
        added = self.decode([*start, *ids])[len(self.decode(start)) :]
        return prompt + (added.removeprefix(" ") if self.kind == "word" and prompt[-1:].isspace() else added)

    def unknown_in(self, *texts: str) -> list[str]:
        """The distinct tokens of texts outside the vocabulary, in order of appearance."""
        tokens = chain.from_iterable(counted(tokenize(text, self.kind, self.normalize)) for text in texts)
        known = {UNKNOWN} if self.kind == "word" else set()  # some texts have this word for rare ones
        return [readable(token) for token in dict.fromkeys(tokens) if token not in self._ids and token not in known]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "normalize": self.normalize, "tokens": self.tokens}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Vocabulary":
        """The vocabulary of a `vocabulary.json`; raises UserError where it is none."""
        try:
            (first, *tokens), kind, normalize = value["tokens"], value["kind"], value["normalize"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a vocabulary: {error!r} in {str(value)[:60]!r}") from error
        if first != UNKNOWN:
            raise UserError(f"the first token of a vocabulary is {UNKNOWN}, not {str(first)[:60]!r}")
        check_tokens(tokens, kind, normalize)
        return cls(tokens, kind=kind, normalize=normalize)


def check_tokens(tokens: Sequence[object], kind: str, normalize: str) -> None:
    """Raises UserError unless these can be the tokens of a vocabulary of that kind."""
    for what, name, known in (("kind", kind, KINDS), ("normalize", normalize, NORMALIZE)):
        if name not in known:
            raise unknown_name(f"{what} of the vocabulary", str(name), known)
    if other := [token for token in tokens if not FITS[kind](token)]:
        raise UserError(f"a vocabulary of kind {kind} cannot have the token {str(other[0])[:60]!r}")
    if twice := [token for token, count in Counter(tokens).items() if count > 1]:
        raise UserError(f"the vocabulary has the token {twice[0]!r} twice")


def _join(words: Sequence[str]) -> str:
    return re.sub(" ?\n ?", "\n", " ".join(words))
