"""The bar that a network must beat: models that need none, fitted and scored beside it."""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.errors import NewerFormat, UserError
from rnn_lm.files import alone_in, write_bytes
from rnn_lm.inference.evaluate import figures
from rnn_lm.ngram import NGramLM, unigram_nll

MAX_NGRAM_ORDER = 6
MAX_NGRAM_TOKENS = 10_000_000  # of the training text that are counted: 1.8 GB, if they are words


class Baselines:
    """The models without a network, of one text; used by `with`, inside which n-grams are counted in the background.

    They are kept at `path`, where those of an earlier process are found. `shared`: other processes may want the same
    file at the same time.
    """

    def __init__(self, path: Path, corpus: Corpus, *, shared: bool = False):
        self.path, self._shared = path, shared
        self._corpus = corpus
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._counting = self._pool.submit(self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()  # nobody waits for the counts any more
        self._pool.shutdown()

    def _count(self) -> NGramLM | None:
        with alone_in(self.path.parent, self._over.is_set) if self._shared else nullcontext():
            return fit_ngram(self.path, self._corpus, self._over.is_set)

    def wait(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits for the counts, or until `stop` says that nobody wants them; whether they are there."""
        while not self._counting.done() and not stop():
            wait([self._counting], timeout=0.1)
        return self._counting.done()

    @property
    def counted(self) -> bool:
        return self._counting.done()

    @cached_property
    def scores(self) -> dict[str, Any]:
        """All of them on the test text (the validation text, if there is none)."""
        ngram = self._counting.result()
        assert ngram is not None  # it was not told to stop
        corpus = self._corpus
        return score_baselines(ngram, corpus, corpus.test if corpus.test.tokens else corpus.valid)

    def share(self, path: Path) -> None:
        """Gives the counts to a run as well: the same file by another name, where the disk can do that."""
        if path.exists():
            return
        self._counting.result()
        try:
            os.link(self.path, path)
        except OSError:
            write_bytes(path, self.path.read_bytes())


def fit_ngram(path: Path, corpus: Corpus, stopped: Callable[[], bool]) -> NGramLM | None:
    """The n-gram model of a run, modified Kneser-Ney: of orders 1 to 6 the best on the validation text.

    It is counted once, and kept at `path`. None where `stopped` says, between two orders, that nobody waits.
    """
    size = len(corpus.vocabulary)
    if path.exists():
        try:
            kept = NGramLM.load(path)
            if kept.vocab_size == size:
                return kept
        except NewerFormat:
            raise
        except UserError:
            pass  # damaged: it is counted again
    ids = corpus.train.ids[:MAX_NGRAM_TOKENS]
    best, lowest = None, math.inf
    for model in NGramLM.fit_orders(ids, order=min(MAX_NGRAM_ORDER, len(ids)), vocab_size=size):
        if (nll := model.nll(corpus.valid.ids)) < lowest:
            best, lowest = model, nll
        if stopped():
            return None
    assert best is not None  # Kneser-Ney holds nothing for impossible
    best.save(path)
    return best


def score_baselines(ngram: NGramLM, corpus: Corpus, split: Split) -> dict[str, Any]:
    """Uniform, unigram and n-gram model on a split."""
    size = len(corpus.vocabulary)
    nlls = {
        "uniform": float(np.log(size)),
        "unigram": unigram_nll(corpus.train.ids, split.ids, size),
        "ngram": ngram.nll(split.ids),
    }
    scores: dict[str, Any] = {name: figures(nll, split.tokens_per_character) for name, nll in nlls.items()}
    scores["ngram"] = {"order": ngram.order, "num_counts": ngram.num_counts} | scores["ngram"]
    return scores
