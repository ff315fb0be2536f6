import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import mixture as module
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.inference.generate import generate
from rnn_lm.inference.mixture import BUCKETS, Mixture, NGramTrie, buckets, fit_weights
from rnn_lm.inference.reading import nats_of
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.models import RNNLM, LanguageModel

SIZE = 7


def a_text(length, seed):
    """Tokens 1 to 6, each mostly the one after the last; id 0, `<unk>`, is never there."""
    rng = np.random.default_rng(seed)
    ids = np.cumsum(rng.choice([1, 2, 5], length, p=[0.7, 0.2, 0.1])) % (SIZE - 1)
    return (ids + 1).astype(np.int32)


@pytest.fixture(scope="module")
def network():
    return RNNLM(SIZE, 8, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", params=[1, 3])
def ngram(request):
    return NGramLM.fit(a_text(300, 0), order=request.param, vocab_size=SIZE)


@pytest.fixture(scope="module")
def mixture(network, ngram):
    weights = np.random.default_rng(1).uniform(0.1, 0.9, ngram.order * BUCKETS)
    return Mixture(network, ngram, weights), weights


@pytest.mark.parametrize("smoothing", ["kneser_ney", "mle"])
def test_the_trie_gives_what_the_ngrams_do(smoothing):
    ngram = NGramLM.fit(a_text(200, 0), order=4, vocab_size=SIZE, smoothing=smoothing)
    trie, ids = NGramTrie(ngram), np.concatenate([a_text(40, 3), np.random.default_rng(0).integers(0, SIZE, 40)])
    context = trie.read(trie.empty(2), jnp.asarray(np.stack([ids, ids[::-1]], axis=1)))
    got = np.asarray(trie.probs(context))
    for t in range(len(ids)):
        for lane, text in enumerate([ids, ids[::-1]]):
            np.testing.assert_allclose(got[t, lane], np.exp(ngram.log_probs(text[: t + 1])), atol=1e-6)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, SIZE, context.shape[:2]))
    of_label = np.take_along_axis(got, np.asarray(labels)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(trie.prob(context, labels), of_label, rtol=1e-6)
    np.testing.assert_allclose(trie.probs(trie.empty(1))[0], np.exp(ngram.log_probs([])), atol=1e-6)


def test_a_context_that_nothing_follows_is_none():
    trie = NGramTrie(NGramLM.fit(np.array([1, 2, 1, 2, 3]), order=3, vocab_size=4))
    assert (np.asarray(trie.read(trie.empty(1), jnp.array([[1], [3]])))[:, 0] >= 0).tolist() == [
        [True, True, False],  # 1 alone: no context of two tokens yet
        [True, False, False],  # 3 ends the text
    ]


def test_add_alpha_has_no_trie():
    with pytest.raises(ValueError, match="Kneser-Ney"):
        NGramTrie(NGramLM.fit(a_text(50, 0), order=2, vocab_size=SIZE, smoothing="add_alpha"))


def met(train, context, order):
    """The length of the longest context that the text goes on after, and how often it does, by looking for it.

    In shorter contexts than the longest a Kneser-Ney model counts each continuation once for every token before it.
    """
    train = train.tolist()
    for k in range(min(order - 1, len(context)), 0, -1):
        wanted = context[len(context) - k :].tolist()
        places = [i for i in range(len(train) - k) if train[i : i + k] == wanted]
        if places:
            if k == order - 1:
                return k, len(places)
            return k, len(
                {tuple(train[max(i - 1, 0) : i + k + 1]) if i else ("start", *train[: k + 1]) for i in places}
            )
    return 0, None


def test_probabilities_are_interpolated(mixture, network, ngram):
    model, weights = mixture
    ids, train = a_text(60, 5), a_text(300, 0)
    _, logits = model(model.initialize_carry(1), jnp.asarray(ids[:, None]))
    _, own = network(network.initialize_carry(1), jnp.asarray(ids[:, None]))
    own = np.asarray(jax.nn.softmax(own))[:, 0]
    for t in range(len(ids)):
        k, count = met(train, ids[: t + 1], ngram.order)
        if not k:
            continue  # only for unigrams, whose one weight the sum below pins
        weight = weights[k * BUCKETS + int(np.log2(count))]
        expected = weight * own[t] + (1 - weight) * np.exp(ngram.log_probs(ids[: t + 1]))
        np.testing.assert_allclose(np.exp(logits[t, 0]), expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-5)


def test_the_loss_of_a_label_is_that_of_its_logit_and_so_is_the_gradient(mixture):
    model, _ = mixture
    ids = jnp.asarray(np.concatenate([a_text(60, 5), np.random.default_rng(0).integers(0, SIZE, 40)]))[:, None]
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params, nll):
        model = nnx.merge(graphdef, params, rest)
        _, h = model.hidden(model.initialize_carry(1), ids[:-1])
        return nll(model, h, ids[1:]).sum(), nll(model, h, ids[1:])

    both = [jax.grad(total, has_aux=True)(params, nll) for nll in (Mixture.nll, LanguageModel.nll)]
    (gradient, nats), (expected, by_logits) = both
    np.testing.assert_allclose(nats, by_logits, rtol=1e-5)
    np.testing.assert_allclose(gradient["w_mix"][...], expected["w_mix"][...], rtol=1e-3, atol=1e-4)
    assert np.abs(gradient["w_mix"][...]).max() > 1
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["model"]))  # the network learns by its own loss


