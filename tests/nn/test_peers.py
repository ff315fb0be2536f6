"""The cells beside other implementations of the same equations: PyTorch, ONNX's reference operators, flax."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn as jax_rnn

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, LSTMState
from rnn_lm.nn.recurrence import unroll
from tests.references.make_torch import HERE, KINDS, LENGTHS, B, D, H, T, reference

CELLS = {
    "elman": ElmanCell,
    "relu": lambda *args, **kwargs: ElmanCell(*args, activation="relu", **kwargs),
    "gru": GRUCell,
    "lstm": LSTMCell,
}


def from_torch(kind, arrays, prefix, dtype):
    """Our parameters, from PyTorch's [G·H, D] weights and its two biases."""
    ih, hh, b_ih, b_hh = (arrays[f"{prefix}{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    params = {"w_xh": ih.T, "w_hh": hh.T, "b_h": b_ih + b_hh}
    if kind == "gru":
        params["b_hn"] = b_hh[2 * H :]
        params["b_h"] = b_ih + np.concatenate([b_hh[: 2 * H], np.zeros(H)])
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def assert_equals_torch(kind, arrays, lengths, dtype, tolerance):
    cell = CELLS[kind](D, H, param_dtype=dtype, rngs=nnx.Rngs(0))
    for name, value in from_torch(kind, arrays, "", dtype).items():
        getattr(cell, name)[...] = value
    graphdef, params = nnx.split(cell)
    states = [jnp.asarray(arrays[f"state{i}"][0], dtype) for i in range(2 if kind == "lstm" else 1)]

    def loss(params, states, x):
        carry = LSTMState(h=states[0], c=states[1]) if kind == "lstm" else states[0]
        carry, y = unroll(nnx.merge(graphdef, params), carry, x, lengths=lengths)
        last = [carry.h, carry.c] if kind == "lstm" else [carry]
        total = jnp.sum(y * jnp.asarray(arrays["weights"], dtype))
        return total + sum((i + 2) * state.sum() for i, state in enumerate(last)), (y, last)

    x = jnp.asarray(arrays["x"], dtype)
    grads, (y, last) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, states, x)
    ours = {"y": y, "grad_x": grads[2]}
    expected = {"y": arrays["y"], "grad_x": arrays["grad_x"]}
    for i, (state, gradient) in enumerate(zip(last, grads[1], strict=True)):
        ours |= {f"last{i}": state, f"grad_state{i}": gradient}
        expected |= {name: arrays[name][0] for name in (f"last{i}", f"grad_state{i}")}
    # Both of PyTorch's biases have the gradient of the one of ours that is their sum.
    of_params = from_torch(kind, arrays, "grad_", dtype) | {"b_h": arrays["grad_bias_ih_l0"]}
    ours |= dict(grads[0].items())
    for name, value in (expected | of_params).items():
        np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("bits, tolerance", [(64, 1e-12), (32, 3e-5)])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pytorch_has_the_same_values_and_gradients(kind, with_lengths, bits, tolerance):
    with jax.enable_x64(bits == 64), np.load(HERE / f"{kind}{'_lengths' if with_lengths else ''}.npz") as arrays:
        lengths = jnp.asarray(LENGTHS) if with_lengths else None
        assert_equals_torch(kind, arrays, lengths, jnp.dtype(f"float{bits}"), tolerance)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed (its build is huge); the committed numbers stand for it",
)
@pytest.mark.parametrize("kind", KINDS)
def test_so_has_the_pytorch_that_is_installed_here(kind):
    with jax.enable_x64():
        assert_equals_torch(kind, reference(kind, False, seed=1), None, jnp.float64, 1e-12)


# ONNX has the gates in the orders z, r, n and i, o, f, g; PyTorch's and ours are r, z, n and i, f, g, o.
ONNX_ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}


