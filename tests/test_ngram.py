import contextlib
import math
from collections import Counter, defaultdict

import jax.numpy as jnp
import nltk.lm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_lm import ngram
from rnn_lm.errors import UserError
from rnn_lm.ngram import SMOOTHINGS, HeldOut, NGramLM, discounts_of, unigram_nll

V = 5
TEXT = np.random.default_rng(0).choice(V, 400, p=[0.05, 0.4, 0.3, 0.2, 0.05])
texts = st.lists(st.integers(0, V - 1), min_size=4, max_size=60).map(np.array)


class ByDictionary:
    """Interpolated modified Kneser-Ney as in Chen and Goodman's section 3, one n-gram at a time."""

    def __init__(self, text, order, vocab_size):
        self.order, self.vocab_size = order, vocab_size
        text = ["<s>", *map(int, text)]  # so that what the text begins with has something before it
        self.counts = defaultdict(Counter)  # of each order: the n-gram's count, or how many tokens stand before it
        for k in range(1, order + 1):
            seen = Counter(tuple(text[i : i + k]) for i in range(1, len(text) - k + 1))
            longer = {tuple(text[i : i + k + 1]) for i in range(len(text) - k)}
            before = Counter(gram[1:] for gram in longer)
            self.counts[k] = seen if k == order else before
        self.discounts = {k: self.discounts_of(counts.values()) for k, counts in self.counts.items()}

    @staticmethod
    def discounts_of(counts):
        n1, n2, n3, n4 = (sum(1 for c in counts if c == i) for i in (1, 2, 3, 4))
        try:
            y = n1 / (n1 + 2 * n2)
            found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        except ZeroDivisionError:
            return [0.5, 1.0, 1.5]
        inside = n4 > 0 and all(0 < d <= i for i, d in enumerate(found, start=1))
        return found if inside else [0.5, 1.0, 1.5]

    def probability(self, token, context):
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        k = len(context) + 1
        counts = {gram[-1]: c for gram, c in self.counts[k].items() if gram[:-1] == context}
        lower = self.probability_below(token, context)
        if not counts:
            return lower
        total, discount = sum(counts.values()), lambda c: self.discounts[k][min(c, 3) - 1] if c else 0.0
        own = counts.get(token, 0)
        return (own - discount(own)) / total + sum(map(discount, counts.values())) / total * lower

    def probability_below(self, token, context):
        if not context:
            return 1 / self.vocab_size
        shorter = ByDictionary.__new__(ByDictionary)
        shorter.__dict__ = self.__dict__
        return shorter.probability(token, context[1:])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 40, 400])
def test_kneser_ney_is_that_of_the_paper(order, length):
    text = TEXT[:length]
    model, expected = NGramLM.fit(text, order=order, vocab_size=V), ByDictionary(text, order, V)
    for context in [[], [1], [1, 2], [3, 1, 2], [4, 4, 4, 4], list(TEXT[100:120])]:
        # A context shorter than order − 1 is one of the lower levels.
        want = [expected.probability(token, context) for token in range(V)]
        np.testing.assert_allclose(np.exp(model.log_probs(context)), want, rtol=1e-12, atol=1e-15)


def test_estimated_discounts_are_used_where_there_are_enough_counts():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 4, 3])
    y = 40 / 70
    np.testing.assert_allclose(discounts_of(counts), [1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 4 / 8])
    np.testing.assert_array_equal(discounts_of(np.array([1, 2, 3])), [0.5, 1.0, 1.5])


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 4), st.sampled_from(sorted(SMOOTHINGS)), st.lists(st.integers(0, V - 1), max_size=6))
def test_every_distribution_sums_to_one(text, order, smoothing, context):
    model = NGramLM.fit(text, order=order, vocab_size=V, smoothing=smoothing)
    assert np.exp(model.log_probs(context)).sum() == pytest.approx(1, abs=1e-9)
    by_position = [np.exp(model.log_probs(text[:i]))[text[i]] for i in range(len(text))]
    np.testing.assert_allclose(model.probs(text), by_position, rtol=1e-12, atol=1e-15)


