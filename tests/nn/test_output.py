from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rnn_lm.nn import native, output
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.output import OutputLayer, cross_entropy, masked_mean
from tests.reference import nats

pytestmark = pytest.mark.usefixtures("strict_promotion")


def test_it_is_the_negative_log_of_the_softmax():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 2, 7)) * 5, rng.integers(0, 7, (3, 2))
    np.testing.assert_allclose(cross_entropy(jnp.float32(logits), jnp.int32(labels)), nats(logits, labels), rtol=1e-5)


def test_the_three_cases_of_perplexity():
    labels = jnp.array([0, 3])
    uniform = cross_entropy(jnp.zeros((2, 28)), labels)
    np.testing.assert_allclose(jnp.exp(uniform.mean()), 28, rtol=1e-5)
    sure = jnp.full((2, 28), -jnp.inf).at[jnp.arange(2), labels].set(0.0)
    assert jnp.exp(cross_entropy(sure, labels).mean()) == 1
    assert jnp.exp(cross_entropy(sure, labels[::-1]).mean()) == jnp.inf


def test_huge_logits_do_not_overflow():
    np.testing.assert_allclose(cross_entropy(jnp.array([[1e4, 0.0]]), jnp.array([1])), [1e4])


def test_a_masked_mean_is_over_the_masked_entries_and_0_if_there_are_none():
    values, mask = jnp.float32([[1, 2], [3, 10]]), jnp.array([[True, False], [True, False]])
    assert masked_mean(values, mask) == 2.0
    assert masked_mean(values, None) == 4.0
    assert masked_mean(values, jnp.zeros((2, 2), bool)) == 0.0


def layer_of(t=5, b=3, h=4, v=7, tied=False):
    """An output layer, hidden states, labels and a mask."""
    rng = np.random.default_rng(0)
    w, states = (jnp.float32(rng.normal(size=shape)) for shape in ((v, h) if tied else (h, v), (t, b, h)))
    layer = OutputLayer(w, jnp.float32(rng.normal(size=v)), tied)
    return layer, states, jnp.int32(rng.integers(0, v, (t, b))), jnp.asarray(rng.random((t, b)) < 0.7)


@pytest.fixture(params=["machine code", "whole logits", "blocks of two steps"])
def way(request, monkeypatch):
    """Who computes it."""
    if request.param == "machine code":
        if not native.is_available():
            pytest.skip("no C++ compiler here, or RNN_LM_NATIVE=0")
    else:
        monkeypatch.setenv("RNN_LM_NATIVE", "0")
    if request.param == "blocks of two steps":
        monkeypatch.setattr(output, "_steps_of_block", lambda layer, labels: 2)
        jax.clear_caches()
    yield
    if request.param == "blocks of two steps":
        jax.clear_caches()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradient_are_those_of_the_closed_form(tied, masked):
    """The gradient of −ln P by the logits is P − (one-hot label)."""
    layer, h, labels, mask = layer_of(tied=tied)
    w, b, states = (np.asarray(x, np.float64) for x in (layer.w.T if tied else layer.w, layer.b, h))
    logits = states @ w + b
    weights = np.asarray(mask) / int(mask.sum()) if masked else np.full(labels.shape, 1 / labels.size)
    expected = (nats(logits, np.asarray(labels)) * weights).sum()
    d = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True))) - np.eye(7)[labels]
    d *= weights[..., None]
    d_w = np.einsum("tbh,tbv->hv", states, d)
    mean = lambda layer, h: layer.mean_nll(h, labels, mask if masked else None)  # noqa: E731
    value, (d_layer, d_h) = jax.value_and_grad(mean, argnums=(0, 1))(layer, h)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, wanted in [(d_layer.w, d_w.T if tied else d_w), (d_layer.b, d.sum((0, 1))), (d_h, d @ w.T)]:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    each = jax.value_and_grad(lambda layer: layer.nll(h, labels).sum())(layer)
    np.testing.assert_allclose(each[0], nats(logits, np.asarray(labels)).sum(), rtol=1e-5)
    of_all = jax.grad(lambda layer: cross_entropy(layer.logits(h), labels).sum())(layer)
    np.testing.assert_allclose(each[1].w, of_all.w, rtol=1e-4, atol=1e-5)


