"""Arrays of a language model written in PyTorch, Keras or Flax → `Weights`, whatever its author called the modules."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from rnn_lm.convert.flax import NNX
from rnn_lm.convert.keras import KERAS
from rnn_lm.convert.layers import Arrays, Layer, Library, contiguous
from rnn_lm.convert.pytorch import PYTORCH
from rnn_lm.convert.roles import ROLES, Rest, Roles, not_ours
from rnn_lm.convert.tokens import TheirVocabulary, in_our_order
from rnn_lm.convert.weights import Weights, layer_names, model_fields
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError, unknown_name
from rnn_lm.fields import FIELDS


def from_arrays(
    arrays: Arrays,
    vocabulary: Vocabulary,
    *,
    mapping: Mapping[str, str] = {},
    activation: str = "tanh",
    force: bool = False,
) -> Weights:
    """The model of ours that computes the logits of the model whose arrays these are.

    Recurrent layers are found by the names that the libraries give (docs/exchange.md); the embedding, the output layer
    and the hidden layer of an MLP are what is left and fits by shape. All arrays become float32, also those in float16,
    bfloat16 and float64.

    Args:
      arrays: a PyTorch state dict, Keras variables by `variable.path`, or Flax parameters by path.
      vocabulary: from `read_vocabulary`, or any whose ids are the rows of the arrays.
      mapping: our name → theirs, where shapes do not tell: of w_hq, embedding, b_q, an MLP's w_xh and b_h, and
        cell.cells.0, cell.cells.1, … for recurrent layers from the bottom up.
      activation: of Elman cells and MLPs; arrays do not show it.
      force: takes arrays with NaN and infinities.

    Raises:
      UserError: no model of ours has such arrays, or several have. The message is one line.
    """
    arrays = {name: _as_float32(name, array, force) for name, array in arrays.items()}
    if other := [name for name in arrays if _has_no_place(name, arrays)]:
        raise not_ours(other)
    library, layers, rest = _recognized(arrays)
    known = [*ROLES[:3], *(f"cell.cells.{i}" for i in range(len(layers)))] if layers else ROLES
    for our, their in mapping.items():
        if our not in known:
            raise unknown_name("name in --map", our, known)
        if their not in (theirs := [*(arrays if our in ROLES else layers)]):
            raise unknown_name(f"name in --map={our}=", their, theirs)
    given = {our: their for our, their in mapping.items() if our in ROLES}
    rows = vocabulary.rows if isinstance(vocabulary, TheirVocabulary) else np.arange(len(vocabulary))
    found = Rest.of(library, rest, _in_order(layers, mapping))
    roles = found.roles(int(rows.max()) + 1, given)
    if activation not in (names := FIELDS["model.activation"].names):
        raise unknown_name("activation", activation, names)
    if activation != "tanh" and found.layers and found.layers[0].cell != "elman":
        raise UserError(f"--activation={activation} is for Elman cells; this model's layers are {found.layers[0].kind}")
    return _weights(found, roles, vocabulary, rows, activation)


def _as_float32(name: str, array: np.ndarray, force: bool) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise UserError(f"{name} is {array.dtype}; weights are floating-point numbers")
    with np.errstate(over="ignore"):  # the next line tells
        array = array.astype(np.float32)
    if not force and not np.isfinite(array).all():
        raise UserError(f"{name} has numbers that are NaN or infinite in float32; --force takes them")
    return array


def _has_no_place(name: str, arrays: Arrays) -> bool:
    """Whether it has neither one nor two axes, or is of a layer that reads backward, or of an LSTM's projection."""
    mirrored = "backward_" in name and name.replace("backward_", "forward_") in arrays  # of Keras and nnx
    return arrays[name].ndim not in (1, 2) or mirrored or bool(re.search(r"_reverse$|weight_hr_l\d+$", name))


