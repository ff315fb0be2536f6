import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cells import ElmanCell
from rnn_lm.nn.recurrence import unroll

pytestmark = pytest.mark.usefixtures("strict_promotion")
T, B, D, H = 6, 2, 3, 4


@pytest.fixture
def cell():
    return ElmanCell(D, H, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(0.5))


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(1), (T, B, D))


def loop(cell, h, x):
    outputs = []
    for x_t in x:
        h, y = cell(h, x_t)
        outputs.append(y)
    return h, jnp.stack(outputs)


def test_it_equals_a_loop_over_the_cell_in_values_and_gradients(cell, inputs):
    graphdef, params = nnx.split(cell)
    h0 = jax.random.normal(jax.random.key(2), (B, H))
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def loss(run):
        def of(params, h0, x):
            h, y = run(nnx.merge(graphdef, params), h0, x)
            return jnp.sum(h) + jnp.sum(y * weights)

        return jax.value_and_grad(of, argnums=(0, 1, 2))(params, h0, inputs)

    for got, expected in zip(jax.tree.leaves(loss(unroll)), jax.tree.leaves(loss(loop)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_two_carried_windows_equal_one_long_window(cell, inputs):
    h0 = cell.initialize_carry((B, D))
    h, whole = unroll(cell, h0, inputs)
    h1, first = unroll(cell, h0, inputs[:2])
    h2, second = unroll(cell, h1, inputs[2:])
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(h2, h, rtol=1e-6, atol=1e-6)


def test_an_output_depends_on_the_past_only(cell, inputs):
    h0 = cell.initialize_carry((B, D))
    gradient = jax.grad(lambda x: jnp.sum(unroll(cell, h0, x)[1][3]))(inputs)
    assert (np.abs(gradient[:4]).max(axis=(1, 2)) > 0).all()
    assert not gradient[4:].any()


def test_wrong_shapes_are_refused(cell):
    with pytest.raises(TypeError):
        unroll(cell, jnp.zeros((B, H)), jnp.zeros((B, D)))
