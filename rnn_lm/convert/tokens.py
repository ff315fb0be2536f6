"""A vocabulary of another program, and the rows of its model's arrays in the order of our ids."""

import re

import numpy as np

from rnn_lm.data.vocabulary import FITS, NEVER, UNKNOWN, Vocabulary, check_tokens
from rnn_lm.errors import UserError

UNKNOWNS = (UNKNOWN, "<UNK>", "[UNK]")  # how others write it
FORMS = (
    'a JSON list of tokens in the order of their ids, {"token": id, …}, or {"kind": …, "normalize": …, "tokens": […]}'
)


class TheirVocabulary(Vocabulary):
    """A vocabulary whose model's arrays have their rows in another order than our ids.

    `rows[i]` is the row of id i, or −1 where there is none, which can only be `<unk>`.
    """

    rows: np.ndarray


def read_vocabulary(value: object) -> TheirVocabulary:
    """The vocabulary of a `vocabulary.json`, of ours or of another program.

    It is one of `FORMS`. Unless it has a kind, single characters are "char", integers from 0 to 255 "byte" and other
    strings "word". Our id 0 is `<unk>`; where their list has it elsewhere, or not at all, `rows` says how ids moved.

    Raises:
      UserError: it has another form, a token occurs twice, or the tokens are not of one kind.
    """
    kind, normalize = "", "none"
    if isinstance(value, dict) and isinstance(value.get("tokens"), list):
        kind, normalize, value = str(value.get("kind", "")), str(value.get("normalize", "none")), value["tokens"]
    elif isinstance(value, dict) and sorted(map(repr, value.values())) == sorted(map(repr, range(len(value)))):
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not value:
        raise UserError(f"not a vocabulary: {str(value)[:60]!r}; it is {FORMS}")
    unknown = next((value.index(name) for name in UNKNOWNS if name in value), -1)
    ids = [i for i in range(len(value)) if i != unknown]
    tokens = [value[i] for i in ids]
    kind = kind or _kind_of(tokens)
    check_tokens(tokens, kind, normalize)
    vocabulary = TheirVocabulary(tokens, kind=kind, normalize=normalize)
    vocabulary.rows = np.array([unknown, *ids])
    return vocabulary


def _kind_of(tokens: list[object]) -> str:
    """What all tokens are, the narrowest kind first.

    A few `<pad>` or `[CLS]` among characters do not make words of these: text could not be cut into such tokens.
    """
    kinds = [kind for kind, fits in FITS.items() if all(map(fits, tokens))]
    if not kinds:
        raise UserError(f"tokens are all strings, or all integers from 0 to 255; not {str(tokens)[:60]}")
    marks = [token for token in tokens if kinds[0] == "word" and len(str(token)) != 1]
    if 0 < len(marks) < len(tokens) and all(re.fullmatch(r"<.+>|\[.+\]", str(token)) for token in marks):
        instead = 'put an unused character such as "\\ue000" in its place, or give {"kind": "word", "tokens": […]}'
        raise UserError(f"the vocabulary has {marks[0]!r} among characters; {instead}")
    return kinds[0]


def in_our_order(arrays: dict[str, np.ndarray], rows: np.ndarray, one_hot: str = "") -> dict[str, np.ndarray]:
    """The arrays with what belongs to token i taken from their row `rows[i]`; −1 makes an `<unk>` that is never drawn.

    That `<unk>` has zeros for its vector and its output weights and the logit `NEVER`. So the logits of all other
    tokens stay as they are, and so do their probabilities. `one_hot` names the weights that read one-hot vectors,
    [V, G·H], or [(n−1)·V, H] of an MLP over n − 1 tokens.
    """
    axes = {"embedding": 0, "w_hq": 1, "b_q": 0}

    def taken(array: np.ndarray, axis: int, fill: float = 0.0) -> np.ndarray:
        new = np.full_like(np.take(array, [0], axis), fill)
        return np.take(np.concatenate([array, new], axis), rows, axis)  # row −1 is the last, the new one

    moved = {
        name: taken(arrays[name], axis, NEVER if name == "b_q" else 0) for name, axis in axes.items() if name in arrays
    }
    if one_hot:
        size, width = rows.max() + 1, arrays[one_hot].shape[1]
        moved[one_hot] = taken(arrays[one_hot].reshape(-1, size, width), 1).reshape(-1, width)
    return arrays | moved
