import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.convert.weights import Weights, model_fields
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.cells import LSTMState
from rnn_lm.nn.models import RNNLM
from rnn_lm.runs.load import arrays_of

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
to_onnx = importlib.import_module("rnn_lm.convert.onnx").to_onnx

HIDDEN, STEPS, BATCH = 5, 7, 3
FEW, MANY = 6, 23  # tokens: as many as G·H or fewer, and more
MODELS = {
    "one-hot, few tokens": dict(cell="gru"),
    "one-hot, many tokens": dict(cell="gru", vocab_size=MANY),
    "elman": dict(embed_dim=4),
    "relu": dict(activation="relu", embed_dim=4),
    "identity": dict(activation="identity"),
    "elman, many tokens, two layers": dict(vocab_size=MANY, num_layers=2),
    "gru": dict(cell="gru", embed_dim=4, num_layers=2),
    "gru, reset before": dict(cell="gru", embed_dim=4, reset_after=False),
    "gru, reset before, two layers": dict(cell="gru", reset_after=False, num_layers=2),
    "lstm": dict(cell="lstm"),
    "lstm, two layers, tied": dict(cell="lstm", embed_dim=HIDDEN, num_layers=2, tie=True),
    "lstm, many tokens": dict(cell="lstm", vocab_size=MANY),
    "normalized elman": dict(layer_norm=True, embed_dim=4),
    "normalized relu, two layers": dict(layer_norm=True, activation="relu", num_layers=2),
    "normalized identity": dict(layer_norm=True, activation="identity"),
    "normalized gru, tied": dict(layer_norm=True, cell="gru", embed_dim=HIDDEN, tie=True),
    "normalized lstm": dict(layer_norm=True, cell="lstm"),
    "normalized lstm, two layers": dict(layer_norm=True, cell="lstm", embed_dim=4, num_layers=2),
    "mlp": dict(kind="mlp", context=3),
    "mlp, one token": dict(kind="mlp", context=1, activation="identity"),
    "mlp, longer than the text": dict(kind="mlp", context=STEPS + 2, activation="relu", embed_dim=4),
    "mlp, tied": dict(kind="mlp", context=2, embed_dim=HIDDEN, tie=True),
}


def random_model(kind="rnn", vocab_size=FEW, **options):
    """A model without a zero or a one among its parameters."""
    model = (MLPLM if kind == "mlp" else RNNLM)(vocab_size, HIDDEN, rngs=nnx.Rngs(0), **options)
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.6, x.shape), jnp.float32), params))
    return model


def weights_of(model, kind="rnn", vocab_size=FEW, **options):
    vocabulary = Vocabulary([chr(97 + i) for i in range(vocab_size - 1)], kind="char", normalize="letters")
    return Weights(model_fields(kind=kind, num_hiddens=HIDDEN, **options), arrays_of(model), vocabulary)


def session_of(exported):
    onnx.checker.check_model(exported, full_check=True)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])


def read(session, tokens, state):
    """The logits, and the state after the tokens under the names of the state before."""
    names = [output.name for output in session.get_outputs()]
    logits, *after = session.run(None, {"tokens": np.asarray(tokens, np.int64), **state})
    assert names == ["logits", *(f"{name}_after" for name in state)]
    return logits, dict(zip(state, after, strict=True))


def first_state(model, kind, *, zeros):
    """The state before the first token, by the names of the file, and as the model's carry."""
    carry = model.initialize_carry(BATCH)
    draw = np.random.default_rng(2)
    if kind == "mlp":
        given = np.full(carry.shape, -1) if zeros else draw.integers(-1, FEW, carry.shape)
        return {"context": given}, jnp.asarray(given, jnp.int32)
    if not zeros:
        carry = jax.tree.map(lambda x: jnp.asarray(draw.uniform(-1, 1, x.shape), jnp.float32), carry)
    return by_name(carry, kind), carry


