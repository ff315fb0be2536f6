import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import dynamic, reading
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.inference.mixture import BUCKETS, Mixture
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.models import RNNLM

STEPS = dynamic.STEPS


@pytest.fixture
def model():
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.w_hq[...] *= 3
    return model


def nats(model, ids):
    inputs, labels = ids[:-1, None], ids[1:, None]
    parts = reading.read_and_learn(model, inputs, labels, np.ones_like(labels, bool))
    return np.concatenate([window.nats[:, 0] for _, [window] in parts])


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 6, 3 * STEPS + 6).astype(np.int32)


@pytest.fixture
def faster(monkeypatch):
    """Steps that are large enough to be told apart."""
    monkeypatch.setattr(dynamic, "RATE", 2e-3)
    monkeypatch.setattr(dynamic, "RETURN", 0.1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_it_is_the_rms_update_with_a_pull_back(model, ids, faster):
    """A NumPy loop over the same gradients."""
    graphdef, params = nnx.split(model, nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    start, squares = [np.asarray(leaf, np.float64) for leaf in leaves], [np.zeros(leaf.shape) for leaf in leaves]
    now, carry, expected = list(start), model.initialize_carry(1), []

    def loss(params, carry, inputs, labels):
        carry, logits = nnx.merge(graphdef, params)(carry, jnp.asarray(inputs[:, None]))
        each = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), 0, labels]
        return each.mean(), (carry, each)

    for update, first in enumerate(range(0, len(ids) - 1, STEPS), start=1):
        inputs = ids[first : first + STEPS + 1]
        current = jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in now])
        (_, (carry, each)), grads = jax.value_and_grad(loss, has_aux=True)(current, carry, inputs[:-1], inputs[1:])
        expected.extend(each)
        for i, grad in enumerate(jax.tree.leaves(grads)):
            grad = np.asarray(grad, np.float64)
            squares[i] = 0.999 * squares[i] + 0.001 * grad**2
            step = grad / (np.sqrt(squares[i] / (1 - 0.999**update)) + 1e-6)
            now[i] = now[i] - 2e-3 * np.sqrt(len(inputs) - 1) * step + 0.1 * (start[i] - now[i])
    np.testing.assert_allclose(nats(model, ids), expected, rtol=2e-4)


def test_padding_teaches_nothing(model, ids):
    """A window of 5 tokens and 11 that are not real is one of 5: in its gradient and in the size of its step."""
    graphdef, *states = nnx.split(model, nnx.Param, ...)

    def after(size, real):
        window = (jnp.asarray(ids[:size, None]), jnp.asarray(ids[1 : size + 1, None]), jnp.arange(size)[:, None] < real)
        start = dynamic.Learned.nothing(states[0])
        return reading.learn(graphdef, states[1], start, model.initialize_carry(1), *window)[0].params

    padded, alone, whole = after(16, 5), after(5, 5), after(16, 16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), padded, alone)
    moved = [np.abs(p["b_q"][...] - model.b_q[...]).max() for p in (alone, whole)]
    assert moved[1] / moved[0] == pytest.approx(np.sqrt(16 / 5), rel=1e-3)


def test_a_token_is_predicted_before_it_is_learned(model, ids):
    """What comes later changes nothing, not even inside a window that is learned from at once."""
    other = ids.copy()
    other[STEPS + 5 :] = (other[STEPS + 5 :] + 1) % 6
    np.testing.assert_array_equal(nats(model, ids)[: STEPS + 4], nats(model, other)[: STEPS + 4])
    before = model.fingerprint()
    static = evaluate(model, ids[: STEPS + 1])
    assert evaluate(model, ids[: STEPS + 1], dynamic=True).nats == pytest.approx(static.nats, rel=1e-6)
    assert model.fingerprint() == before  # the one that was given is as it was


def test_what_a_text_repeats_is_learned(model, monkeypatch):
    monkeypatch.setattr(reading, "MAX_UPDATES", 3)  # several calls, of which the last is filled up
    ids = np.tile(np.random.default_rng(1).integers(0, 6, 7), 300).astype(np.int32)
    assert evaluate(model, ids, dynamic=True).nll < 0.9 * evaluate(model, ids).nll


def test_a_mixture_learns_as_its_network_does(model, ids):
    """The network's gradient is that of its own loss, whatever the n-grams already know; λ has one too."""
    ngram = NGramLM.fit(np.tile(ids, 3), order=3, vocab_size=6)
    mixture = Mixture(model, ngram, np.full(3 * BUCKETS, 0.5))
    window = [jnp.asarray(a)[:, None] for a in (ids[:STEPS], ids[1 : STEPS + 1], np.ones(STEPS, bool))]

    def after(model):
        graphdef, *states = nnx.split(model, nnx.Param, ...)
        return reading.learn(
            graphdef, states[1], dynamic.Learned.nothing(states[0]), model.initialize_carry(1), *window
        )[0]

    alone, mixed = after(model).params, after(mixture).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, mixed["model"])
    assert np.abs(mixed["w_mix"][...]).max() > 0  # 0 was λ = 1/2
