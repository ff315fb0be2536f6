"""Models of plain weights, for the tests of this folder."""

import jax.numpy as jnp
import numpy as np

from rnn_lm.config import complete_config
from rnn_lm.convert.tokens import read_vocabulary
from rnn_lm.convert.weights import Weights, model_fields
from rnn_lm.runs.load import model_with
from tests.references.make_exchange import TOKENS, E, H, V

VOCABULARY = read_vocabulary(["<unk>", *"abcdefghijk"])


def model_of(weights):
    """Our model with these arrays; fails if any is missing, too many or of another shape."""
    return model_with(complete_config({"model": weights.model}), weights.arrays, len(weights.vocabulary))


def logits_of(weights, tokens=TOKENS):
    model = model_of(weights)
    return np.asarray(model(model.initialize_carry(tokens.shape[1]), jnp.asarray(tokens))[1])


def random_weights(cell, *, num_layers=1, embed_dim=E, tie=False, reset_after=True, activation="tanh", seed=0):
    rng = np.random.default_rng(seed)
    embed_dim = H if tie else embed_dim
    gates = {"elman": 1, "gru": 3, "lstm": 4}[cell]
    shapes = {"embedding": (V, embed_dim), "w_hq": (H, V), "b_q": (V,)}
    for i in range(num_layers):
        start = "cell." if num_layers == 1 else f"cell.cells.{i}."
        inputs = H if i else embed_dim or V
        shapes |= {f"{start}w_xh": (inputs, gates * H), f"{start}w_hh": (H, gates * H), f"{start}b_h": (gates * H,)}
        if cell == "gru" and reset_after:
            shapes[f"{start}b_hn"] = (H,)
    shapes = {name: shape for name, shape in shapes.items() if name != ("w_hq" if tie else None) and 0 not in shape}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for array in arrays.values():
        array[..., 0] = -0.0  # whose sign is a bit, too
    fields = {"cell": cell, "num_hiddens": H, "num_layers": num_layers, "embed_dim": embed_dim, "tie": tie}
    return Weights(model_fields(**fields, reset_after=reset_after, activation=activation), arrays, VOCABULARY)


def random_mlp(*, embed_dim=E, tie=False, context=3):
    embed_dim = H if tie else embed_dim
    shapes = {"embedding": (V, embed_dim), "w_xh": (context * (embed_dim or V), H), "b_h": (H,), "b_q": (V,)}
    shapes |= {} if tie else {"w_hq": (H, V)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if 0 not in shape}
    fields = {"kind": "mlp", "context": context, "num_hiddens": H, "embed_dim": embed_dim, "tie": tie}
    return Weights(model_fields(**fields, activation="relu"), arrays, VOCABULARY)
