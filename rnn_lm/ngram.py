"""Counts → probabilities: the baseline that needs no network."""

import math

import numpy as np


def unigram_nll(train_ids: np.ndarray, ids: np.ndarray, vocab_size: int) -> float:
    """Mean nats per token of ids [N], the first being context, under the training text's token frequencies.

    One is added to every count, so that no token is impossible: `P(v) = (count(v) + 1) / (N_train + |𝒱|)`.
    """
    counts = np.bincount(train_ids, minlength=vocab_size) + 1.0
    return float(np.mean(math.log(counts.sum()) - np.log(counts)[ids[1:]]))
