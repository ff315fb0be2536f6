import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.mlp import MLPLM
from rnn_lm.nn.cells import LSTMState
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.output import cross_entropy
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import dropped
from tests.reference import forward, numpy_params, real_time_recurrent_learning

pytestmark = pytest.mark.usefixtures("strict_promotion")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (6, 2)), jnp.int32)


@pytest.mark.parametrize("embed_dim", [0, 3])
def test_logits_equal_the_numpy_loop(embed_dim):
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=embed_dim)
    carry, logits = model(model.initialize_carry(2), TOKENS)
    params = numpy_params(model)
    if embed_dim:  # an embedding and a projection are one matrix
        params["w_xh"] = np.asarray(model.embedding[...], np.float64) @ params["w_xh"]
    states, expected = forward(params, np.zeros((2, 5)), TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carry, states[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embed_dim, expected", [(0, 7 * 5 + 5 * 5 + 5 + 5 * 7 + 7), (3, 7 * 3 + 3 * 5 + 30 + 42)])
def test_the_number_of_parameters_does_not_depend_on_time(embed_dim, expected):
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=embed_dim)
    for steps in (1, 9):
        _, logits = model(model.initialize_carry(2), jnp.zeros((steps, 2), jnp.int32))
        assert logits.shape == (steps, 2, 7)
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


def test_layers_stand_one_above_the_other():
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), cell="lstm", num_layers=2, layer_norm=True)
    carry = model.initialize_carry(2)
    (first, second), logits = model(carry, TOKENS)
    below, above = model.cell.cells
    expected_first, h = unroll(below, carry[0], TOKENS)
    expected_second, h = unroll(above, carry[1], h)
    for got, expected in zip(
        jax.tree.leaves((first, second)), jax.tree.leaves((expected_first, expected_second)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(logits, h @ model.w_hq[...] + model.b_q[...], rtol=1e-5, atol=1e-6)
    assert isinstance(first, LSTMState) and below.scale_h is not None


def test_dropout_acts_with_a_key_only_and_on_the_output_layers_input_too():
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), dropout=0.5)
    carry, key = model.initialize_carry(2), jax.random.key(3)
    _, h = model.hidden(carry, TOKENS)
    _, logits = model(carry, TOKENS, key=key)
    np.testing.assert_array_equal(logits, model.logits(dropped(h, 0.5, jax.random.fold_in(key, 0))))
    _, other = model(carry, TOKENS, key=jax.random.key(4))
    assert np.abs(other - logits).max() > 0.1
    np.testing.assert_array_equal(model(carry, TOKENS)[1], model.logits(h))


def test_a_tied_model_has_one_matrix_for_tokens_in_and_out():
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=5, tie=True)
    assert model.w_hq is None
    h = jnp.ones((2, 5))
    np.testing.assert_allclose(model.logits(h), h @ model.embedding[...].T, rtol=1e-5)
    unused = 6  # of no input: its gradient can only come from the output layer
    gradient = nnx.grad(lambda m: jax.nn.logsumexp(m(m.initialize_carry(2), TOKENS % unused)[1]))(model)
    assert np.abs(gradient.embedding[unused]).max() > 0
    with pytest.raises(ValueError, match="a tied embedding has hidden_features = 5 entries; embed_dim=3"):
        RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=3, tie=True)


def test_bfloat16_is_for_the_output_layers_product_too():
    model, exact = (RNNLM(7, 5, rngs=nnx.Rngs(0), dtype=dtype) for dtype in ("bfloat16", None))
    (_, logits), (_, full) = (m(m.initialize_carry(2), TOKENS) for m in (model, exact))
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - full).max() < 0.05
    h = jnp.linspace(-1, 1, 5)[None]
    assert 0 < np.abs(model.logits(h) - exact.logits(h)).max() < 0.02


