"""Keras 3's `SimpleRNN`, `GRU` and `LSTM`, by `variable.path`. The GRU's gates are z, r, h."""

import numpy as np

from rnn_lm.convert.layers import Arrays, Layer, Library, contiguous, written
from rnn_lm.convert.weights import Weights

CELLS = {"elman": "simple_rnn_cell", "gru": "gru_cell", "lstm": "lstm_cell"}


def _split(name: str) -> tuple[str, str]:
    """`lstm/lstm_cell/kernel` → `lstm/lstm_cell`, `kernel`."""
    layer, _, part = name.rpartition("/")
    return layer, part


def _read(parts: Arrays) -> Layer | None:
    """A GRU that resets after the product has a bias [2, G·H], one that does so before has [G·H].

    Without a bias they look alike; it is then taken to reset after it, which is Keras's default.
    """
    w_xh, w_hh, bias = map(parts.get, ("kernel", "recurrent_kernel", "bias"))
    if w_xh is None or w_hh is None:
        return None
    units = len(w_hh)
    is_gru = w_hh.shape[-1] == 3 * units
    b_ih, b_hh = bias if bias is not None and bias.ndim == len(bias) == 2 else (bias, None)
    arrays = (array if array is None or not is_gru else _swapped(array, units) for array in (w_xh, w_hh, b_ih, b_hh))
    return Layer(*arrays, reset_after=not is_gru or bias is None or b_hh is not None)  # type: ignore[arg-type, misc]


def _swapped(array: np.ndarray, units: int) -> np.ndarray:
    """The gates z, r, h in the order r, z, h, and back."""
    return np.concatenate([array[..., units : 2 * units], array[..., :units], array[..., 2 * units :]], axis=-1)


KERAS = Library("Keras", "/", "embeddings", "kernel", False, _split, _read)


def to_keras(weights: Weights) -> dict[str, np.ndarray]:
    """Arrays by the `variable.path` of a functional model with layers `embedding`, `rnn_0`, `rnn_1`, … and `output`.

    An MLP has `hidden` in place of `rnn_0`. A model on one-hot vectors has no `embedding`.

    Raises:
      UserError: Keras has no such cell.
    """
    arrays, layers = written(KERAS, weights, resets_before=True)
    cell, after = weights.model["cell"], weights.model["reset_after"]
    for i, layer in enumerate(layers):
        w_xh, w_hh, b_ih, b_hh = (_swapped(a, len(layer[1])) for a in layer) if cell == "gru" else layer
        bias = np.stack([b_ih, b_hh]) if cell == "gru" and after else b_ih
        for part, array in (("kernel", w_xh), ("recurrent_kernel", w_hh), ("bias", bias)):
            arrays[f"rnn_{i}/{CELLS[cell]}/{part}"] = array
    return contiguous(arrays)
