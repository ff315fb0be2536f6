import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.models import RNNLM
from tests.reference import forward, numpy_params

pytestmark = pytest.mark.usefixtures("strict_promotion")


@pytest.mark.parametrize("embed_dim", [0, 3])
def test_logits_equal_the_numpy_loop(embed_dim):
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=embed_dim)
    tokens = np.random.default_rng(0).integers(0, 7, (6, 2))
    carry, logits = model(model.initialize_carry(2), jnp.asarray(tokens, jnp.int32))
    params = numpy_params(model)
    if embed_dim:  # an embedding and a projection are one matrix
        params["w_xh"] = np.asarray(model.embedding[...], np.float64) @ params["w_xh"]
    states, expected = forward(params, np.zeros((2, 5)), tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carry, states[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embed_dim, expected", [(0, 7 * 5 + 5 * 5 + 5 + 5 * 7 + 7), (3, 7 * 3 + 3 * 5 + 30 + 42)])
def test_the_number_of_parameters_does_not_depend_on_time(embed_dim, expected):
    model = RNNLM(7, 5, rngs=nnx.Rngs(0), embed_dim=embed_dim)
    for steps in (1, 9):
        _, logits = model(model.initialize_carry(2), jnp.zeros((steps, 2), jnp.int32))
        assert logits.shape == (steps, 2, 7)
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected
