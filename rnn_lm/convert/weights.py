"""A language model as plain data, NumPy arrays by name: what every format is written from and read to. Needs no jax."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, SHAPE
from rnn_lm.files import Json


@dataclass(frozen=True)
class Weights:
    """What a model computes, with which arrays, on which tokens.

    `model` has the fields `SHAPE` of a config's `model`, and `dtype`. `arrays` has the names that checkpoints have:
    `embedding [V, E]`, `w_hq [H, V]` (absent where tied), `b_q [V]` and, of a single layer,
    `cell.{w_xh, w_hh, b_h, b_hn, scale_x, scale_h, scale_c, b_c}`, of several `cell.cells.N.w_xh` and so on, of an MLP
    `w_xh` and `b_h`.
    """

    model: Json
    arrays: dict[str, np.ndarray]
    vocabulary: Vocabulary

    @property
    def layers(self) -> list[dict[str, np.ndarray]]:
        """The arrays of each recurrent layer, the bottom one first: `{"w_xh": …, "w_hh": …, …}`."""
        layers: dict[int, dict[str, np.ndarray]] = {}
        for name, array in self.arrays.items():
            if found := re.fullmatch(r"cell\.(?:cells\.(\d+)\.)?(.+)", name):
                layers.setdefault(int(found[1] or 0), {})[found[2]] = array
        return [layers[number] for number in sorted(layers)]


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if there are NaN or infinities."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"the model predicts nothing: {name} has numbers that are not finite")


def layer_names(model: Json) -> list[str]:
    """What each recurrent layer's names start with: `["cell."]` or `["cell.cells.0.", "cell.cells.1.", …]`."""
    number = model["num_layers"]
    return ["cell."] if number == 1 else [f"cell.cells.{i}." for i in range(number)]


def model_fields(**given: object) -> Json:
    """The fields `SHAPE` and `dtype` with their defaults, but for those given."""
    defaults = {name: FIELDS[f"model.{name}"].default for name in (*SHAPE, "dtype")}
    assert not given.keys() - defaults.keys()
    return defaults | given