def test_backpropagation_through_time_equals_real_time_recurrent_learning():
    """Backward and forward accumulation of one gradient, in float64."""
    with jax.enable_x64():
        model = RNNLM(7, 5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        tokens = np.random.default_rng(0).integers(0, 7, 21)

        def loss(model):
            _, logits = model(model.initialize_carry(1), jnp.asarray(tokens[:-1, None]))
            return cross_entropy(logits, jnp.asarray(tokens[1:, None])).sum()

        grads = nnx.grad(loss)(model)
        expected = real_time_recurrent_learning(numpy_params(model), tokens[:-1], tokens[1:])
        for name, value in expected.items():
            got = getattr(grads if name in ("w_hq", "b_q") else grads.cell, name)
            np.testing.assert_allclose(got[...], value, rtol=1e-10, atol=1e-12)


def mlp(context=3, embed_dim=4, **options):
    return MLPLM(
        7, 5, context=context, embed_dim=embed_dim, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(1.0), **options
    )


@pytest.mark.parametrize("context, embed_dim", [(1, 0), (1, 4), (3, 0), (3, 4), (9, 4)])
def test_an_mlp_equals_a_numpy_loop(context, embed_dim):
    model = mlp(context, embed_dim)
    vectors = np.eye(7) if model.embedding is None else np.asarray(model.embedding[...], np.float64)
    w_xh, b_h, w_hq, b_q = (np.asarray(p[...], np.float64) for p in (model.w_xh, model.b_h, model.w_hq, model.b_q))
    expected = np.zeros((6, 2, 7))
    for t in range(6):
        for n in range(2):
            x = [vectors[TOKENS[s, n]] if s >= 0 else np.zeros(vectors.shape[1]) for s in range(t - context + 1, t + 1)]
            expected[t, n] = np.tanh(np.concatenate(x) @ w_xh + b_h) @ w_hq + b_q
    _, logits = model(model.initialize_carry(2), TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [1, 3, 9])
def test_an_mlp_carries_the_tokens_before(context):
    model = mlp(context)
    last, logits = model(model.initialize_carry(2), TOKENS)
    carries, _ = model.hidden(model.initialize_carry(2), TOKENS, return_carries=True)
    np.testing.assert_array_equal(carries[-1], last)
    carry, parts = model.initialize_carry(2), []
    for step, size in [(0, 1), (1, 1), (2, 4)]:
        carry, part = model(carry, TOKENS[step : step + size])
        np.testing.assert_array_equal(carry, carries[step + size - 1])
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts), logits, rtol=1e-5, atol=1e-6)


def test_an_mlp_looks_at_its_context_and_no_further():
    model = mlp(context=3)
    _, logits = model(model.initialize_carry(2), TOKENS)
    _, changed = model(model.initialize_carry(2), TOKENS.at[1, 0].set((TOKENS[1, 0] + 1) % 7))
    np.testing.assert_array_equal((logits != changed).any(-1), [[1 <= t <= 3, False] for t in range(6)])


def test_an_mlp_has_the_options_of_the_other_models():
    model = mlp(dropout=0.5, activation="relu", dtype="bfloat16", embed_dim=5, tie=True)
    carry = model.initialize_carry(2)
    _, h = model.hidden(carry, TOKENS)
    assert (h >= 0).all() and model.w_hq is None and model.states(carry) == {}
    key = jax.random.key(3)
    np.testing.assert_array_equal(model.hidden(carry, TOKENS, key=key)[1], dropped(h, 0.5, jax.random.fold_in(key, 0)))
    for embed_dim in (0, 4):
        (_, low), (_, full) = (mlp(embed_dim=embed_dim, dtype=d).hidden(carry, TOKENS) for d in ("bfloat16", None))
        assert low.dtype == jnp.float32 and 0 < np.abs(low - full).max() < 0.05


@pytest.mark.parametrize("tie, spread", [(True, 64**-0.5), (False, 1.0)])
def test_a_tied_embedding_starts_so_that_logits_are_of_the_order_of_1(tie, spread):
    model = RNNLM(500, 64, embed_dim=64, tie=tie, rngs=nnx.Rngs(0))
    assert float(model.embedding[...].std()) == pytest.approx(spread, rel=0.02)


def test_what_dropout_keeps_is_divided_by_the_probability_of_keeping_it():
    kept = np.asarray(dropped(jnp.ones(4000), 0.25, jax.random.key(0)))
    assert set(kept.tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert (kept == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert not np.asarray(dropped(jnp.ones(9), 1.0, jax.random.key(0))).any()
