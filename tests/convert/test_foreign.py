"""Weights of other libraries: the numbers of docs/exchange.md, row by row, the way out and back, and mistakes."""

import importlib.util
import json
import re
from functools import cache
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.convert.flax import to_linen, to_nnx
from rnn_lm.convert.foreign import from_arrays
from rnn_lm.convert.keras import to_keras
from rnn_lm.convert.pytorch import to_pytorch
from rnn_lm.convert.tokens import read_vocabulary
from rnn_lm.convert.weights import Weights, model_fields
from rnn_lm.errors import UserError
from tests.convert.models import VOCABULARY, logits_of, random_mlp, random_weights
from tests.references.make_exchange import TOKENS, E, H, T, V, of_linen, read

PAGE = (Path(rnn_lm.__file__).parent.parent / "docs" / "exchange.md").read_text()


def from_page(start, end):
    """A part of the page's code."""
    return PAGE[PAGE.index(start) : PAGE.index(end) + len(end)]


WAYS_OUT = {"pytorch": to_pytorch, "keras": to_keras, "nnx": to_nnx, "linen": to_linen}


# Each row of the page: arrays by their library's names, and the logits of the library.


def committed(name):
    arrays, tokens, logits = read(name)
    assert np.array_equal(tokens, TOKENS)
    return arrays, logits


def cells_of_pytorch():
    """Two `nn.LSTMCell`s in place of the layers of an `nn.LSTM`."""
    arrays, logits = committed("pytorch_lstm")
    return {re.sub(r"body\.(\w+)_l(\d)", r"cells.\2.\1", name): array for name, array in arrays.items()}, logits


def of_nnx(cell, num_layers=2):
    """A live model, as nnx is a dependency."""
    rngs, rng = nnx.Rngs(0), np.random.default_rng(0)

    class LM(nnx.Module):
        def __init__(self):
            self.emb = nnx.Embed(V, E, rngs=rngs)
            self.layers = nnx.List([nnx.RNN(cell(E if i == 0 else H, H, rngs=rngs)) for i in range(num_layers)])
            self.head = nnx.Linear(H, V, rngs=rngs)

    model = LM()
    nnx.update(
        model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype), nnx.state(model, nnx.Param))
    )
    names = {"model": model, "nnx": nnx, "np": np}
    exec(from_page("state = nnx.to_flat_state", "path, leaf in state}"), names)
    x = model.emb(jnp.asarray(TOKENS.T))
    for layer in model.layers:
        x = layer(x)
    return names["arrays"], np.asarray(model.head(x)).swapaxes(0, 1)


@cache
def live_linen():
    return {name: (arrays, logits) for name, arrays, logits in of_linen()}


ROWS = {
    "PyTorch `nn.RNN`": lambda: [committed("pytorch_relu_tied")],
    "PyTorch `nn.GRU`": lambda: [committed("pytorch_gru_one_hot")],
    "PyTorch `nn.LSTM`": lambda: [committed("pytorch_lstm")],
    "PyTorch `nn.RNNCell`, `nn.GRUCell`, `nn.LSTMCell`": lambda: [cells_of_pytorch()],
    "PyTorch `nn.Sequential` of `Embedding, Flatten, Linear, Tanh, Linear`": lambda: [committed("pytorch_mlp")],
    "Keras `SimpleRNN`": lambda: [committed("keras_simple")],
    "Keras `GRU`": lambda: [committed("keras_gru")],
    "Keras `GRU(reset_after=False)`": lambda: [committed("keras_gru_reset_before")],
    "Keras `LSTM`": lambda: [committed("keras_lstm")],
    "nnx `SimpleCell`": lambda: [of_nnx(nnx.SimpleCell)],
    "nnx `GRUCell`": lambda: [of_nnx(nnx.GRUCell)],
    "nnx `LSTMCell`": lambda: [of_nnx(nnx.LSTMCell)],
    "nnx `OptimizedLSTMCell`": lambda: [of_nnx(nnx.OptimizedLSTMCell)],
    "Linen `SimpleCell`": lambda: [committed("linen_simple"), live_linen()["simple"]],
    "Linen `GRUCell`": lambda: [committed("linen_gru"), live_linen()["gru"]],
    "Linen `LSTMCell`, `OptimizedLSTMCell`": lambda: [
        *(committed(f"linen_{name}") for name in ("lstm", "optimized_lstm")),
        *(live_linen()[name] for name in ("lstm", "optimized_lstm")),
    ],
}