def test_the_carry_goes_on_where_it_stopped(mixture):
    model, _ = mixture
    ids = jnp.asarray(a_text(40, 6)[:, None])
    _, whole = model(model.initialize_carry(1), ids)
    carry, first = model(model.initialize_carry(1), ids[:13])
    _, second = model(carry, ids[13:])
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-4, atol=1e-5)


def test_what_is_generated_and_evaluated_is_the_mixture(mixture):
    model, _ = mixture
    sample = generate(model, a_text(5, 0), 30, key=jax.random.key(0), num_samples=2)
    assert sample.shape == (2, 30) and sample.min() >= 1
    ids = a_text(50, 7)
    assert evaluate(model, ids).nats == pytest.approx(nats_of(model, ids).sum(), rel=1e-6)


def test_the_weights_are_those_of_em_with_a_token_of_each_model_before(network, ngram):
    """Expectation-maximization, one bucket and one token at a time; each model starts with one token in each bucket."""
    ids = a_text(60, 8)
    weights = fit_weights(network, ngram, ids)
    trie = NGramTrie(ngram)
    contexts = np.asarray(trie.read(trie.empty(1), jnp.asarray(ids[:-1, None])))[:, 0].max(axis=-1)
    pairs = list(zip(np.exp(-nats_of(network, ids)), ngram.probs(ids)[1:], buckets(ngram)[contexts], strict=True))
    for bucket in range(len(weights)):
        mine = [(p, q) for p, q, of in pairs if of == bucket]
        weight = 0.5
        for _ in range(100):
            by_network = sum(weight * p / (weight * p + (1 - weight) * q) for p, q in mine)
            weight = (1 + by_network) / (1 + by_network + 1 + len(mine) - by_network)
        assert weights[bucket] == pytest.approx(weight, rel=1e-9)


def test_the_weights_make_unseen_text_likeliest(network, ngram, monkeypatch):
    monkeypatch.setattr(module, "PRIOR", 1e-3)
    ids = a_text(400, 8)
    weights = fit_weights(network, ngram, ids)
    assert ((weights > 0) & (weights < 1)).all()

    def cost(weights):
        return nats_of(Mixture(network, ngram, weights), ids).sum()

    best = cost(weights)
    assert best < nats_of(network, ids).sum() and best < -np.log(ngram.probs(ids)[1:]).sum() + 0.5
    used = np.unique(buckets(ngram))
    for bucket in used[:: max(1, len(used) // 4)]:
        for other in (0.05, 0.3, 0.7, 0.95):
            changed = weights.copy()
            changed[bucket] = other
            assert cost(changed) > best - 0.1
