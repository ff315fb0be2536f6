"""The chapter "Recurrent Neural Networks" (d2l 8.4) as tests: one claim each, in its order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm import MLPLM, RNNLM, Batches, ElmanCell, NGramLM, Vocabulary, cross_entropy, evaluate, unroll
from rnn_lm.inference.evaluate import figures

V, H = 28, 6
normal = nnx.initializers.normal(1.0)


def model_of(vocab_size=V, hidden=H):
    return RNNLM(vocab_size, hidden, rngs=nnx.Rngs(0), kernel_init=normal, bias_init=normal)


def test_ngram_parameters_multiply_by_the_vocabulary():
    """A table of n-grams over a vocabulary V has |V|ⁿ numbers; so long a text as this one fills it."""
    ids = np.random.default_rng(0).integers(0, 3, 5000)
    for order in (1, 2, 3, 4):
        model = NGramLM.fit(ids, order=order, vocab_size=3)
        assert len(model.levels[-1].keys) == 3**order
        assert model.log_probs([0] * order).shape == (3,)


def test_8_4_1_the_hidden_state_stands_for_the_whole_past():
    """Equation (8.4.1): P(x_t | x_{t−1}, …, x_1) ≈ P(x_t | h_{t−1}); here it is the same distribution."""
    model = model_of()
    tokens = jax.random.randint(jax.random.key(0), (9, 1), 0, V)
    _, from_all = model(model.initialize_carry(1), tokens)
    h, _ = model(model.initialize_carry(1), tokens[:-1])
    _, from_state = model(h, tokens[-1:])
    np.testing.assert_allclose(from_all[-1], from_state[-1], rtol=1e-5, atol=1e-6)


def test_8_4_2_the_state_is_a_function_of_the_input_and_the_state_before():
    """Equation (8.4.2): h_t = f(x_t, h_{t−1}), the same f at every step."""
    cell = ElmanCell(4, H, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 2, 4))
    h = cell.initialize_carry((2, 4))
    last, _ = unroll(cell, h, x)
    for x_t in x:
        h, _ = cell(h, x_t)
    np.testing.assert_allclose(last, h, atol=1e-6)


def test_8_4_3_a_hidden_layer_without_a_state():
    """Equation (8.4.3): H = φ(X W_xh + b_h), with X of n × d and b_h broadcast over the n examples."""
    model = MLPLM(V, H, context=2, embed_dim=3, rngs=nnx.Rngs(0), bias_init=normal)
    x = np.random.default_rng(0).integers(0, V, (2, 5))  # the two tokens before the one that is asked for, 5 times
    _, h = model.hidden(model.initialize_carry(5), jnp.asarray(x))
    embedding, w_xh, b_h = (np.asarray(p[...]) for p in (model.embedding, model.w_xh, model.b_h))
    X = np.concatenate([embedding[x[0]], embedding[x[1]]], axis=1)
    assert X.shape == (5, 6) and w_xh.shape == (6, H) and b_h.shape == (H,) and h[-1].shape == (5, H)
    np.testing.assert_allclose(h[-1], np.tanh(X @ w_xh + b_h), atol=1e-6)


@pytest.mark.parametrize("kind", [RNNLM, partial(MLPLM, context=2)], ids=["8.4.6", "8.4.4"])
def test_8_4_4_and_8_4_6_the_output_layer(kind):
    """Equations (8.4.4) and (8.4.6): O = H W_hq + b_q, n × q, with a state and without."""
    model = kind(V, H, rngs=nnx.Rngs(0))
    model.b_q[...] = jnp.linspace(-1, 1, V)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (4, 3)))
    _, h = model.hidden(model.initialize_carry(3), tokens)
    _, o = model(model.initialize_carry(3), tokens)
    w_hq, b_q = np.asarray(model.w_hq[...]), np.asarray(model.b_q[...])
    assert h[0].shape == (3, H) and w_hq.shape == (H, V) and o[0].shape == (3, V)
    np.testing.assert_allclose(o, np.asarray(h) @ w_hq + b_q, atol=1e-5)


def test_8_4_5_the_hidden_layer_with_a_state():
    """Equation (8.4.5): H_t = φ(X_t W_xh + H_{t−1} W_hh + b_h)."""
    cell = ElmanCell(4, H, rngs=nnx.Rngs(0), bias_init=normal)
    x, h = (jax.random.normal(jax.random.key(i), (3, n)) for i, n in enumerate((4, H)))
    w_xh, w_hh, b_h = (np.asarray(p[...]) for p in (cell.w_xh, cell.w_hh, cell.b_h))
    np.testing.assert_allclose(cell(h, x)[1], np.tanh(np.asarray(x) @ w_xh + np.asarray(h) @ w_hh + b_h), atol=1e-6)


def test_two_products_are_one_of_the_concatenation():
    """X W_xh + H W_hh is (X, H) (W_xh; W_hh), with the book's shapes (3, 1), (1, 4), (3, 4), (4, 4)."""
    cell = ElmanCell(1, 4, rngs=nnx.Rngs(0))
    x, h = jax.random.normal(jax.random.key(1), (3, 1)), jax.random.normal(jax.random.key(2), (3, 4))
    assert cell.w_xh.shape == (1, 4) and cell.w_hh.shape == (4, 4)
    together = jnp.concatenate([x, h], 1) @ jnp.concatenate([cell.w_xh[...], cell.w_hh[...]], 0)
    apart = cell.project(x) + cell.recur(h)  # the bias is 0 at first
    assert together.shape == (3, 4)
    np.testing.assert_allclose(apart, together, atol=1e-6)


