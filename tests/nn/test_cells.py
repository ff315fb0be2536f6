import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cells import ElmanCell

pytestmark = pytest.mark.usefixtures("strict_promotion")


@pytest.fixture
def cell():
    return ElmanCell(3, 5, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(1.0))


@pytest.mark.parametrize("activation, phi", [("tanh", np.tanh), ("relu", lambda z: np.maximum(z, 0))])
def test_a_step_is_equation_8_4_5(activation, phi):
    cell = ElmanCell(3, 5, rngs=nnx.Rngs(1), activation=activation, bias_init=nnx.initializers.normal(1.0))
    x, h = np.random.default_rng(0).normal(size=(2, 4, 3)), np.random.default_rng(1).normal(size=(2, 4, 5))
    carry, output = cell(jnp.float32(h), jnp.float32(x))
    expected = phi(x @ np.asarray(cell.w_xh[...]) + h @ np.asarray(cell.w_hh[...]) + np.asarray(cell.b_h[...]))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(carry, output)


def test_token_ids_stand_for_one_hot_vectors(cell):
    ids = jnp.array([[0, 2], [1, 1]])
    np.testing.assert_allclose(cell.project(ids), cell.project(jax.nn.one_hot(ids, 3)), rtol=1e-6)


def test_shapes_and_names_are_the_contracts(cell):
    shapes = {name: value.shape for name, value in vars(cell).items() if isinstance(value, nnx.Param)}
    assert shapes == {"w_xh": (3, 5), "w_hh": (5, 5), "b_h": (5,)}
    assert cell.initialize_carry((7, 3)).shape == (7, 5)
    assert not cell.initialize_carry((7, 3)).any()


def test_the_recurrent_matrix_starts_orthogonal(cell):
    np.testing.assert_allclose(cell.w_hh[...] @ cell.w_hh[...].T, np.eye(5), atol=1e-5)


def test_nnx_rnn_runs_the_cell(cell):
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))  # nnx.RNN is batch-major
    outputs = nnx.RNN(cell)(x)
    h = cell.initialize_carry((2, 3))
    for t in range(6):
        h, _ = cell(h, x[:, t])
    np.testing.assert_allclose(outputs[:, -1], h, rtol=1e-5, atol=1e-6)


def test_float64_is_kept():
    with jax.enable_x64():
        cell = ElmanCell(3, 5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        h, _ = cell(cell.initialize_carry((1, 3)), jnp.ones((1, 3), jnp.float64))
        assert h.dtype == cell.w_hh.dtype == jnp.float64


def test_bfloat16_products_keep_a_float32_carry():
    cell = ElmanCell(3, 5, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    exact = ElmanCell(3, 5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    h, _ = cell(cell.initialize_carry((4, 3)), x)
    h_exact, _ = exact(exact.initialize_carry((4, 3)), x)
    assert h.dtype == jnp.float32
    assert 0 < np.abs(h - h_exact).max() < 0.03


def test_ids_and_one_hot_vectors_agree_in_bfloat16_too():
    cell = ElmanCell(3, 5, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    ids = jnp.array([0, 2, 1])
    np.testing.assert_array_equal(cell.project(ids), cell.project(jax.nn.one_hot(ids, 3)))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="'tan'; it is one of tanh, relu"):
        ElmanCell(3, 5, rngs=nnx.Rngs(0), activation="tan")
