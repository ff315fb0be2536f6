"""Flax's cells, with our order of gates. Linen has a layer a gate, nnx the gates side by side or as Linen."""

import re

import numpy as np

from rnn_lm.convert.layers import Arrays, Layer, Library, contiguous, written
from rnn_lm.convert.weights import Weights
from rnn_lm.errors import UserError

GATES = {"elman": ("",), "gru": tuple("rzn"), "lstm": tuple("ifgo")}  # what the layers of each gate are called
BIASED = {"elman": "i", "gru": "i", "lstm": "h"}  # which of the two products has the biases


def _split(name: str) -> tuple[str, str] | None:
    """`lstm/if/kernel` (nnx: `lstm.if_.kernel`) → `lstm`, `if.kernel`; `rnn.dense_i.kernel` → `rnn`, `i.kernel`."""
    found = re.fullmatch(r"(?:(.*)[./])?(?:dense_)?([ih][a-z]?)_?[./](kernel|bias)", name)
    return found and (found[1] or "", f"{found[2]}.{found[3]}")


def _read(parts: Arrays) -> Layer | None:
    for gates in GATES.values():
        kernels = {f"{side}{gate}.kernel" for side in "ih" for gate in gates}
        if kernels == {part for part in parts if part.endswith("kernel")}:
            break
    else:
        return None
    zeros = np.zeros(parts[f"h{gates[0]}.kernel"].shape[-1], np.float32)  # the bias of a gate without one

    def together(side: str) -> np.ndarray | None:
        found = [parts.get(f"{side[0]}{gate}.{side[2:]}") for gate in gates]
        if all(array is None for array in found):
            return None
        return np.concatenate([zeros if array is None else array for array in found], axis=-1)

    return Layer(*map(together, ("i.kernel", "h.kernel", "i.bias", "h.bias")))  # type: ignore[arg-type]


NNX = Library("Flax nnx", ".", "embedding", "kernel", False, _split, _read)
LINEN = NNX._replace(name="Flax Linen", separator="/")


def to_nnx(weights: Weights) -> dict[str, np.ndarray]:
    """Arrays by the dotted paths of a module with `embedding` (`nnx.Embed`), `cells` (an `nnx.List`) and `output`.

    The cells are `nnx.SimpleCell`, `nnx.GRUCell` or `nnx.OptimizedLSTMCell`; `output` and, of an MLP, `hidden` in place
    of `cells` are `nnx.Linear`. A model on one-hot vectors has no `embedding`.

    Raises:
      UserError: nnx has no such cell. Its GRU has no b_hn: that must be zero.
    """
    arrays, layers = written(NNX, weights)
    for i, (w_xh, w_hh, b_ih, b_hh) in enumerate(layers):
        if b_hh.any():
            raise UserError("Flax nnx has no GRU with a bias b_hn, and this model's is not zero; Flax Linen has one")
        parts = {"i.kernel": w_xh, "h.kernel": w_hh, f"{BIASED[weights.model['cell']]}.bias": b_ih}
        arrays |= {f"cells.{i}.dense_{part}": array for part, array in parts.items()}
    return contiguous(arrays)


def to_linen(weights: Weights) -> dict[str, np.ndarray]:
    """Parameters by the paths, with slashes, of a module with `embedding` (`nn.Embed`), a list `cells`, and `output`.

    The cells are `nn.SimpleCell`, `nn.GRUCell`, and `nn.LSTMCell` or `nn.OptimizedLSTMCell`; Linen's paths have them as
    `cells_0`, `cells_1` and so on. `output` and, of an MLP, `hidden` in place of `cells` are `nn.Dense`. A model on
    one-hot vectors has no `embedding`.

    Raises:
      UserError: Linen has no such cell.
    """
    arrays, layers = written(LINEN, weights)
    for i, (w_xh, w_hh, b_ih, b_hh) in enumerate(layers):
        cell = weights.model["cell"]
        gates = GATES[cell]
        for path, array in (("i{}/kernel", w_xh), ("h{}/kernel", w_hh), (BIASED[cell] + "{}/bias", b_ih)):
            for gate, part in zip(gates, np.split(array, len(gates), axis=-1), strict=True):
                arrays[f"cells_{i}/{path.format(gate)}"] = part
        if cell == "gru":
            arrays[f"cells_{i}/hn/bias"] = np.split(b_hh, 3)[2]
    return contiguous(arrays)