def test_each_row_of_the_page_has_its_numbers_here():
    assert re.findall(r"^\| ((?:PyTorch|Keras|nnx|Linen) .*?) \|", PAGE, re.MULTILINE) == [*ROWS]


@pytest.mark.parametrize("row", ROWS)
def test_our_model_computes_their_logits(row):
    for arrays, logits in ROWS[row]():
        weights = from_arrays(arrays, VOCABULARY, activation="relu" if row == "PyTorch `nn.RNN`" else "tanh")
        np.testing.assert_allclose(logits_of(weights)[-len(logits) :], logits, atol=1e-5)


# Out and back.


def assert_same_bits(one, two):
    assert json.dumps(one.model) == json.dumps(two.model) and one.vocabulary.to_json() == two.vocabulary.to_json()
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        assert two.arrays[name].dtype == np.float32 and two.arrays[name].flags.c_contiguous
        assert array.tobytes() == two.arrays[name].tobytes(), name


@pytest.mark.parametrize("library", WAYS_OUT)
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_out_and_back_gives_the_same_bits(cell, library):
    for seed, (num_layers, embed_dim, tie) in enumerate(product([1, 2, 11], [0, E, H], [False, True])):
        weights = random_weights(cell, num_layers=num_layers, embed_dim=embed_dim, tie=tie, seed=seed)
        if library == "nnx":
            for name in [name for name in weights.arrays if name.endswith("b_hn")]:
                weights.arrays[name][:] = 0
        assert_same_bits(weights, from_arrays(WAYS_OUT[library](weights), VOCABULARY))


def test_so_does_the_gru_of_the_paper_and_what_arrays_do_not_show():
    for num_layers in (1, 3):
        weights = random_weights("gru", reset_after=False, num_layers=num_layers)
        assert_same_bits(weights, from_arrays(to_keras(weights), VOCABULARY))
    weights = random_weights("elman", activation="identity")
    assert_same_bits(weights, from_arrays(to_pytorch(weights), VOCABULARY, activation="identity"))


@pytest.mark.parametrize("embed_dim, tie", [(0, False), (E, False), (H, True)])
@pytest.mark.parametrize("library", WAYS_OUT)
def test_so_does_an_mlp(library, embed_dim, tie):
    weights = random_mlp(embed_dim=embed_dim, tie=tie)
    assert_same_bits(weights, from_arrays(WAYS_OUT[library](weights), VOCABULARY, activation="relu"))


@pytest.mark.parametrize(
    "cell, make", [("elman", nnx.SimpleCell), ("gru", nnx.GRUCell), ("lstm", nnx.OptimizedLSTMCell)]
)
def test_a_module_of_nnx_takes_what_is_written_for_it(cell, make):
    class LM(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(V, E, rngs=rngs)
            self.cells = nnx.List([make(E if i == 0 else H, H, rngs=rngs) for i in range(2)])
            self.output = nnx.Linear(H, V, rngs=rngs)

    weights, model = random_weights(cell, num_layers=2), LM(nnx.Rngs(0))
    for name in [name for name in weights.arrays if name.endswith("b_hn")]:
        weights.arrays[name][:] = 0
    names = {"arrays": to_nnx(weights), "model": model, "nnx": nnx, "jnp": jnp}
    exec(from_page("state = nnx.state(", "nnx.update(model, state)"), names)
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(names["state"])}
    assert shapes == {name: array.shape for name, array in names["arrays"].items()}
    x = model.embedding(jnp.asarray(TOKENS))
    for layer in model.cells:
        x = nnx.RNN(layer, time_major=True)(x)
    np.testing.assert_allclose(logits_of(weights), model.output(x), atol=1e-5)


