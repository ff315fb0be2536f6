import math

import numpy as np
import pytest

from rnn_lm.ngram import unigram_nll


def test_unigram_is_add_one_frequencies():
    train, test = np.array([1, 1, 2]), np.array([1, 1, 2, 3])  # 3 and 0 were never seen; the first 1 is context
    expected = -(math.log(3 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert unigram_nll(train, test, vocab_size=4) == pytest.approx(expected)
