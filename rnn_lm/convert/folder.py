"""The folder that `export` makes: weights, vocabulary, a model card, an ONNX model, and a page that generates text."""

from collections.abc import Callable
from pathlib import Path

import rnn_lm
from rnn_lm.convert.card import headline, to_card
from rnn_lm.convert.safetensors import read_arrays, write_arrays
from rnn_lm.convert.weights import Weights
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import Unreadable, UserError
from rnn_lm.files import EXPORTED, VOCABULARY, Json, new_folder, path_of, read_json, write_bytes, write_json, write_text

WEIGHTS, CARD, ONNX, PAGE = "model.safetensors", "README.md", "model.onnx", "index.html"
FILES = {
    WEIGHTS: "the weights",
    EXPORTED: "the cell and the sizes",
    VOCABULARY: "the tokens, in the order of their ids",
    ONNX: "the model for ONNX Runtime and others: one step or whole sequences, with the state in and out",
    PAGE: "a page that generates text: open it in a browser",
}


def read_folder(folder: str | Path) -> Weights:
    """The weights in an exported folder.

    Raises:
      UserError: a file is missing or damaged.
    """
    folder = path_of(folder)
    described, vocabulary = read_json(folder / EXPORTED), Vocabulary.from_json(read_json(folder / VOCABULARY))
    model = described.get("model")
    if not isinstance(model, dict):
        raise Unreadable(f'{folder / EXPORTED} does not describe a model: it has no object "model"')
    return Weights(model, read_arrays(folder / WEIGHTS), vocabulary)


def write_folder(folder: Path, weights: Weights, *, title: str, about: Json, modules: list[str]) -> dict[str, str]:
    """Writes an exported folder. If it is there, its files are replaced, and others stay.

    Args:
      folder: its path.
      weights: what to write.
      title: the model in a few words.
      about: the run's summary, for the model card; may be empty.
      modules: what `--import` must name for a cell of the user's own.

    Returns:
      The files that this model cannot have, each with the reason.
    """
    vocabulary = weights.vocabulary
    described = {
        "version": rnn_lm.__version__,
        "model": weights.model,
        "corpus": {"tokens": vocabulary.kind, "normalize": vocabulary.normalize, "sha256": ""},
        "title": title,
        "about": about,
    } | ({"import": modules} if modules else {})
    left_out: dict[str, str] = {}

    def written(name: str, make: Callable[[], bytes]) -> None:
        try:
            write_bytes(temporary / name, make())
        except UserError as error:
            left_out[name] = str(error)

    with new_folder(folder) as temporary:
        write_arrays(temporary / WEIGHTS, weights.arrays)
        write_json(temporary / EXPORTED, described)
        write_json(temporary / VOCABULARY, vocabulary.to_json())
        written(ONNX, lambda: _onnx(weights))
        written(PAGE, lambda: _page(weights, title, headline(about)))
        files = {name: what for name, what in FILES.items() if name not in left_out}
        write_text(temporary / CARD, to_card(weights, title=title, about=about, files=files))
    for name in left_out:  # of an earlier export
        (folder / name).unlink(missing_ok=True)
    return left_out


def _onnx(weights: Weights) -> bytes:
    from rnn_lm.convert.onnx import to_onnx

    return to_onnx(weights)


def _page(weights: Weights, title: str, about: str) -> bytes:
    from rnn_lm.convert.page import to_page

    return to_page(weights, title=title, about=about).encode()
