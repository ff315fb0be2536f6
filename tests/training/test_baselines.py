import numpy as np

from rnn_lm.data.corpus import Corpus, Split
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.ngram import NGramLM
from rnn_lm.training import baselines as module
from rnn_lm.training.baselines import fit_ngram


def test_of_a_long_validation_text_the_first_tokens_choose_the_order(tmp_path, monkeypatch):
    """They are what the training text repeats; the rest is not."""
    vocabulary, rng = Vocabulary(["a", "b", "c"], kind="char", normalize="none"), np.random.default_rng(0)
    train = np.tile([1, 1, 2, 3, 2], 200)
    valid = np.concatenate([train[:51], rng.integers(1, 4, 500)])
    corpus = Corpus("text", "", vocabulary, *(Split(ids, len(ids)) for ids in (train, valid, valid)))

    def best(ids):
        models = [NGramLM.fit(train, order=order, vocab_size=len(vocabulary)) for order in range(1, 7)]
        return min(models, key=lambda model: model.nll(ids)).order

    orders = []
    for tokens in (50, 1000):
        monkeypatch.setattr(module, "MAX_HELD_OUT_TOKENS", tokens)
        orders.append(fit_ngram(tmp_path / f"{tokens}.npz", corpus, lambda: False).order)
    assert orders == [best(valid[:51]), best(valid)] and orders[0] > orders[1]