def nltk_model(kind, order, text, **options):
    padded = ["<s>", *map(str, text)]
    grams = [gram for gram in nltk.everygrams(padded, max_len=order) if gram != ("<s>",)]
    model = kind(order=order, vocabulary=nltk.lm.Vocabulary(map(str, range(V)), unk_cutoff=1), **options)
    model.fit([grams])
    return model


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("smoothing", ["mle", "add_alpha", "kneser_ney"])
def test_it_equals_nltk_where_both_define_the_same(order, smoothing, monkeypatch):
    """Its Kneser-Ney has one fixed discount, and none for single tokens."""
    if smoothing == "kneser_ney":
        levels = iter([0.0, 0.0, 0.1, 0.1, 0.1])  # order 1 as the highest and as the lowest, order 2 likewise, order 3
        monkeypatch.setattr(ngram, "discounts_of", lambda counts: np.full(3, next(levels)))
        theirs = nltk_model(nltk.lm.KneserNeyInterpolated, order, TEXT, discount=0.1)
    elif smoothing == "mle":
        theirs = nltk_model(nltk.lm.MLE, order, TEXT)
    else:
        theirs = nltk_model(nltk.lm.Lidstone, order, TEXT, gamma=0.3)
    size = V + (smoothing == "add_alpha")  # its vocabulary has an unknown token more
    ours = NGramLM.fit(TEXT, order=order, vocab_size=size, smoothing=smoothing, alpha=0.3)
    for start in range(30):
        context = TEXT[start : start + (start % order if smoothing == "add_alpha" else order - 1)]
        for token, log_prob in enumerate(ours.log_probs(context)[:V]):
            assert math.exp(log_prob) == pytest.approx(theirs.score(str(token), tuple(map(str, context))), abs=1e-12)


def test_maximum_likelihood_is_count_over_total_at_every_length_of_context():
    model = NGramLM.fit(np.array([1, 1, 1, 2, 1, 1, 3, 1, 1]), order=3, vocab_size=V, smoothing="mle")
    for context, expected in [([], [0, 7, 1, 1, 0]), ([1], [0, 4, 1, 1, 0]), ([2, 1], [0, 1, 0, 0, 0])]:
        np.testing.assert_allclose(np.exp(model.log_probs(context)), np.array(expected) / sum(expected))
    np.testing.assert_array_equal(model.log_probs([4, 1]), model.log_probs([1]))  # unseen, so shortened
    np.testing.assert_array_equal(model.log_probs([4]), model.log_probs([]))


def test_contexts_may_be_of_any_kind_and_vocabularies_large():
    size = 100_000
    ids = np.random.default_rng(0).integers(0, size, 3000)
    model = NGramLM.fit(ids, order=3, vocab_size=size)
    for kind in (list, np.int32, jnp.asarray, np.asarray):
        context = ids[2000:2002].astype(kind) if kind is np.int32 else kind(ids[2000:2002])
        assert model.log_probs(context)[ids[2002]] > np.log(0.1)


