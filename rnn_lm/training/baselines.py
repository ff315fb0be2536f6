"""The bar that a network must beat: models that need none, fitted and scored beside it."""

from pathlib import Path
from typing import Any

import numpy as np

from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.inference.evaluate import figures
from rnn_lm.ngram import NGramLM, unigram_nll
from rnn_lm.training.run_folder import NGRAM

MAX_NGRAM_ORDER = 6
MAX_NGRAM_TOKENS = 20_000_000  # of the training text that are counted: 30 s and 1.5 GB


def fit_ngram(workdir: Path, corpus: Corpus) -> NGramLM:
    """The n-gram model of a run, modified Kneser-Ney: of orders 1 to 6 the best on the validation text.

    It is counted once and kept in the run's folder.
    """
    path = workdir / NGRAM
    if not path.exists():
        ids = corpus.train.ids[:MAX_NGRAM_TOKENS]
        order = min(MAX_NGRAM_ORDER, len(ids))
        models = NGramLM.fit_orders(ids, order=order, vocab_size=len(corpus.vocabulary))
        min(models, key=lambda model: model.nll(corpus.valid.ids)).save(path)
    return NGramLM.load(path)


def score_baselines(workdir: Path, corpus: Corpus, split: Split) -> dict[str, Any]:
    """Uniform, unigram and n-gram model on a split."""
    size = len(corpus.vocabulary)
    ngram = fit_ngram(workdir, corpus)
    nlls = {
        "uniform": float(np.log(size)),
        "unigram": unigram_nll(corpus.train.ids, split.ids, size),
        "ngram": ngram.nll(split.ids),
    }
    scores: dict[str, Any] = {name: figures(nll, split.tokens_per_character) for name, nll in nlls.items()}
    scores["ngram"] = {"order": ngram.order, "num_counts": ngram.num_counts} | scores["ngram"]
    return scores
