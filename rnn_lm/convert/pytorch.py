"""PyTorch's `nn.RNN`, `nn.GRU`, `nn.LSTM` and their cells: our order of gates, transposed weights, two biases."""

import re

import numpy as np

from rnn_lm.convert.layers import Arrays, Layer, Library, contiguous, written
from rnn_lm.convert.weights import Weights

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _split(name: str) -> tuple[str, str] | None:
    """`rnn.weight_ih_l0` → `rnn.l0`, `weight_ih`; of an `nn.LSTMCell`, `cell.weight_ih` → `cell`, `weight_ih`."""
    found = re.fullmatch(rf"(?:(.*)\.)?({'|'.join(PARTS)})(?:_(l\d+))?", name)
    return found and (".".join(filter(None, (found[1], found[3]))), found[2])


def _read(parts: Arrays) -> Layer | None:
    w_xh, w_hh, b_ih, b_hh = map(parts.get, PARTS)
    return None if w_xh is None or w_hh is None else Layer(w_xh.T, w_hh.T, b_ih, b_hh)


PYTORCH = Library("PyTorch", ".", "weight", "weight", True, _split, _read)


def to_pytorch(weights: Weights) -> dict[str, np.ndarray]:
    """The state dict of a module with `embedding` (`nn.Embedding`), `rnn` (`nn.RNN`, `nn.GRU`, `nn.LSTM`) and `output`.

    `output` and, of an MLP, `hidden` in place of `rnn` are `nn.Linear`. A model on one-hot vectors has no `embedding`.
    `bias_hh_l0` is zero, but for the b_hn of a GRU.

    Raises:
      UserError: PyTorch has no such cell.
    """
    arrays, layers = written(PYTORCH, weights)
    for i, layer in enumerate(layers):
        arrays |= {f"rnn.{part}_l{i}": array.T for part, array in zip(PARTS, layer, strict=True)}
    return contiguous(arrays)
