import jax.numpy as jnp
import numpy as np
import pytest

from rnn_lm.nn.output import cross_entropy, masked_mean
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
