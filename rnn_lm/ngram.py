"""N-gram models: counts → probabilities.

The n-grams of all orders form a trie. A node is the rank of an n-gram within its order, sorted by its prefix's node and
then its last token, so one `searchsorted` finds many n-grams at once for any vocabulary size.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rnn_lm.errors import NewerFormat, Unreadable, UserError, unknown_name
from rnn_lm.files import FORMAT, check_format, path_of, write_bytes

MAX_ORDER = 10
ROOT = 0  # the node of the empty n-gram


@dataclass(frozen=True)
class Level:
    """The n-grams of one order: P = the n-gram's weight + its context's backoff · P of the order below."""

    keys: Int[np.ndarray, "M"]  # the prefix's node · V + the last token, ascending
    counts: Int[np.ndarray, "M"]  # by node
    weights: Float[np.ndarray, "M"]  # by node
    backoffs: Float[np.ndarray, "P"]  # by the context's node, one order below


class NGramLM:
    """P(token | the order − 1 tokens before it), from the counts of a text.

    For k = 1 … order and P_0 = 1 / V, P_k = weight + backoff · P_{k−1} (add-α: · P_0). An unseen n-gram has weight 0,
    an unseen context backoff 1.

    >>> model = NGramLM.fit(np.array([1, 2, 1, 2, 1, 3]), order=2, vocab_size=4, smoothing="mle")
    >>> np.exp(model.log_probs([1])).round(3)
    array([0.   , 0.   , 0.667, 0.333])
    """

    def __init__(self, levels: Sequence[Level], vocab_size: int, smoothing: str, alpha: float):
        self.levels = tuple(levels)
        self.vocab_size = vocab_size
        self.smoothing = smoothing
        self.alpha = alpha

    @property
    def order(self) -> int:
        return len(self.levels)

    @property
    def num_counts(self) -> int:
        """The number of stored n-grams of all orders."""
        return sum(len(level.keys) for level in self.levels)

    @classmethod
    def fit(
        cls,
        ids: Int[np.ndarray, "N"],
        *,
        order: int,
        vocab_size: int,
        smoothing: str = "kneser_ney",
        alpha: float = 1.0,
    ) -> "NGramLM":
        """Counts a text.

        Args:
          ids: the token ids.
          order: n, 1 to 10; the context is n − 1 tokens.
          vocab_size: V.
          smoothing: "kneser_ney", interpolated and modified, with three discounts per order (Chen, Goodman 1998);
            "add_alpha", (count + α) / (total + α V); or "mle", count / total, which shortens unseen contexts.
          alpha: α of add_alpha, above 0.

        Raises:
          UserError: if the order is out of range, or the text is shorter than it.
          ValueError: if an id is not from 0 to V − 1.
        """
        *_, model = cls.fit_orders(ids, order=order, vocab_size=vocab_size, smoothing=smoothing, alpha=alpha)
        return model

    @classmethod
    def fit_orders(
        cls,
        ids: Int[np.ndarray, "N"],
        *,
        order: int,
        vocab_size: int,
        smoothing: str = "kneser_ney",
        alpha: float = 1.0,
    ) -> Iterator["NGramLM"]:
        """`fit` for the orders 1 to `order`, which share levels; little slower than `order` alone."""
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"the n-gram's order is {order}; it must be from 1 to {MAX_ORDER}")
        if smoothing not in SMOOTHINGS:
            raise unknown_name("smoothing", smoothing, SMOOTHINGS)
        if not alpha > 0:
            raise UserError(f"alpha is {alpha}; it must be above 0")
        ids = _checked(ids, vocab_size)
        if len(ids) < order:
            raise UserError(f"the text has {len(ids)} tokens, fewer than the n-gram's order, {order}")
        settings: dict[str, Any] = {"vocab_size": vocab_size, "smoothing": smoothing, "alpha": alpha}
        lower: list[Level] = []
        starts = np.full(len(ids), ROOT)  # the node of the (k−1)-gram that starts at each position
        keys, num_contexts = np.zeros(1, np.int64), 0  # those of order k − 1
        for k in range(1, order + 1):
            prefixes = starts[: len(ids) - k + 1]
            longer, nodes, counts = _distinct(prefixes * vocab_size + ids[k - 1 :], len(keys) * vocab_size)
            if k > 1:
                if smoothing == "kneser_ney":
                    # Below the highest order, the count is the number of distinct tokens before the n-gram. The start
                    # of the text is one of them.
                    suffix = np.empty(len(longer), np.int64)
                    suffix[nodes] = starts[1 : len(nodes) + 1]
                    continuations = np.bincount(suffix, minlength=len(keys))
                    continuations[starts[0]] += 1
                    top = _level(keys, continuations, num_contexts, **settings)
                lower.append(top)
            keys, starts, num_contexts = longer, nodes, len(keys)
            top = _level(keys, counts, num_contexts, **settings)
            yield cls([*lower, top], **settings)

    def save(self, path: str | Path) -> None:
        """Writes the counts to an .npz file."""
        arrays = {
            f"{name}_{k}": getattr(level, name) for k, level in enumerate(self.levels) for name in ("keys", "counts")
        }
        names = ("order", "vocab_size", "smoothing", "alpha")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, format=FORMAT, **{name: getattr(self, name) for name in names}, **arrays)
        write_bytes(path_of(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "NGramLM":
        """Reads a file of `save`.

        Raises:
          Unreadable: if the file is missing or damaged; NewerFormat if a newer version wrote it.
        """
        path = path_of(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
        try:
            with np.load(io.BytesIO(content)) as file:
                check_format(path, file["format"].item() if "format" in file else 0)
                settings: dict[str, Any] = {name: file[name].item() for name in ("vocab_size", "smoothing", "alpha")}
                levels: list[Level] = []
                for k in range(file["order"].item()):
                    num_contexts = len(levels[-1].keys) if levels else 1
                    levels.append(_level(file[f"keys_{k}"], file[f"counts_{k}"], num_contexts, **settings))
            if not levels:
                raise ValueError("it has no order")
        except NewerFormat:
            raise
        except Exception as error:  # zip, zlib and numpy have many
            raise Unreadable(f"{path} is damaged, or not an n-gram model: {error}") from error
        return cls(levels, **settings)

    def probs(self, ids: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """P of each token of a text given the tokens before it; the first tokens have shorter contexts."""
        return HeldOut(ids, self.vocab_size).probs(self)

    def nll(self, ids: Int[np.ndarray, "N"]) -> float:
        """Mean nats per token of all tokens but the first, which is context only; infinite if a token has P = 0."""
        return HeldOut(ids, self.vocab_size).nll(self)

    def log_probs(self, context: Sequence[int] | Int[np.ndarray, "n"]) -> Float[np.ndarray, "V"]:
        """Log probability of every token after a context, of which the last order − 1 tokens count."""
        context = _checked(context, self.vocab_size)
        uniform = probs = np.full(self.vocab_size, 1 / self.vocab_size)
        for k, level in enumerate(self.levels[: len(context) + 1], start=1):
            node = ROOT
            for depth, token in enumerate(context[len(context) - k + 1 :]):
                node = _find(self.levels[depth].keys, node, token, self.vocab_size)
            below = uniform if self.smoothing == "add_alpha" else probs
            probs = below * (level.backoffs[node] if node >= 0 else 1.0)
            if node >= 0:
                start, end = np.searchsorted(level.keys, (node * self.vocab_size, (node + 1) * self.vocab_size))
                probs[level.keys[start:end] % self.vocab_size] += level.weights[start:end]
        with np.errstate(divide="ignore"):
            return np.log(probs)


class HeldOut:
    """A text for choosing an order: models of `fit_orders` score it in turn, and what they share is computed once.

    Args:
      ids: the token ids.
      vocab_size: V.
    """

    def __init__(self, ids: Int[np.ndarray, "N"], vocab_size: int):
        self._ids, self._vocab_size = _checked(ids, vocab_size), vocab_size
        self._read = 0  # levels that all later models share
        self._below = np.full(len(ids), 1 / vocab_size)  # P of each token under those levels
        self._contexts = np.full(len(ids), ROOT)  # the node of the `read` tokens from each position on
        self._nodes: np.ndarray | None = None  # the same with the token after them

    def probs(self, model: NGramLM) -> Float[np.ndarray, "N"]:
        """`model.probs(ids)`. Models come in ascending order."""
        if model.order <= self._read:
            raise ValueError(f"a model of order {model.order} comes after one of order {self._read + 1}")
        for level in model.levels[self._read : -1]:
            self._below = self._probs(level, model.smoothing)
            assert self._nodes is not None
            self._read, self._contexts, self._nodes = self._read + 1, self._nodes[:-1], None
        return self._probs(model.levels[-1], model.smoothing)

    def nll(self, model: NGramLM) -> float:
        """`model.nll(ids)`."""
        if len(self._ids) < 2:
            raise ValueError(f"{len(self._ids)} tokens: the first is context only, so at least 2 are needed")
        with np.errstate(divide="ignore"):
            return float(-np.log(self.probs(model)[1:]).mean())

    def _probs(self, level: Level, smoothing: str) -> Float[np.ndarray, "N"]:
        """With one level more than those read. Levels of different models have the same n-grams."""
        k, contexts = self._read, self._contexts
        if self._nodes is None:
            self._nodes = _find(level.keys, contexts, self._ids[k:], self._vocab_size)
        own = np.where(self._nodes >= 0, level.weights[self._nodes], 0.0)
        backoffs = np.where(contexts >= 0, level.backoffs[contexts], 1.0)
        below = 1 / self._vocab_size if smoothing == "add_alpha" else self._below[k:]
        return np.concatenate([self._below[:k], own + backoffs * below])


def _checked(ids: Any, vocab_size: int) -> Int[np.ndarray, "N"]:
    """Ids as int64, so that node · V does not overflow."""
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}; they must be from 0 to {vocab_size - 1}")
    return ids.astype(np.int64)


def _distinct(keys: Int[np.ndarray, "N"], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct keys, all below `size`, ascending; the rank of each key among them; and how often each is there.

    That is `np.unique`, in linear time: by a table of all possible keys where that is no longer than the text, else by
    a radix sort.
    """
    if size <= len(keys):
        table = np.bincount(keys, minlength=size)
        is_there = table > 0
        return np.flatnonzero(is_there), (np.cumsum(is_there) - 1)[keys], table[is_there]
    order = _radix_argsort(keys, size)
    ascending = keys[order]
    is_first = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    ranks = np.empty_like(order)
    ranks[order] = np.cumsum(is_first) - 1
    firsts = np.flatnonzero(is_first)
    return ascending[firsts], ranks, np.diff(firsts, append=len(keys))


