"""The bar that a network must beat: models that need none, fitted and scored beside it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.errors import UserError
from rnn_lm.inference.evaluate import figures
from rnn_lm.ngram import NGramLM, unigram_nll
from rnn_lm.training.run_folder import NGRAM

MAX_NGRAM_ORDER = 6
MAX_NGRAM_TOKENS = 10_000_000  # of the training text that are counted: 1.8 GB, if they are words


def fit_ngram(
    workdir: Path, corpus: Corpus, stopped: Callable[[], bool], counted: NGramLM | None = None
) -> NGramLM | None:
    """The n-gram model of a run, modified Kneser-Ney: of orders 1 to 6 the best on the validation text.

    It is counted once, here or, as `counted`, before, and kept in the run's folder. None where `stopped` says, between
    two orders, that nobody waits.
    """
    path, size = workdir / NGRAM, len(corpus.vocabulary)
    if path.exists():
        try:
            kept = NGramLM.load(path)
            if kept.vocab_size == size:
                return kept
        except UserError:
            pass  # damaged: it is counted again
    if counted is not None:
        counted.save(path)
        return counted
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