def by_name(carry, kind):
    if kind == "mlp":
        return {"context": np.asarray(carry, np.int64)}
    layers = carry if isinstance(carry, tuple) and not isinstance(carry, LSTMState) else (carry,)
    states = {}
    for i, state in enumerate(layers):
        fields = {"h": state.h, "c": state.c} if isinstance(state, LSTMState) else {"h": state}
        states |= {f"{letter}_{i}": np.asarray(array) for letter, array in fields.items()}
    return states


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_logits_and_states_are_the_models(options):
    kind = options.get("kind", "rnn")
    model = random_model(**options)
    session = session_of(to_onnx(weights_of(model, **options)))
    tokens = np.random.default_rng(3).integers(0, model.vocab_size, (STEPS, BATCH)).astype(np.int32)
    forward = jax.jit(lambda carry, tokens: model(carry, tokens))
    for zeros in (True, False):
        state, carry = first_state(model, kind, zeros=zeros)
        carry, expected = forward(carry, jnp.asarray(tokens))
        assert np.ptp(expected, axis=0).min() > 1e-3, "the logits do not depend on the tokens"
        logits, after = read(session, tokens, state)
        assert_close({"logits": logits, **after}, {"logits": expected, **by_name(carry, kind)})

        # Rows know nothing of each other, so other shapes have the same logits.
        logits, _ = read(session, tokens[:4, :2], {name: array[:2] for name, array in state.items()})
        np.testing.assert_allclose(logits, expected[:4, :2], atol=1e-5, rtol=1e-5)

        for t, row in enumerate(tokens):
            logits, state = read(session, row[None], state)
            np.testing.assert_allclose(logits[0], expected[t], atol=1e-5, rtol=1e-5)
        assert_close(state, by_name(carry, kind))


def test_dimensions_have_names_and_the_file_says_what_it_is():
    options = dict(cell="lstm")
    exported = to_onnx(weights_of(random_model(**options), **options))
    shapes = {value.name: value.shape for value in session_of(exported).get_inputs()}
    assert shapes == {"tokens": ["T", "B"], "h_0": ["B", HIDDEN], "c_0": ["B", HIDDEN]}
    shapes = {value.name: value.shape for value in session_of(exported).get_outputs()}
    assert shapes == {"logits": ["T", "B", FEW], "h_0_after": ["B", HIDDEN], "c_0_after": ["B", HIDDEN]}

    model = onnx.load_from_string(exported)
    assert (model.producer_name, model.producer_version) == ("rnn_lm", rnn_lm.__version__)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)] and model.ir_version == 8
    assert {entry.key: entry.value for entry in model.metadata_props} == {"tokens": "char", "normalize": "letters"}
    assert "h_0 [B, 5], c_0 [B, 5]" in model.doc_string and "zeros" in model.doc_string


@pytest.mark.parametrize("name", ["lstm, two layers, tied", "normalized gru, tied", "mlp, tied", "lstm, many tokens"])
def test_same_weights_same_bytes_and_each_array_is_stored_once(name):
    options = MODELS[name]
    model = random_model(**options)
    exported = to_onnx(weights_of(model, **options))
    assert exported == to_onnx(weights_of(model, **options))
    stored = onnx.load_from_string(exported).graph.initializer
    numbers = sum(np.prod(array.dims) for array in stored if array.data_type == onnx.TensorProto.FLOAT)
    beside = 8 * HIDDEN * options.get("num_layers", 1)  # ONNX's operators have two biases
    assert model.num_params <= numbers <= model.num_params + beside


def test_bfloat16_changes_nothing_but_the_rounding():
    options = dict(cell="gru", embed_dim=4)
    model = random_model(**options)
    weights = weights_of(model, **options, dtype="bfloat16")
    assert to_onnx(weights) == to_onnx(weights_of(model, **options))
    narrow = {name: np.asarray(array, jnp.bfloat16) for name, array in weights.arrays.items()}
    wide = {name: array.astype(np.float32) for name, array in narrow.items()}
    assert to_onnx(Weights(weights.model, narrow, weights.vocabulary)) == to_onnx(
        Weights(weights.model, wide, weights.vocabulary)
    )


def test_what_it_cannot_say_is_an_error_of_one_line(monkeypatch):
    weights = weights_of(random_model())
    with pytest.raises(UserError, match=r"^model.onnx has no operator for the cell 'mgu'; it has elman, gru, lstm$"):
        to_onnx(Weights({**weights.model, "cell": "mgu"}, weights.arrays, weights.vocabulary))
    monkeypatch.setattr(sys.modules["rnn_lm.convert.onnx"], "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"^model.onnx can have 2 GiB; the model's arrays have 0.0 GiB$"):
        to_onnx(weights)


def test_without_onnx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "rnn_lm.convert.onnx")
    with pytest.raises(UserError, match=r"^model.onnx needs the package onnx: pip install onnx"):
        importlib.import_module("rnn_lm.convert.onnx")
