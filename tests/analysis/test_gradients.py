import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.analysis.gradients import (
    compared,
    effective_memory,
    gradient,
    minibatch_of,
    norms_by_lag,
    rate_by_lag,
    windows_of,
)
from rnn_lm.errors import UserError
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import states_by_letter
from rnn_lm.nn.truncation import SegmentTruncation, WindowTruncation
from tests.reference import forward, gradients, numpy_params

V, H, W = 7, 5, 6
IDS = np.random.default_rng(0).integers(0, V, 60)
WINDOWS = windows_of(IDS, 3, W)


def scaled_to(radius):
    """A random matrix of this spectral radius, far from orthogonal."""

    def init(key, shape, dtype):
        matrix = np.asarray(jax.random.normal(key, shape, dtype))
        return jnp.asarray(matrix * radius / np.abs(np.linalg.eigvals(matrix)).max(), dtype)

    return init


def linear_model(radius, hidden=32):
    options = {"activation": "identity", "recurrent_init": scaled_to(radius)}
    return RNNLM(V, hidden, rngs=nnx.Rngs(0), **options)


def test_windows_have_a_warm_up_and_end_where_the_text_ends():
    assert WINDOWS.shape == (2 * W + 1, 3)
    np.testing.assert_array_equal(WINDOWS[:, 0], IDS[: 2 * W + 1])
    np.testing.assert_array_equal(WINDOWS[:, -1], IDS[-2 * W - 1 :])
    assert windows_of(IDS[:18], 128, W).T.tolist() == [IDS[i : i + 13].tolist() for i in range(6)]  # no window twice
    with pytest.raises(UserError, match="the text has 60 tokens; a window of 30 .* need 61: give a longer text"):
        windows_of(IDS, 3, 30)


@pytest.mark.parametrize("options", [{"cell": "gru", "embed_dim": 4}, {"cell": "lstm", "num_layers": 2}], ids=str)
def test_norms_by_lag_are_those_of_each_lag_differentiated_by_itself(options):
    model, window = RNNLM(V, H, rngs=nnx.Rngs(0), **options), 4
    windows = windows_of(IDS, 3, window)

    @jax.jit
    def adjoints(tokens):
        states = [model.initialize_carry(1)]
        for token in tokens[:-1]:
            states.append(model(states[-1], token[None])[0])

        def loss(state, lag):
            for token in tokens[len(tokens) - 1 - lag : -1]:
                state, _ = model(state, token[None])
            return model.nll(model.cell.output(state), tokens[-1]).sum()

        return [states_by_letter(model.cell, jax.grad(loss)(states[-1 - lag], lag)) for lag in range(window)]

    norms = norms_by_lag(model, minibatch_of(model, windows))
    for n in range(3):
        for lag, by_letter in enumerate(adjoints(jnp.asarray(windows[:, n : n + 1]))):
            assert set(norms) == set(by_letter)
            for letter, layers in by_letter.items():
                expected = np.sqrt(sum(np.square(layer).sum() for layer in layers))
                np.testing.assert_allclose(norms[letter][lag, n], expected, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("radius", [0.5, 1.5])
def test_gradients_of_a_linear_cell_change_by_its_spectral_radius(radius):
    """High powers of W_hh: eigenvalues below 1 make gradients vanish, above 1 explode."""
    model = linear_model(radius)
    norms = norms_by_lag(model, minibatch_of(model, windows_of(np.tile(IDS, 9), 16, 96)))["h"]
    assert rate_by_lag(norms) == pytest.approx(np.log(radius), rel=0.02)


def test_effective_memory_is_where_the_median_falls_below_a_hundredth():
    lags = np.arange(20.0)[:, None]
    assert effective_memory(0.5**lags) == 7  # 2⁻⁷ = 0.0078
    assert effective_memory(3 * 0.9**lags) is None
    assert rate_by_lag(0.9**lags) == pytest.approx(np.log(0.9))
    assert np.isnan(rate_by_lag(0 * lags))


def test_the_whole_gradient_is_that_of_numpy():
    model = RNNLM(V, H, rngs=nnx.Rngs(0))
    params = numpy_params(model)
    start = forward(params, np.zeros((3, H)), WINDOWS[:W])[0][-1]
    _, expected = gradients(params, start, WINDOWS[W:-1], WINDOWS[W + 1 :])
    got = gradient(model, minibatch_of(model, WINDOWS))
    assert set(got) == {"cell.w_xh", "cell.w_hh", "cell.b_h", "w_hq", "b_q"}
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name.removeprefix("cell.")], atol=1e-6)


@pytest.mark.parametrize("kind", [SegmentTruncation, WindowTruncation])
def test_the_longer_the_truncation_the_smaller_its_bias(kind):
    model = RNNLM(V, H, rngs=nnx.Rngs(0), cell="gru")
    batch = minibatch_of(model, WINDOWS)
    full = gradient(model, batch)
    rows = [compared(gradient(model, batch, kind(steps)), full) for steps in (1, 3, W)]
    biases = [row["cell.w_hh"]["bias"] for row in rows]
    assert biases[0] > biases[1] > 100 * biases[2]
    assert rows[2]["all"]["cosine"] == pytest.approx(1) and rows[2]["all"]["norm_ratio"] == pytest.approx(1)
    assert rows[0]["w_hq"]["bias"] < 1e-5  # no time to go back through


def test_comparison():
    full = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    rows = compared({"a": np.array([0.0, 3.0]), "b": np.array([[8.0]])}, full)
    assert rows["a"] == pytest.approx({"cosine": 0, "norm_ratio": 1, "bias": 2**0.5})
    assert rows["b"] == pytest.approx({"cosine": 1, "norm_ratio": 2, "bias": 1})
    assert rows["all"] == pytest.approx({"cosine": 32 / (5 * 73**0.5), "norm_ratio": 73**0.5 / 5, "bias": 34**0.5 / 5})
    assert np.isnan(compared({"a": np.zeros(2)}, {"a": np.zeros(2)})["a"]["cosine"])