@pytest.mark.parametrize(
    "operator, cell, options",
    [
        ("RNN", ElmanCell, {}),
        ("GRU", GRUCell, {"linear_before_reset": 1}),
        ("GRU", lambda *args, **kwargs: GRUCell(*args, reset_after=False, **kwargs), {"linear_before_reset": 0}),
        ("LSTM", LSTMCell, {}),
    ],
)
def test_onnx_reference_operators_agree(operator, cell, options):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    cell = cell(D, H, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(1.0))
    order = ONNX_ORDER[operator]

    def in_order(array):
        """[..., G·H] in our order of gates → [G·H, ...] in ONNX's, with its leading axis of directions."""
        gates = np.split(np.asarray(array), len(order), axis=-1)
        return np.concatenate([gates[i] for i in order], axis=-1).T[None]

    r_bias = np.zeros_like(cell.b_h[...])
    if getattr(cell, "b_hn", None) is not None:
        cell.b_hn[...] = jnp.linspace(-1, 1, H)
        r_bias[2 * H :] = cell.b_hn[...]
    given = {
        "X": np.random.default_rng(0).normal(size=(T, B, D)).astype(np.float32),
        "W": in_order(cell.w_xh[...]),
        "R": in_order(cell.w_hh[...]),
        "B": np.concatenate([in_order(cell.b_h[...]), in_order(r_bias)], axis=-1),
    }
    names = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(operator, list(given), names, hidden_size=H, **options)
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in group] for group in (given, names)
    ]
    model = helper.make_model(helper.make_graph([node], "one", *infos))
    expected = dict(zip(names, ReferenceEvaluator(model).run(None, given), strict=True))
    carry, y = unroll(cell, cell.initialize_carry((B, D)), jnp.asarray(given["X"]))
    np.testing.assert_allclose(y, expected["Y"][:, 0], atol=1e-5)
    np.testing.assert_allclose(cell.output(carry), expected["Y_h"][0], atol=1e-5)
    if operator == "LSTM":
        np.testing.assert_allclose(carry.c, expected["Y_c"][0], atol=1e-5)


def test_jaxs_lstm_reference_agrees():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(1.0))
    x = jax.random.normal(jax.random.key(0), (T, B, D))
    h0, c0 = jax.random.normal(jax.random.key(1), (2, B, H))
    y, h, c = jax_rnn.lstm_ref(
        x.swapaxes(0, 1), h0[None], c0[None],
        {0: cell.w_xh[...].T}, {0: cell.w_hh[...].T}, {0: cell.b_h[...]}, {0: jnp.zeros_like(cell.b_h[...])},
        jnp.full(B, T), D, H, 1, 0.0, False,
    )  # fmt: skip
    carry, ours = unroll(cell, LSTMState(c=c0, h=h0), x)
    for got, expected in [(ours, y.swapaxes(0, 1)), (carry.h, h[0]), (carry.c, c[0])]:
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_nnx_rnn_and_bidirectional_run_our_cells():
    x = jax.random.normal(jax.random.key(0), (T, B, D))
    lengths = jnp.asarray(LENGTHS)
    forward, backward = LSTMCell(D, H, rngs=nnx.Rngs(0)), GRUCell(D, H, rngs=nnx.Rngs(1))

    @nnx.jit  # under a plain jax.jit, a closed-over nnx.RNN raises for every cell
    def of_flax(model, x):
        return model(x.swapaxes(0, 1), seq_lengths=lengths).swapaxes(0, 1)

    expected = of_flax(nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward)), x)
    _, left = unroll(forward, forward.initialize_carry((B, D)), x, lengths=lengths)
    _, right = unroll(backward, backward.initialize_carry((B, D)), x, lengths=lengths, reverse=True)
    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]  # flax leaves garbage behind the end of a sequence
    np.testing.assert_allclose(jnp.concatenate([left, right], -1), np.where(valid, expected, 0), atol=1e-5)


@pytest.mark.parametrize("make", [nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_flaxs_cells_run_through_the_same_call(make):
    cell = make(in_features=D, hidden_features=H, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (T, B, D))
    graphdef, params, rest = nnx.split(cell, nnx.Param, ...)

    def ours(params):
        cell = nnx.merge(graphdef, params, rest)
        return unroll(cell, cell.initialize_carry((B, D), nnx.Rngs(0)), x)[1]

    def theirs(params):
        return nnx.RNN(nnx.merge(graphdef, params, rest), time_major=True)(x)

    np.testing.assert_allclose(ours(params), theirs(params), atol=1e-6)
    of_ours, of_theirs = (jax.grad(lambda p, run=run: jnp.sum(run(p) ** 2))(params) for run in (ours, theirs))
    for a, b in zip(jax.tree.leaves(of_ours), jax.tree.leaves(of_theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
