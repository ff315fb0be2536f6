import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.analysis import randomized
from rnn_lm.analysis.gradients import minibatch_of, windows_of
from rnn_lm.analysis.randomized import randomized_spread
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.truncation import RandomizedTruncation
from tests.analysis.test_gradients import WINDOWS, H, V, W

PROBABILITIES = (0.3, 0.9)


class Given(RandomizedTruncation):
    """With ξ in place of π."""

    def passed(self, num_steps, *, reverse=False):
        return self.keep_probability


def spread_of_all_patterns(model, batch):
    """√E ‖g − E g‖² by parameter, from the gradients for every pattern of ξ."""
    graphdef, params = nnx.split(model)

    @jax.jit
    @jax.vmap
    def gradient(passed):
        def loss(params):
            model = nnx.merge(graphdef, params)
            _, h = model.hidden(batch.carry, batch.inputs, truncation=Given(passed, jax.random.key(0)))
            return model.mean_nll(h, batch.labels)

        return jax.grad(loss)(params)

    kept = np.array(list(itertools.product((0, 1), repeat=W - 1)))
    spread = {}
    for probability in PROBABILITIES:
        weights = np.prod(np.where(kept, probability, 1 - probability), axis=1)
        found = gradient(jnp.asarray(np.insert(kept / probability, 0, 1, axis=1), jnp.float32))
        for name, of_pattern in randomized.named_leaves(found).items():
            of_pattern = np.asarray(of_pattern, np.float64).reshape(len(weights), -1)
            far = np.square(of_pattern - weights @ of_pattern).sum(1)
            spread.setdefault(name, []).append(np.sqrt(weights @ far))
    return spread


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"cell": "gru", "embed_dim": H, "tie": True}, marks=pytest.mark.slow),
        pytest.param({"cell": "lstm", "layer_norm": True}, marks=pytest.mark.slow),
        pytest.param({"cell": "gru", "reset_after": False}, marks=pytest.mark.slow),
        pytest.param({"cell": "lstm", "num_layers": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_spread_is_that_of_all_patterns(options):
    """Of each parameter."""
    model = RNNLM(V, H, rngs=nnx.Rngs(0), **options)
    batch = minibatch_of(model, WINDOWS)
    got, expected = randomized_spread(model, batch, PROBABILITIES), spread_of_all_patterns(model, batch)
    assert set(got) == set(expected)
    for name, spread in expected.items():
        np.testing.assert_allclose(got[name], spread, rtol=1e-5, atol=1e-6)
    assert got["b_q"].tolist() == [0, 0] and max(spread[0] for spread in got.values()) > 0.01


@pytest.mark.parametrize("radius", [0.3, 1.0, 1.5])
def test_the_spread_of_a_scalar_cell_has_a_closed_form(radius):
    """h_t = a h_{t−1} + b, and the loss is about that of h_t: C_ut = c_t aᵗ⁻ᵘ. In 64 steps numbers leave float32."""
    steps = 64
    model = RNNLM(2, 1, rngs=nnx.Rngs(0), activation="identity", recurrent_init=nnx.initializers.constant(radius))
    model.cell.w_xh[...] = jnp.zeros((2, 1))
    batch = minibatch_of(model, windows_of(np.arange(2 * steps + 1) % 2, 1, steps))
    q = np.asarray(model.w_hq[...], np.float64)[0]
    of_loss = (np.where(np.asarray(batch.labels[:, 0]) == 0, -1, 1) * 0.5 * (q[0] - q[1])) / steps
    u, t = np.tril_indices(steps)[::-1]
    c = of_loss[t] * float(radius) ** (t - u)
    overlap = np.maximum(0, np.minimum.outer(t, t) - np.maximum.outer(u, u))
    for probability, got in zip(PROBABILITIES, randomized_spread(model, batch, PROBABILITIES)["cell.b_h"], strict=True):
        expected = np.sqrt(c @ (probability ** -overlap.astype(float) - 1) @ c)
        assert got == pytest.approx(expected, rel=1e-5)