def grams_of(model, order):
    """The n-grams of one order, by node, from the keys of all orders."""
    keys = model.levels[order - 1].keys
    last = keys[:, None] % model.vocab_size
    return np.hstack([grams_of(model, order - 1)[keys // model.vocab_size], last]) if order > 1 else last


# The possible n-grams are fewer than the tokens in all orders, in the lower ones, or in none; a key has up to 33 bits.
@pytest.mark.parametrize("size, length", [(2, 100), (7, 500), (300, 2000), (70_000, 60), (2**20, 9000)])
def test_ngrams_are_in_order_and_counted(size, length):
    ids = np.random.default_rng(0).zipf(1.1, length) % size
    for order, model in enumerate(NGramLM.fit_orders(ids, order=5, vocab_size=size), start=1):
        windows = np.lib.stride_tricks.sliding_window_view(ids, order)
        grams, counts = np.unique(windows, axis=0, return_counts=True)
        np.testing.assert_array_equal(grams_of(model, order), grams)
        np.testing.assert_array_equal(model.levels[-1].counts, counts)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("length", [2, 3, 60])
def test_a_held_out_text_is_scored_by_each_order_as_by_it_alone(smoothing, length):
    models = [*NGramLM.fit_orders(TEXT[:300], order=5, vocab_size=V, smoothing=smoothing)]
    ids = TEXT[-length:]
    for chosen in (models, models[2:], models[1::2]):
        text = HeldOut(ids, V)
        for model in chosen:
            expected = np.mean([-model.log_probs(ids[:i])[ids[i]] for i in range(1, length)])
            assert text.nll(model) == pytest.approx(expected, rel=1e-12)
            assert text.nll(model) == model.nll(ids)


def test_orders_fitted_together_are_those_fitted_alone():
    for order, model in enumerate(NGramLM.fit_orders(TEXT, order=4, vocab_size=V), start=1):
        alone = NGramLM.fit(TEXT, order=order, vocab_size=V)
        assert model.order == order and model.nll(TEXT[:50]) == alone.nll(TEXT[:50])
        grams = {tuple(TEXT[i : i + k]) for k in range(1, order + 1) for i in range(len(TEXT) - k + 1)}
        assert model.num_counts == len(grams)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_saved_and_loaded_it_is_the_same(tmp_path, smoothing):
    model = NGramLM.fit(TEXT, order=3, vocab_size=V, smoothing=smoothing, alpha=0.2)
    model.save(tmp_path / "ngram.npz")
    loaded = NGramLM.load(tmp_path / "ngram.npz")
    np.testing.assert_array_equal(loaded.probs(TEXT), model.probs(TEXT))
    content = (tmp_path / "ngram.npz").read_bytes()
    changed = [content[:i] + bytes([content[i] ^ 21]) + content[i + 1 :] for i in range(40, 1400, 97)]
    for damaged in (b"", content[:-100], content[:500] + b"?" + content[501:], b"text"):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged.npz is damaged, or not an n-gram model: "):
            NGramLM.load(tmp_path / "damaged.npz")
    for one in changed:  # where it is read all the same, the byte did not matter
        (tmp_path / "damaged.npz").write_bytes(one)
        with contextlib.suppress(UserError):
            np.testing.assert_array_equal(NGramLM.load(tmp_path / "damaged.npz").probs(TEXT), model.probs(TEXT))


def test_the_first_token_is_context_only():
    model = NGramLM.fit(TEXT, order=3, vocab_size=V)
    expected = [-model.log_probs(TEXT[:i])[TEXT[i]] for i in range(1, 30)]
    assert model.nll(TEXT[:30]) == pytest.approx(np.mean(expected))
    unseen = NGramLM.fit(np.array([1, 2, 1]), order=1, vocab_size=V, smoothing="mle")
    assert unseen.nll(np.array([1, 4])) == np.inf


def test_unigram_is_add_one_frequencies():
    train, test = np.array([1, 1, 2]), np.array([1, 1, 2, 3])  # 3 and 0 were never seen; the first 1 is context
    expected = -(math.log(3 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert unigram_nll(train, test, vocab_size=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"order": 0}, "the n-gram's order is 0; it must be from 1 to 10"),
        ({"order": 11}, "the n-gram's order is 11; it must be from 1 to 10"),
        ({"ids": TEXT[:2]}, "the text has 2 tokens, fewer than the n-gram's order, 3"),
        ({"smoothing": "kneser"}, "unknown smoothing 'kneser'"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"vocab_size": 4}, "ids from 0 to 4; they must be from 0 to 3"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    given = {"ids": TEXT, "order": 3, "vocab_size": V} | changes
    with pytest.raises(ValueError, match=message) as error:
        NGramLM.fit(given.pop("ids"), **given)
    assert isinstance(error.value, UserError) or "vocab_size" in changes


def test_ids_of_another_vocabulary_and_texts_of_one_token_are_refused():
    model = NGramLM.fit(TEXT, order=2, vocab_size=V)
    for call in (lambda: model.probs(np.array([0, V])), lambda: model.log_probs([-1])):
        with pytest.raises(ValueError, match="they must be from 0 to 4"):
            call()
    with pytest.raises(ValueError, match="1 tokens: the first is context only"):
        model.nll(TEXT[:1])