def _radix_argsort(keys: Int[np.ndarray, "N"], size: int) -> Int[np.ndarray, "N"]:
    """The order that sorts keys below `size`, 16 bits at a time: for those, NumPy's stable sort is a radix sort."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")  # by the last 16 bits
    for shift in range(16, (size - 1).bit_length(), 16):
        digits = (keys >> shift).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def _find(keys: np.ndarray, prefixes, tokens, vocab_size: int):
    """The nodes of prefixes followed by tokens; −1 if the n-gram or its prefix is missing."""
    wanted = np.asarray(prefixes) * vocab_size + tokens
    nodes = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((np.asarray(prefixes) >= 0) & (keys[nodes] == wanted), nodes, -1)


def _level(
    keys: np.ndarray, counts: np.ndarray, num_contexts: int, *, vocab_size: int, smoothing: str, alpha: float
) -> Level:
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, num_contexts)
    weights, backoffs = SMOOTHINGS[smoothing](counts, contexts, totals, alpha * vocab_size)
    return Level(keys, counts, weights, backoffs)


def _kneser_ney(counts, contexts, totals, added):
    """(count − D(count)) / total; the discounts D go to the order below."""
    discounts = np.concatenate([[0.0], discounts_of(counts)])[np.minimum(counts, 3)]
    left_over = np.bincount(contexts, discounts, len(totals))
    backoffs = np.divide(left_over, totals, out=np.ones(len(totals)), where=totals > 0)
    return (counts - discounts) / totals[contexts], backoffs


def _add_alpha(counts, contexts, totals, added):
    """(count + α) / (total + α V); α V goes to the uniform distribution."""
    return counts / (totals + added)[contexts], added / (totals + added)


def _mle(counts, contexts, totals, added):
    """P = count / total; nothing goes to unseen n-grams."""
    return counts / totals[contexts], np.where(totals > 0, 0.0, 1.0)


SMOOTHINGS = {"kneser_ney": _kneser_ney, "add_alpha": _add_alpha, "mle": _mle}


def discounts_of(counts: Int[np.ndarray, "M"]) -> Float[np.ndarray, "3"]:
    """The modified Kneser-Ney discounts of counts 1, 2 and ≥ 3, from the counts of counts (Chen, Goodman 1998).

    D_i = i − (i + 1) Y n_{i+1} / n_i with Y = n_1 / (n_1 + 2 n_2). If one is undefined or out of range, as in small
    texts, KenLM's fixed discounts 0.5, 1 and 1.5 are used.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if (n > 0).all():
        y = n[0] / (n[0] + 2 * n[1])
        i = np.arange(1, 4)
        discounts = i - (i + 1) * y * n[1:] / n[:-1]
        if ((discounts > 0) & (discounts <= i)).all():
            return discounts
    return np.array([0.5, 1.0, 1.5])


def unigram_nll(train_ids: np.ndarray, ids: np.ndarray, vocab_size: int) -> float:
    """Mean nats per token of ids [N] without the first, under P(v) = (count(v) + 1) / (N_train + |𝒱|)."""
    counts = np.bincount(train_ids, minlength=vocab_size) + 1.0
    return float(np.mean(math.log(counts.sum()) - np.log(counts)[ids[1:]]))