def _recognized(arrays: Arrays) -> tuple[Library, dict[str, Layer], Arrays]:
    """Whose names these are, the recurrent layers by name, and the arrays outside of them."""
    for library in (PYTORCH, KERAS, NNX):  # NNX reads Linen's names, too
        groups: dict[str, dict[str, str]] = {}
        for name in arrays:
            if split := library.split(name):
                groups.setdefault(split[0], {})[split[1]] = name
        layers, rest = {}, dict(arrays)
        for name, parts in groups.items():
            try:
                layer = library.read({part: arrays[full] for part, full in parts.items()})
            except ValueError as error:  # NumPy's, of gates that cannot stand side by side
                raise UserError(f"layer {name}: {error}") from error
            if layer:
                layer.check(name)
                layers[name] = layer
                rest = {full: array for full, array in rest.items() if full not in parts.values()}
        if layers:
            return library, layers, rest
    return (NNX if any(name.endswith("kernel") for name in arrays) else PYTORCH), {}, arrays


def _in_order(layers: Mapping[str, Layer], mapping: Mapping[str, str]) -> list[Layer]:
    """The layers from the bottom up: as mapped, by the numbers in their names, or first the one with other inputs."""

    def numbers(name: str) -> list[tuple[str, int]]:
        """`lstm_10/cell` → [("lstm", 10), ("cell", −1)]."""
        parts = [re.fullmatch(r"(.*?)_?(\d*)", part) for part in re.split("[./]", name)]
        return [(part[1], int(part[2] or -1)) for part in parts if part]

    names, ours = sorted(layers, key=numbers), [f"cell.cells.{i}" for i in range(len(layers))]
    if mapping.keys() & ours:
        names = [mapping.get(our, "") for our in ours]
        if {*names} != {*layers}:
            raise UserError(f"--map needs each of the layers {', '.join(layers)} once, as {', '.join(ours)}")
    elif len({tuple(stem for stem, _ in numbers(name)) for name in names}) > 1:
        first = [name for name in names if len(layers[name].w_xh) != len(layers[name].w_hh)]
        if len(names) != 2 or len(first) != 1:
            flags = " ".join(f"--map={our}={their}" for our, their in zip(ours, names, strict=True))
            raise UserError(f"nothing tells the order of the layers; give it, such as {flags}")
        names.sort(key=lambda name: name not in first)
    for below, name in pairwise(names):
        one, two = layers[below], layers[name]
        if one.kind != two.kind:
            raise UserError(f"all layers must be alike; {below} is {one.kind}, {name} is {two.kind}")
        if len(two.w_xh) != len(one.w_hh):
            raise UserError(f"layer {name} has {len(two.w_xh)} inputs, but {below}, the layer below, is {one.kind}")
    return [layers[name] for name in names]


def _weights(rest: Rest, roles: Roles, vocabulary: Vocabulary, rows: np.ndarray, activation: str) -> Weights:
    """Our fields, arrays and vocabulary."""
    size, first = int(rows.max()) + 1, "w_xh"  # their V, and what reads the input
    fields: dict[str, Any] = {"activation": activation, "tie": rest.is_tied(roles), "embed_dim": 0}
    arrays = {our: rest.linears[name] for our in ("w_hq", "w_xh") if (name := roles.get(our, "")) in rest.linears}
    arrays |= {our: rest.vectors[name] for our in ("b_q", "b_h") if (name := roles.get(our, ""))}
    if roles["embedding"]:
        arrays["embedding"] = rest.tables[roles["embedding"]]
        fields["embed_dim"] = arrays["embedding"].shape[1]
    if rest.layers:
        top, names = rest.layers[-1], layer_names({"num_layers": len(rest.layers)})
        fields |= {"cell": top.cell, "reset_after": top.reset_after, "num_hiddens": len(top.w_hh)}
        fields["num_layers"], first = len(names), f"{names[0]}w_xh"
        for start, layer in zip(names, rest.layers, strict=True):
            arrays |= {f"{start}{name}": array for name, array in layer.ours().items()}
    else:
        inputs, units = arrays["w_xh"].shape
        fields |= {"kind": "mlp", "num_hiddens": units, "context": inputs // (fields["embed_dim"] or size)}
        arrays.setdefault("b_h", np.zeros(units, np.float32))
    arrays.setdefault("b_q", np.zeros(size, np.float32))
    if fields["tie"]:
        arrays.pop("w_hq", None)
    arrays = in_our_order(arrays, rows, "" if fields["embed_dim"] else first)
    ours = Vocabulary(vocabulary.tokens[1:], kind=vocabulary.kind, normalize=vocabulary.normalize)
    return Weights(model_fields(**fields), contiguous(arrays), ours)
