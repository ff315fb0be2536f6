"""A model as one HTML file that generates text in the browser: opened by a double click, without a network."""

import base64
import html
import json
import re
from pathlib import Path

import numpy as np

from rnn_lm.convert.weights import Weights
from rnn_lm.data.vocabulary import KINDS
from rnn_lm.errors import UserError
from rnn_lm.files import Json

TEMPLATE = Path(__file__).with_name("page.html")
CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}  # those that the template's JavaScript computes


def to_page(weights: Weights, *, title: str, about: str = "") -> str:
    """The page: 25 kB, and 5.3 bytes for each parameter.

    It computes in float32. A link to it may say what it generates: `index.html#prompt=To&length=200&temperature=0`.

    Args:
      weights: of the model.
      title: the heading, plain text.
      about: a line below the title, plain text.

    Raises:
      UserError: the cell is the user's own.
    """
    model = weights.model
    if model["kind"] == "rnn" and model["cell"] not in CELLS:
        raise UserError(f"the page cannot compute the cell {model['cell']!r}; it knows {', '.join(CELLS)}")
    arrays = {name: np.asarray(array, "<f4") for name, array in weights.arrays.items()}
    index, offset = [], 0
    for name, array in arrays.items():
        index.append({"name": name, "shape": array.shape, "offset": offset})
        offset += array.size
    vocabulary = weights.vocabulary.to_json() | {"start": weights.vocabulary.start}
    parts = {
        "title": html.escape(title),
        "about": html.escape(about),
        "model": html.escape(description(weights)),
        "data": script_json({"model": model, "index": index, "vocabulary": vocabulary}),
        "weights": base64.b64encode(b"".join(array.tobytes() for array in arrays.values())).decode(),
    }
    # All at once, so that nothing is replaced inside a part.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))


def description(weights: Weights) -> str:
    """`GRU, 2 layers of 128 hidden units; 80 characters; 189,905 parameters`."""
    model, vocabulary = weights.model, weights.vocabulary
    kind = CELLS[model["cell"]] if model["kind"] == "rnn" else f"MLP over {model['context']} tokens"
    layers = f"{model['num_layers']} layers of " if model["kind"] == "rnn" and model["num_layers"] > 1 else ""
    tokens = KINDS[vocabulary.kind]
    size = sum(array.size for array in weights.arrays.values())
    return f"{kind}, {layers}{model['num_hiddens']} hidden units; {len(vocabulary) - 1:,} {tokens}; {size:,} parameters"


def script_json(value: Json) -> str:
    """JSON that stays inside its script element: no `<`, as in `</script>` and `<!--`, and ASCII only."""
    return json.dumps(value).replace("<", "\\u003c")