def test_blocks_keep_no_logits(monkeypatch):
    monkeypatch.setenv("RNN_LM_NATIVE", "0")
    monkeypatch.setattr(output, "BLOCK", 2**16)  # no other test has these shapes, so no program is cached
    layer, h, labels, _ = layer_of(t=128, b=16, h=8, v=512)

    def temporaries(loss):
        return jax.jit(jax.grad(loss)).lower(layer, h).compile().memory_analysis().temp_size_in_bytes

    whole = temporaries(lambda layer, h: cross_entropy(layer.logits(h), labels).mean())
    logits = labels.size * 512 * 4
    assert whole >= logits
    assert temporaries(lambda layer, h: layer.mean_nll(h, labels)) < logits / 4
    assert temporaries(lambda layer, h: layer.nll(h, labels).mean()) < logits / 2


@pytest.mark.slow
def test_derivatives_of_all_kinds_are_those_of_whole_logits():
    layer, h, labels, mask = layer_of()
    plain = lambda h, w=layer.w: masked_mean(cross_entropy(replace(layer, w=w).logits(h), labels), mask)  # noqa: E731
    ours = lambda h, w=layer.w: replace(layer, w=w).mean_nll(h, labels, mask)  # noqa: E731
    some, weights = jnp.stack([h, 2 * h]), jnp.stack([layer.w, -layer.w])
    for of in (
        lambda f: jax.jvp(f, (h,), (jnp.cos(h),))[1],
        lambda f: jax.grad(lambda h: jnp.sum(jnp.sin(jax.grad(f)(h))))(h),
        lambda f: jax.vmap(jax.value_and_grad(f, argnums=(0, 1)))(some, weights),
        lambda f: jax.grad(lambda w: jax.vmap(f, (0, None))(some, w).sum())(layer.w),
        lambda f: jax.grad(lambda w: jax.lax.map(lambda h: f(h, w), some).sum())(layer.w),
        lambda f: jax.grad(jax.checkpoint(f))(h),
    ):
        for got, expected in zip(*(jax.tree.leaves(of(f)) for f in (ours, plain)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("masked", [False, True])
def test_under_shard_map(masked):
    layer, h, labels, mask = layer_of()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    loss = lambda layer, h, labels, mask: layer.mean_nll(h, labels, mask if masked else None)  # noqa: E731
    specs = P(), P(None, "data"), P(None, "data"), P(None, "data")
    gradient = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=specs, out_specs=P())(layer, h, labels, mask)
    expected = jax.grad(lambda layer: loss(layer, h, labels, mask))(layer)
    np.testing.assert_allclose(gradient.w, expected.w, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("of_w, of_h", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_of_mixed_dtypes_are_those_of_whole_logits(of_w, of_h):
    layer, h, labels, mask = layer_of(t=60, b=5)  # 300 rows: a number that bfloat16 does not have
    layer, h = jax.tree.map(lambda x: x.astype(of_w), layer), h.astype(of_h)
    plain = lambda layer, h: masked_mean(cross_entropy(layer.logits(h), labels), mask)  # noqa: E731
    ours = lambda layer, h: layer.mean_nll(h, labels, mask)  # noqa: E731
    for got, expected in zip(*(jax.tree.leaves(jax.grad(f, (0, 1))(layer, h)) for f in (ours, plain)), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=0.05, atol=1e-3)


def test_no_predictions_are_no_error():
    layer, h, labels, _ = layer_of(t=0)
    assert layer.nll(h, labels).shape == (0, 3)
    value, gradient = jax.value_and_grad(lambda layer: layer.mean_nll(h, labels, labels > 0))(layer)
    assert value == 0 and not gradient.w.any()


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_a_model_with_logits_or_nats_of_its_own_is_trained_on_these(dtype):
    class Cold(RNNLM):
        def logits(self, h):
            return 2 * super().logits(h)

    class Clipped(RNNLM):
        def nll(self, h, labels):
            return jnp.minimum(super().nll(h, labels), 1.0)

    _, h, labels, mask = layer_of()
    for cls in (Cold, Clipped, RNNLM):
        model = cls(7, 4, rngs=nnx.Rngs(0), dtype=dtype)
        each = cross_entropy(model.logits(h), labels)
        each = jnp.minimum(each, 1) if cls is Clipped else each
        np.testing.assert_allclose(model.nll(h, labels), each, rtol=1e-5)
        np.testing.assert_allclose(model.mean_nll(h, labels, mask), masked_mean(each, mask), rtol=1e-5)
        plain = jax.grad(lambda h, model=model: masked_mean(model.nll(h, labels), mask))(h)
        np.testing.assert_allclose(
            jax.grad(lambda h, model=model: model.mean_nll(h, labels, mask))(h), plain, atol=1e-3
        )
