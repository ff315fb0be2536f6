"""The models without a network that a run is compared with: uniform, unigram and n-gram."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np

from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.errors import Unreadable
from rnn_lm.files import Json, alone_in, write_bytes
from rnn_lm.inference.evaluate import figures
from rnn_lm.ngram import HeldOut, NGramLM, unigram_nll

MAX_NGRAM_ORDER = 6
MAX_NGRAM_TOKENS = 10_000_000  # of the training text; with words, counting them takes 1.6 GB
MAX_HELD_OUT_TOKENS = 1_000_000  # of the validation text; more would hardly change the choice


class Baselines:
    """The baselines of one text. Inside its `with` block a thread counts the n-grams.

    The n-gram model is kept at `path`, so that it is counted once. `shared`: other processes may use the same file.
    """

    def __init__(self, path: Path, corpus: Corpus, *, shared: bool = False):
        self._path, self._corpus, self._shared = path, corpus, shared
        self._closing = threading.Event()
        self._valid_nlls: dict[int, dict[str, float]] = {}  # of all members of a sweep
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._ngram = self._pool.submit(self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._pool.shutdown()

    def _count(self) -> NGramLM | None:
        with alone_in(self._path.parent, self._closing.is_set) if self._shared else nullcontext():
            return fit_ngram(self._path, self._corpus, self._closing.is_set)

    def wait(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits until the n-grams are counted or `stop()` is true. Returns whether they are counted."""
        while not self.counted and not stop():
            wait([self._ngram], timeout=0.1)
        return self.counted

    @property
    def counted(self) -> bool:
        return self._ngram.done()

    def valid_nlls(self, tokens: int) -> dict[str, float]:
        """The mean nats per token of each baseline on the first scored tokens of the validation text."""
        if tokens not in self._valid_nlls:
            self._valid_nlls[tokens] = self._nlls(self._corpus.valid.ids[: tokens + 1])
        return self._valid_nlls[tokens]

    def _nlls(self, ids: np.ndarray) -> dict[str, float]:
        ngram, size = self._ngram.result(), len(self._corpus.vocabulary)
        assert ngram is not None  # counting was not stopped
        return {
            "uniform": float(np.log(size)),
            "unigram": unigram_nll(self._corpus.train.ids, ids, size),
            "ngram": ngram.nll(ids),
        }

    @cached_property
    def scores(self) -> Json:
        """The figures of each baseline on the test text, or on the validation text if there is no test text."""
        return self._scored(self._corpus.test) if self._corpus.test.tokens else self.valid_scores

    @cached_property
    def valid_scores(self) -> Json:
        """The same on the validation text."""
        return self._scored(self._corpus.valid)

    def _scored(self, split: Split) -> Json:
        scores: Json = {name: figures(nll, split.tokens_per_character) for name, nll in self._nlls(split.ids).items()}
        ngram = self._ngram.result()
        assert ngram is not None
        scores["ngram"] = {"order": ngram.order, "num_counts": ngram.num_counts} | scores["ngram"]
        return scores

    def share(self, path: Path) -> None:
        """Links (or copies) the n-gram model to `path`, the file of a run."""
        if path.exists():
            return
        self._ngram.result()
        try:
            os.link(self._path, path)
        except OSError:
            write_bytes(path, self._path.read_bytes())


def fit_ngram(path: Path, corpus: Corpus, stopped: Callable[[], bool]) -> NGramLM | None:
    """The modified Kneser-Ney model of order 1 to 6 with the lowest validation loss, read from `path` or saved there.

    Of long texts it reads the first tokens: 10 million to count, 1 million of the validation text to choose the order.
    `stopped` is asked between orders; the result is None once it is true.
    """
    size = len(corpus.vocabulary)
    with suppress(Unreadable):  # then it is counted
        kept = NGramLM.load(path)
        if kept.vocab_size == size:
            return kept
    ids = corpus.train.ids[:MAX_NGRAM_TOKENS]
    models = NGramLM.fit_orders(ids, order=min(MAX_NGRAM_ORDER, len(ids)), vocab_size=size)
    wanted = takewhile(lambda _: not stopped(), models)
    best = min(wanted, key=order_chooser(corpus).nll, default=None)
    if best is None or stopped():
        return None
    best.save(path)
    return best


def order_chooser(corpus: Corpus) -> HeldOut:
    """The text that chooses the order of the n-grams."""
    return HeldOut(corpus.valid.ids[: MAX_HELD_OUT_TOKENS + 1], len(corpus.vocabulary))
