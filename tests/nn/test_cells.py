import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, LSTMState
from rnn_lm.nn.initializers import identity, uniform
from rnn_lm.nn.stack import Stack, dropped, states_by_letter
from tests.reference import gru_step, lstm_step

pytestmark = pytest.mark.usefixtures("strict_promotion")
D, H = 3, 5
CELLS = [ElmanCell, GRUCell, LSTMCell]
normal = nnx.initializers.normal(1.0)


@pytest.fixture(params=CELLS)
def cell(request):
    return request.param(D, H, rngs=nnx.Rngs(0), bias_init=normal)


def params_of(cell):
    return {name: np.asarray(p[...], np.float64) for name, p in vars(cell).items() if isinstance(p, nnx.Param)}


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


PHI = [("tanh", np.tanh), ("relu", lambda z: np.maximum(z, 0)), ("identity", lambda z: z)]


@pytest.mark.parametrize("activation, phi", PHI)
def test_an_elman_step_is_equation_8_4_5(activation, phi):
    cell = ElmanCell(D, H, rngs=nnx.Rngs(1), activation=activation, bias_init=normal)
    x, h = draw((2, 4, D), (2, 4, H))
    p = params_of(cell)
    carry, output = cell(jnp.float32(h), jnp.float32(x))
    np.testing.assert_allclose(output, phi(x @ p["w_xh"] + h @ p["w_hh"] + p["b_h"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(carry, output)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_step_equals_numpy(reset_after):
    cell = GRUCell(D, H, rngs=nnx.Rngs(1), reset_after=reset_after, bias_init=normal)
    if reset_after:
        cell.b_hn[...] = jnp.linspace(-1.0, 1.0, H)
    x, h = draw((4, D), (4, H))
    carry, _ = cell(jnp.float32(h), jnp.float32(x))
    np.testing.assert_allclose(carry, gru_step(params_of(cell), h, x, reset_after=reset_after), rtol=1e-5, atol=1e-6)


def test_an_lstm_step_equals_numpy():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(1), bias_init=normal)
    x, c, h = draw((4, D), (4, H), (4, H))
    carry, output = cell(LSTMState(c=jnp.float32(c), h=jnp.float32(h)), jnp.float32(x))
    c, h = lstm_step(params_of(cell), (c, h), x)
    np.testing.assert_allclose(carry.c, c, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output, h, rtol=1e-5, atol=1e-6)


def test_layer_norm_is_equations_20_to_22_of_the_paper():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(1), bias_init=normal, layer_norm=True)
    for name in ("scale_x", "scale_h", "scale_c", "b_c"):
        getattr(cell, name)[...] = normal(jax.random.key(len(name)), getattr(cell, name).shape)
    x, c, h = draw((4, D), (4, H), (4, H))
    p = params_of(cell)

    def norm(z, gates):
        z = z.reshape(len(z), gates, H)
        return ((z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)).reshape(len(z), -1)

    z = norm(x @ p["w_xh"], 4) * p["scale_x"] + norm(h @ p["w_hh"], 4) * p["scale_h"] + p["b_h"]
    i, f, g, o = np.split(z, 4, -1)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    expected = sigmoid(o) * np.tanh(norm(new_c, 1) * p["scale_c"] + p["b_c"])
    _, output = cell(LSTMState(c=jnp.float32(c), h=jnp.float32(h)), jnp.float32(x))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("count", [2, 9], ids=["few", "many"])
def test_token_ids_stand_for_one_hot_vectors(count, layer_norm):
    for make in CELLS:
        cell = make(D, H, rngs=nnx.Rngs(0), bias_init=normal, layer_norm=layer_norm)
        ids = jnp.arange(count) % D
        np.testing.assert_allclose(cell.project(ids), cell.project(jax.nn.one_hot(ids, D)), rtol=1e-4, atol=1e-5)


def test_shapes_and_names_are_the_contracts(cell):
    shapes = {name: value.shape for name, value in params_of(cell).items()}
    g = {ElmanCell: 1, GRUCell: 3, LSTMCell: 4}[type(cell)]
    extra = {"b_hn": (H,)} if isinstance(cell, GRUCell) else {}
    assert shapes == {"w_xh": (D, g * H), "w_hh": (H, g * H), "b_h": (g * H,)} | extra
    carry = cell.initialize_carry((7, D))
    assert all(leaf.shape == (7, H) and not leaf.any() for leaf in jax.tree.leaves(carry))
    assert isinstance(carry, LSTMState if isinstance(cell, LSTMCell) else jax.Array)


def test_each_gate_has_a_recurrent_matrix_that_starts_orthogonal(cell):
    for w in jnp.split(cell.w_hh[...], cell.num_gates, axis=1):
        np.testing.assert_allclose(w @ w.T, np.eye(H), atol=1e-5)


def test_other_initializers():
    cell = GRUCell(D, H, rngs=nnx.Rngs(0), kernel_init=uniform, recurrent_init=identity, bias_init=uniform)
    np.testing.assert_array_equal(cell.w_hh[...], np.tile(np.eye(H), 3))
    for p in (cell.w_xh, cell.b_h):
        assert 0.3 * H**-0.5 < np.abs(p[...]).max() <= H**-0.5


def test_the_forget_bias_is_in_the_forget_gates_part_only():
    np.testing.assert_array_equal(LSTMCell(D, 2, rngs=nnx.Rngs(0)).b_h[...], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(LSTMCell(D, 1, rngs=nnx.Rngs(0), forget_bias=2.5).b_h[...], [0, 2.5, 0, 0])


@pytest.mark.parametrize("make", CELLS)
def test_float64_is_kept(make):
    with jax.enable_x64():
        cell = make(D, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        carry, h = cell(cell.initialize_carry((1, D)), jnp.ones((1, D), jnp.float64))
        assert {leaf.dtype for leaf in jax.tree.leaves((carry, h, nnx.state(cell)))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("make", CELLS)
def test_bfloat16_products_keep_a_float32_carry(make):
    cell, exact = (make(D, H, rngs=nnx.Rngs(0), dtype=dtype) for dtype in (jnp.bfloat16, None))
    x = jax.random.normal(jax.random.key(1), (4, D))
    carry = jax.tree.map(jnp.ones_like, cell.initialize_carry((4, D)))
    _, h = cell(carry, x)
    _, h_exact = exact(carry, x)
    assert h.dtype == jnp.float32
    assert 0 < np.abs(h - h_exact).max() < 0.03


def test_ids_and_one_hot_vectors_agree_in_bfloat16_too():
    cell = ElmanCell(D, H, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    ids = jnp.array([0, 2, 1])
    np.testing.assert_array_equal(cell.project(ids), cell.project(jax.nn.one_hot(ids, D)))


def test_what_a_cell_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'tan'; it is one of tanh, relu, identity"):
        ElmanCell(D, H, rngs=nnx.Rngs(0), activation="tan")
    with pytest.raises(ValueError, match="layer_norm goes with the reset after the product only"):
        GRUCell(D, H, rngs=nnx.Rngs(0), reset_after=False, layer_norm=True)


def test_a_stack_hands_outputs_on_from_layer_to_layer():
    layers = [GRUCell(D, H, rngs=nnx.Rngs(0)), LSTMCell(H, 4, rngs=nnx.Rngs(1))]
    stack = Stack(layers)
    carry = stack.initialize_carry((2, D))
    x = jnp.ones((2, D))
    (first, second), output = stack(carry, x)
    h, _ = layers[0](carry[0], x)
    expected, _ = layers[1](carry[1], h)
    np.testing.assert_array_equal(first, h)
    np.testing.assert_array_equal(second.c, expected.c)
    np.testing.assert_array_equal(output, expected.h)
    letters = states_by_letter(stack, (first, second))
    assert [len(letters["h"]), len(letters["c"])] == [2, 1]


def test_dropout_keeps_the_mean_and_drops_the_rate():
    y = dropped(jnp.ones((100, 100)), 0.3, jax.random.key(0))
    assert float((y == 0).mean()) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