def test_parameters_do_not_grow_with_time():
    """The same parameters are used at every time step, so their number does not depend on T; an MLP's does."""
    model = model_of()
    assert model.num_params == V * H + H * H + H + H * V + V
    for steps in (1, 10):
        carry, logits = model(model.initialize_carry(2), jnp.zeros((steps, 2), jnp.int32))
        assert logits.shape == (steps, 2, V) and carry.shape == (2, H)
    of_contexts = [MLPLM(V, H, context=n, rngs=nnx.Rngs(0)).num_params for n in (1, 2, 3)]
    assert np.diff(of_contexts).tolist() == [V * H, V * H]


def test_labels_are_the_inputs_shifted_by_one():
    """The model reads machin and is asked for achine."""
    vocabulary = Vocabulary.of("machine", kind="char", normalize="none")
    ids = vocabulary.encode("machine")
    batches = Batches.of(ids, batch_size=1, segment_length=1, partition="sequential")
    pairs = [tuple(vocabulary.decode(part[:, 0]) for part in batches(step)[:2]) for step in range(5)]
    assert "".join(x for x, _ in pairs) == "machi" and "".join(y for _, y in pairs) == "achin"
    inputs, labels = ids[:-1], ids[1:]
    assert (vocabulary.decode(inputs), vocabulary.decode(labels)) == ("machin", "achine")


def test_a_minibatch_is_n_by_d():
    """Of a minibatch of n sequences, X_t is n × d; here d is the vocabulary, one-hot."""
    batches = Batches.of(np.arange(200) % V, batch_size=5, segment_length=7, partition="random")
    inputs, labels, _ = batches(0)
    assert inputs.shape == labels.shape == (7, 5)
    one_hot = jax.nn.one_hot(inputs, V)
    assert one_hot[0].shape == (5, V)
    cell = model_of().cell  # ids pick the rows that the product with one-hot vectors would
    np.testing.assert_allclose(cell.project(inputs), cell.project(one_hot), atol=1e-5)


def test_8_4_7_the_average_cross_entropy():
    """Equation (8.4.7): (1/n) Σ_t −log P(x_t | x_{t−1}, …, x_1)."""
    model = model_of()
    ids = np.random.default_rng(0).integers(0, V, 12)
    _, logits = model(model.initialize_carry(1), jnp.asarray(ids[:-1, None]))
    log_probs = np.asarray(jax.nn.log_softmax(logits[:, 0]))[np.arange(11), ids[1:]]
    assert evaluate(model, ids).nll == pytest.approx(-np.mean(log_probs), rel=1e-5)


def test_8_4_8_perplexity_at_its_best_is_1():
    """Equation (8.4.8), best case: every target token was given the probability 1."""
    logits = jnp.where(jnp.arange(V) == 3, 0.0, -jnp.inf)
    assert figures(float(cross_entropy(logits, jnp.array(3))), 1.0)["perplexity"] == 1


def test_8_4_8_perplexity_at_its_worst_is_infinite():
    """Equation (8.4.8), worst case: a target token was given the probability 0."""
    logits = jnp.where(jnp.arange(V) == 3, 0.0, -jnp.inf)
    assert figures(float(cross_entropy(logits, jnp.array(4))), 1.0)["perplexity"] == np.inf


def test_8_4_8_perplexity_of_the_uniform_model_is_the_size_of_the_vocabulary():
    """Equation (8.4.8), the baseline: all tokens are equally likely, and the perplexity is |V|."""
    model = model_of()
    model.w_hq[...] *= 0
    model.b_q[...] *= 0
    nll = evaluate(model, np.random.default_rng(0).integers(0, V, 50)).nll
    assert figures(nll, 1.0)["perplexity"] == pytest.approx(V, rel=1e-6)