@pytest.mark.parametrize("cell, make", [("elman", "SimpleCell"), ("gru", "GRUCell"), ("lstm", "OptimizedLSTMCell")])
def test_a_module_of_linen_takes_what_is_written_for_it(cell, make):
    from flax import linen as nn
    from flax.traverse_util import unflatten_dict

    class LM(nn.Module):
        def setup(self):
            self.embedding, self.output = nn.Embed(V, E), nn.Dense(V)
            self.cells = [getattr(nn, make)(H) for _ in range(2)]

        @nn.compact
        def __call__(self, tokens):
            x = self.embedding(tokens)
            for cell in self.cells:
                x = nn.RNN(cell, time_major=True)(x)
            return self.output(x)

    weights = random_weights(cell, num_layers=2)
    params = {"params": unflatten_dict(to_linen(weights), sep="/")}
    np.testing.assert_allclose(logits_of(weights), LM().apply(params, TOKENS), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed (its build is huge)")
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_a_module_of_pytorch_takes_what_is_written_for_it(cell):
    import torch

    class LM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.output = torch.nn.Embedding(V, H), torch.nn.Linear(H, V)
            self.output.weight = self.embedding.weight
            self.rnn = getattr(torch.nn, {"elman": "RNN"}.get(cell, cell.upper()))(H, H, 2)

    weights, model = random_weights(cell, num_layers=2, tie=True), LM()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in to_pytorch(weights).items()})
    theirs = model.output(model.rnn(model.embedding(torch.tensor(TOKENS)))[0]).detach().numpy()
    np.testing.assert_allclose(logits_of(weights), theirs, atol=1e-5)
    for embed_dim in (0, 5):
        names = {"weights": random_weights(cell, num_layers=2, embed_dim=embed_dim)}
        exec(from_page("import torch\n", "to_pytorch(weights).items()})"), names)
        theirs = names["model"](torch.tensor(TOKENS))[0].detach().numpy()
        np.testing.assert_allclose(logits_of(names["weights"]), theirs, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")
@pytest.mark.parametrize("cell, reset_after", [("elman", True), ("gru", True), ("gru", False), ("lstm", True)])
def test_a_model_of_keras_takes_what_is_written_for_it(cell, reset_after, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    import keras

    make = getattr(keras.layers, {"elman": "SimpleRNN"}.get(cell, cell.upper()))
    options = {"reset_after": reset_after} if cell == "gru" else {}
    tokens = x = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(V, E, name="embedding")(x)
    for i in range(2):
        x = make(H, return_sequences=True, name=f"rnn_{i}", **options)(x)
    model = keras.Model(tokens, keras.layers.Dense(V, name="output")(x))
    weights = random_weights(cell, num_layers=2, reset_after=reset_after)
    arrays = to_keras(weights)
    assert {variable.path for variable in model.weights} == arrays.keys()
    for variable in model.weights:
        variable.assign(arrays[variable.path])
    np.testing.assert_allclose(logits_of(weights), np.asarray(model(TOKENS.T)).swapaxes(0, 1), atol=1e-5)


# What is recognised.


def pytorch(**changes):
    """The 2-layer LSTM with embedding; changes name arrays with two underscores for each dot, None takes one away."""
    arrays, _ = committed("pytorch_lstm")
    arrays |= {name.replace("__", "."): array for name, array in changes.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def filled(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_absent_biases_are_zero():
    arrays = {name: array for name, array in pytorch().items() if "bias" not in name}
    zeros = {name: np.zeros_like(array) for name, array in pytorch().items() if "bias" in name}
    assert_same_bits(from_arrays(arrays, VOCABULARY), from_arrays(arrays | zeros, VOCABULARY))
    gru, _ = committed("keras_gru")
    without = from_arrays({name: array for name, array in gru.items() if "gru_cell/bias" not in name}, VOCABULARY)
    assert without.model["reset_after"] and not without.arrays["cell.b_hn"].any()


def test_narrow_and_wide_floats_become_float32():
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        arrays = {name: array.astype(dtype) for name, array in pytorch().items()}
        weights = from_arrays(arrays, VOCABULARY)
        assert weights.arrays["w_hq"].dtype == np.float32
        np.testing.assert_array_equal(weights.arrays["embedding"], arrays["tok_emb.weight"].astype(np.float32))


def test_tied_weights_are_known_by_absence_and_by_their_bits():
    arrays, _ = committed("pytorch_relu_tied")
    both = from_arrays(arrays, VOCABULARY)
    assert both.model["tie"] and "w_hq" not in both.arrays
    for name in ("tok_emb.weight", "head.weight"):  # safetensors' save_model keeps one of them, by the alphabet
        assert_same_bits(both, from_arrays({n: a for n, a in arrays.items() if n != name}, VOCABULARY))
    without = {name: array for name, array in arrays.items() if name != "head.bias"}
    assert from_arrays(without, VOCABULARY).model["tie"]
    arrays["head.weight"] = arrays["head.weight"] + 1
    untied = from_arrays(arrays, VOCABULARY)  # the bias is beside the output layer's weights
    assert not untied.model["tie"]
    np.testing.assert_array_equal(untied.arrays["w_hq"], arrays["head.weight"].T)


def test_a_mapping_settles_what_shapes_do_not():
    arrays, _ = committed("pytorch_relu_tied")
    arrays["a.weight"], arrays["b.weight"] = arrays.pop("tok_emb.weight"), arrays.pop("head.weight") + 1
    arrays["bias"] = arrays.pop("head.bias")
    with pytest.raises(UserError, match="^a.weight and b.weight fit as w_hq; .* --map=w_hq=a.weight or --"):
        from_arrays(arrays, VOCABULARY)
    by_output = from_arrays(arrays, VOCABULARY, mapping={"w_hq": "b.weight"})
    assert_same_bits(by_output, from_arrays(arrays, VOCABULARY, mapping={"embedding": "a.weight"}))
    np.testing.assert_array_equal(by_output.arrays["embedding"], arrays["a.weight"])
    other = from_arrays(arrays, VOCABULARY, mapping={"w_hq": "a.weight"})
    np.testing.assert_array_equal(other.arrays["embedding"], arrays["b.weight"])


def test_one_square_matrix_is_the_output_layer_or_tied_as_mapped():
    arrays = {f"rnn.{part}_l0": filled(V, V) for part in ("weight_ih", "weight_hh")} | {"x.weight": filled(V, V)}
    with pytest.raises(
        UserError, match="none .one-hot input. and x.weight fit as embedding; .*--map=embedding=x.weight"
    ):
        from_arrays(arrays, VOCABULARY)
    one_hot = from_arrays(arrays, VOCABULARY, mapping={"w_hq": "x.weight"})
    tied = from_arrays(arrays, VOCABULARY, mapping={"w_hq": "x.weight", "embedding": "x.weight"})
    assert (one_hot.model["embed_dim"], one_hot.model["tie"]) == (0, False)
    assert (tied.model["embed_dim"], tied.model["tie"]) == (V, True)


@pytest.mark.parametrize("library", ["keras", "nnx"])
def test_names_tell_square_matrices_apart(library):
    fields = model_fields(cell="elman", num_hiddens=V, embed_dim=V)
    cell = {"cell.w_xh": filled(V, V), "cell.w_hh": filled(V, V), "cell.b_h": filled(V), "b_q": np.zeros(V, np.float32)}
    both = Weights(fields, cell | {"embedding": filled(V, V), "w_hq": filled(V, V) + 1}, VOCABULARY)
    tied = Weights(fields | {"tie": True}, cell | {"embedding": filled(V, V)}, VOCABULARY)
    one_hot = Weights(fields | {"embed_dim": 0}, cell | {"w_hq": filled(V, V)}, VOCABULARY)
    for weights in (both, tied, one_hot):
        arrays = {
            name: array for name, array in WAYS_OUT[library](weights).items() if not re.match("output.bias", name)
        }
        if weights is tied:
            arrays = {name: array for name, array in arrays.items() if "output" not in name}
        assert_same_bits(weights, from_arrays(arrays, VOCABULARY))


def test_layers_are_ordered_by_numbers_then_by_shape_then_as_mapped():
    arrays = pytorch()
    expected = from_arrays(arrays, VOCABULARY)

    def renamed(*names):
        return {
            re.sub(r"body(.*)_l(\d)", lambda m: f"{names[int(m[2])]}{m[1]}_l0", name): a for name, a in arrays.items()
        }

    for names in (["rnn", "rnn2"], ["lstm_9", "lstm_10"], ["layers.0", "layers.1"], ["zoo", "bar"]):
        assert_same_bits(expected, from_arrays(renamed(*names), VOCABULARY))
    alike = renamed("zoo", "bar") | {"zoo.weight_ih_l0": filled(4 * H, H), "tok_emb.weight": filled(V, H)}
    with pytest.raises(UserError, match="order of the layers.*--map=cell.cells.0=bar.l0 --map=cell.cells.1=zoo.l0"):
        from_arrays(alike, VOCABULARY)
    mapped = from_arrays(alike, VOCABULARY, mapping={"cell.cells.0": "zoo.l0", "cell.cells.1": "bar.l0"})
    np.testing.assert_array_equal(mapped.arrays["cell.cells.0.w_xh"], alike["zoo.weight_ih_l0"].T)
    with pytest.raises(UserError, match="needs each of the layers"):
        from_arrays(alike, VOCABULARY, mapping={"cell.cells.0": "zoo.l0"})


def test_stacked_cells_of_keras_are_found():
    arrays, logits = committed("keras_lstm")
    places = {
        "lstm/lstm_cell/": "rnn/stacked_rnn_cells/lstm_cell/",
        "lstm_1/lstm_cell/": "rnn/stacked_rnn_cells/lstm_cell_1/",
    }
    for old, new in places.items():
        arrays = {name.replace(f"sequential/{old}", new): array for name, array in arrays.items()}
    np.testing.assert_allclose(logits_of(from_arrays(arrays, VOCABULARY)), logits, atol=1e-5)


# Mistakes, each in one line.

MISTAKES = {
    "wrong gate count": (
        pytorch(body__weight_hh_l0=filled(20, H)),
        {},
        r"layer body.l0 has \[6, 32\], \[8, 20\], \[32\], \[32\]; a cell has",
    ),
    "two gates": (
        {"r.weight_ih_l0": filled(16, E), "r.weight_hh_l0": filled(16, H), "e.weight": filled(V, E)},
        {},
        r"\[6, 16\], \[8, 16\]; .* G = 1 \(RNN\), 3 \(GRU\) or 4",
    ),
    "a bias of another size": (pytorch(body__bias_hh_l0=filled(31)), {}, r"\[32\], \[31\]; a cell has"),
    "layers of other sizes": (
        pytorch(
            body__weight_ih_l1=filled(12, H),
            body__weight_hh_l1=filled(12, 3),
            body__bias_ih_l1=None,
            body__bias_hh_l1=None,
        ),
        {},
        "body.l0 is lstm of 8 units, body.l1 is lstm of 3 units",
    ),
    "layers of other kinds": (
        pytorch(
            body__weight_ih_l1=filled(24, H),
            body__weight_hh_l1=filled(24, H),
            body__bias_ih_l1=None,
            body__bias_hh_l1=None,
        ),
        {},
        "body.l0 is lstm of 8 units, body.l1 is gru of 8 units",
    ),
    "a layer that reads something else": (
        pytorch(body__weight_ih_l1=filled(32, 9)),
        {},
        "layer body.l1 has 9 inputs, but body.l0, the layer below, is lstm of 8 units",
    ),
    "an embedding of another size": (
        pytorch(tok_emb__weight=filled(V, 5)),
        {},
        r"a first layer of 6 inputs .* tok_emb.weight \[12, 5\]",
    ),
    "no output layer": (
        pytorch(head__weight=None),
        {},
        r"nothing fits .* last one of 8 units with 12 tokens; left are",
    ),
    "the other direction": (
        {f"{name}{end}": a for name, a in pytorch().items() if "body" in name for end in ("", "_reverse")}
        | {"e.weight": filled(V, E), "head.weight": filled(V, 2 * H), "body.weight_ih_l1": filled(4 * H, 2 * H)},
        {},
        "no model of ours has body.bias_hh_l0_reverse, body.bias_hh_l1_reverse",
    ),
    "the other direction in Keras": (
        {
            re.sub("(lstm(_1)?)/", lambda m: f"two/{'backward' if m[2] else 'forward'}_lstm/", name, count=1): array
            for name, array in committed("keras_lstm")[0].items()
        },
        {},
        "no model of ours has sequential/two/backward_lstm/lstm_cell/bias",
    ),
    "a projection": (
        pytorch(body__weight_hr_l0=filled(5, H), body__weight_hh_l0=filled(32, 5)),
        {},
        "no model of ours has body.weight_hr_l0: theirs computes something else",
    ),
    "layer normalisation": (
        pytorch(norm__weight=filled(H), norm__bias=filled(H)),
        {},
        "no model of ours has norm.bias, norm.weight",
    ),
    "a layer between": (
        pytorch(fc__weight=filled(H, H), fc__bias=filled(H)),
        {},
        "no model of ours has fc.bias, fc.weight",
    ),
    "a convolution": (pytorch(conv__weight=filled(3, 3, 3)), {}, "no model of ours has conv.weight"),
    "an MGU of Linen": (
        {f"p/m/{s}{g}/kernel": filled(H, H) for s in "ih" for g in "fn"} | {"p/e/embedding": filled(V, H)},
        {},
        "no model of ours has .*p/m/hn/kernel",
    ),
    "NaN": (pytorch(head__bias=np.full(V, np.nan, np.float32)), {}, "head.bias has numbers that are NaN .* --force"),
    "too large for float32": (
        pytorch(head__bias=np.full(V, 1e300)),
        {},
        "head.bias has numbers .* infinite in float32",
    ),
    "a number": (pytorch(temperature=np.float32(2)), {}, "no model of ours has temperature"),
    "a cell without weights": (pytorch(body__weight_hh_l0=np.float32(2)), {}, "no model of ours has body.weight_hh_l0"),
    "a vector as weights": (
        pytorch(body__weight_hh_l0=filled(32)),
        {},
        r"layer body.l0 has \[6, 32\], \[32\]",
    ),
    "an empty cell": (pytorch(body__weight_hh_l0=filled(0, 0)), {}, r"layer body.l0 has \[6, 32\], \[0, 0\]"),
    "gates of different inputs": (
        committed("linen_gru")[0] | {"params/cells_0/in/kernel": filled(5, H)},
        {},
        "layer params/cells_0: all the input array dimensions",
    ),
    "integers": (pytorch(head__bias=np.ones(V, np.int8)), {}, "head.bias is int8"),
    "an unknown name": (pytorch(), {"mapping": {"w_hq": "haed.weight"}}, "'haed.weight'; did you mean 'head.weight'"),
    "an unknown name of ours": (pytorch(), {"mapping": {"w_hk": "head.weight"}}, "'w_hk'; did you mean 'w_hq'"),
    "a mapping that does not fit": (
        pytorch(),
        {"mapping": {"w_hq": "tok_emb.weight"}},
        "nothing fits .* --map=w_hq=tok_emb.weight",
    ),
    "an unknown activation": (pytorch(), {"activation": "gelu"}, "unknown activation 'gelu'"),
    "an activation of an LSTM": (pytorch(), {"activation": "relu"}, "for Elman cells; this model's layers are lstm"),
    "no hidden layer": ({"e.weight": filled(V, E), "o.weight": filled(V, V)}, {}, "nothing fits an MLP"),
    "a bigram model": ({"e.weight": filled(V, V)}, {}, "nothing fits an MLP"),
    "more than another vocabulary": (
        pytorch(tok_emb__weight=None, head__weight=filled(E, H)),
        {},
        "nothing fits .* 6 inputs",
    ),
    "nothing": ({}, {}, "nothing fits an MLP"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistake):
    arrays, options, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as error:
        from_arrays(arrays, VOCABULARY, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("row", ROWS)
def test_so_is_a_vocabulary_of_another_length(row):
    for arrays, _ in ROWS[row]():
        for tokens in (["<unk>", *"abcdefghij"], ["<unk>", *"abcdefghijkl"], "abcdefghijk"):
            vocabulary = read_vocabulary([*tokens])
            with pytest.raises(UserError, match=f"the vocabulary has {len(tokens)} tokens, .* has {V}") as error:
                from_arrays(arrays, vocabulary)
            assert "\n" not in str(error.value)


def test_force_takes_nan():
    arrays = pytorch(head__bias=np.full(V, np.nan, np.float32))
    assert np.isnan(from_arrays(arrays, VOCABULARY, force=True).arrays["b_q"]).all()


@pytest.mark.parametrize("library", WAYS_OUT)
def test_models_without_a_counterpart_are_refused(library):
    weights = random_weights("gru", reset_after=False)
    for fields, lacks in (({"layer_norm": True}, "layer normalisation"), ({"cell": "mgu"}, "no cell 'mgu'")):
        with pytest.raises(UserError, match=lacks):
            WAYS_OUT[library](Weights(weights.model | fields, weights.arrays, VOCABULARY))
    if library != "keras":
        with pytest.raises(UserError, match="resets before the product"):
            WAYS_OUT[library](weights)


def test_nnx_has_no_bias_inside_the_reset():
    with pytest.raises(UserError, match="b_hn.*Linen has one"):
        to_nnx(random_weights("gru"))
