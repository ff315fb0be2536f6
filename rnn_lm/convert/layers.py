"""What the libraries have in common: a recurrent layer is two matrices and up to two biases, under other names."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rnn_lm.convert.weights import Weights
from rnn_lm.errors import UserError

CELLS = {1: "elman", 3: "gru", 4: "lstm"}  # by G, the number of gates
Arrays = Mapping[str, np.ndarray]


class Layer(NamedTuple):
    """A recurrent layer of H units. Its G gates, in our order, are made of x w_xh + b_ih and h w_hh + b_hh."""

    w_xh: np.ndarray  # [D, G·H]
    w_hh: np.ndarray  # [H, G·H]
    b_ih: np.ndarray | None = None  # [G·H], or there is none
    b_hh: np.ndarray | None = None  # [G·H]
    reset_after: bool = True  # of a GRU

    @property
    def cell(self) -> str:
        return CELLS[self.w_hh.shape[1] // len(self.w_hh)]

    @property
    def kind(self) -> str:
        return f"{self.cell}{'' if self.reset_after else ' (reset_after=False)'} of {len(self.w_hh)} units"

    def check(self, name: str) -> None:
        """Raises UserError if the shapes are not those of a cell."""
        shapes = [array.shape for array in self[:4] if array is not None]
        width, axes = self.w_hh.shape[-1], [2, 2, 1, 1][: len(shapes)]
        alike = [len(shape) for shape in shapes] == axes and {shape[-1] for shape in shapes} == {width}
        if not (alike and width and width in [gates * len(self.w_hh) for gates in CELLS]):
            needed = "[D, G·H], [H, G·H] and biases [G·H] with G = 1 (RNN), 3 (GRU) or 4 (LSTM)"
            raise UserError(f"layer {name} has {', '.join(str([*shape]) for shape in shapes)}; a cell has {needed}")

    def ours(self) -> dict[str, np.ndarray]:
        """Our arrays. The two biases are summed, except in the n of a GRU that resets after the product."""
        zeros, two = np.zeros(self.w_hh.shape[1], np.float32), 2 * len(self.w_hh)
        arrays, b_ih, b_hh = {"w_xh": self.w_xh, "w_hh": self.w_hh}, self.b_ih, self.b_hh
        if self.cell == "gru" and self.reset_after:
            arrays["b_hn"] = zeros[two:] if b_hh is None else b_hh[two:]
            b_hh = None if b_hh is None else np.concatenate([b_hh[:two], zeros[two:]])
        if b_ih is not None and b_hh is not None:
            return arrays | {"b_h": np.where(b_hh == 0, b_ih, b_ih + b_hh)}  # so that −0 remains −0
        return arrays | {"b_h": next((bias for bias in (b_ih, b_hh) if bias is not None), zeros)}


class Library(NamedTuple):
    """How a library names arrays, and what its recurrent layers are."""

    name: str
    separator: str  # of a name's parts
    table: str  # last part of the name of an embedding
    linear: str  # of the weights of a linear layer
    transposed: bool  # a linear layer's weights are [out, in]
    split: Callable[[str], tuple[str, str] | None]  # a name as in a recurrent layer → the layer's name, and the part
    read: Callable[[Arrays], Layer | None]  # part → array; None: they are no layer


def written(
    library: Library, weights: Weights, *, resets_before: bool = False
) -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, ...]]]:
    """The arrays outside recurrent layers by their names there; and w_xh, w_hh, b_ih, b_hh of each layer.

    The modules are `embedding`, `hidden` (of an MLP) and `output`. What is tied is written twice, as it is by a module
    that has one array under two names. b_ih is all of b_h; b_hh is zero, but for b_hn.

    Raises:
      UserError: the library has no such cell. `resets_before` says that it has GRUs that reset before the product.
    """
    model, arrays, lacks = weights.model, dict(weights.arrays), ""
    if model["kind"] == "rnn" and model["cell"] not in CELLS.values():
        lacks = f"cell {model['cell']!r}"
    elif model["layer_norm"]:
        lacks = "cell with layer normalisation"
    elif not model["reset_after"] and not resets_before:
        lacks = "GRU that resets before the product (reset_after=False)"
    if lacks:
        raise UserError(f"{library.name} has no {lacks}, so this model cannot be written for it")
    if model["tie"]:
        arrays["w_hq"] = arrays["embedding"].T
    if library.transposed:
        arrays |= {name: arrays[name].T for name in ("w_xh", "w_hq") if name in arrays}
    places = {"embedding": ("embedding", library.table), "w_xh": ("hidden", library.linear), "b_h": ("hidden", "bias"),
              "w_hq": ("output", library.linear), "b_q": ("output", "bias")}  # fmt: skip
    layers: list[tuple[np.ndarray, ...]] = []
    for layer in weights.layers:
        b_hn = layer.get("b_hn", np.zeros(0, np.float32))
        b_hh = np.concatenate([np.zeros(len(layer["b_h"]) - len(b_hn), np.float32), b_hn])
        layers.append((layer["w_xh"], layer["w_hh"], layer["b_h"], b_hh))
    return {library.separator.join(places[name]): arrays[name] for name in places.keys() & arrays.keys()}, layers


def contiguous(arrays: Arrays) -> dict[str, np.ndarray]:
    """The same arrays, sorted by name, none a view of another: some writers of files ignore strides."""
    return {name: np.array(arrays[name], order="C") for name in sorted(arrays)}
