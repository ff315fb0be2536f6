"""A model of one's own loop → a run's folder."""

from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rnn_lm.config import check_config, complete_config
from rnn_lm.convert.weights import Weights, check_finite
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.fields import SHAPE
from rnn_lm.files import Json, new_folder, path_of
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.models import RNNLM, LanguageModel, NeuralLM
from rnn_lm.nn.registry import CELLS
from rnn_lm.nn.stack import Stack
from rnn_lm.runs.checkpoints import Checkpoints
from rnn_lm.runs.folder import CHECKPOINTS, Hashes, check_only, write_identity
from rnn_lm.runs.load import arrays_of, model_with


def save(workdir: str | Path, model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Makes a model of your own loop a run, which `load` and the verbs take.

    The run has no text: `evaluate` and `inspect` read one that is given by `--text`. To train it further, start a run
    from it (`config.init_from`).

    >>> save("runs/mine", model, vocabulary)  # doctest: +SKIP

    Raises:
      UserError: the folder is not empty, the vocabulary has another size, or the model is none that a config can
        describe; nothing is written.
    """
    config = config_of(model)
    if len(vocabulary) != model.vocab_size:
        raise UserError(f"the vocabulary has {len(vocabulary)} tokens, the model has {model.vocab_size}")
    _write(path_of(workdir), config, model, vocabulary)


def save_weights(workdir: str | Path, weights: Weights, *, force: bool = False) -> ConfigDict:
    """Makes a run of weights from elsewhere; returns its config. `force`: also where some are not finite.

    Raises:
      UserError: as in `save`, or the weights do not fit.
    """
    if not force:
        check_finite(weights.arrays)
    if "b_q" in weights.arrays and (size := weights.arrays["b_q"].size) != len(weights.vocabulary):
        raise UserError(f"the vocabulary has {len(weights.vocabulary)} tokens, the weights have {size}")
    config = complete_config({"model": weights.model})
    check_config(config)
    model = model_with(config, weights.arrays, len(weights.vocabulary))
    _write(path_of(workdir), config, model, weights.vocabulary)
    return config


def _write(workdir: Path, config: ConfigDict, model: LanguageModel, vocabulary: Vocabulary) -> None:
    config.corpus.tokens, config.corpus.normalize = vocabulary.kind, vocabulary.normalize
    check_only(workdir, set(), what="")
    with new_folder(workdir) as folder:
        with closing(Checkpoints(folder / CHECKPOINTS, background=False)) as checkpoints:
            checkpoints.save(0, {"params": nnx.state(model, nnx.Param)}, {"best": {"step": None}})
        write_identity(folder, config, vocabulary, Hashes(text=""))


def weights_of(config: ConfigDict, model: LanguageModel, vocabulary: Vocabulary) -> Weights:
    """A model as plain data, for converters."""
    return Weights({name: config.model[name] for name in (*SHAPE, "dtype")}, arrays_of(model), vocabulary)


def config_of(model: LanguageModel) -> ConfigDict:
    """The config of a model; raises UserError if no config describes it."""
    if type(model) not in (RNNLM, MLPLM):
        raise UserError(f"only an RNNLM or an MLPLM can be saved as a run; this is a {type(model).__name__}")
    assert isinstance(model, NeuralLM)
    try:
        config = complete_config({"model": _fields_of(model)})
        check_config(config)
        again = model_with(config, arrays_of(model), model.vocab_size)
    except UserError as error:
        raise UserError(f"no config describes this model: {error}") from error
    # A method of one's own, or an attribute that was changed, shows in what the model computes.
    ids = jnp.asarray(np.random.default_rng(0).integers(0, model.vocab_size, (8, 2)))
    logits, expected = (each(each.initialize_carry(2), ids)[1] for each in (again, model))
    if not np.array_equal(logits, expected, equal_nan=True):
        raise UserError(
            "no config describes this model: with the same weights, the model of its config has other logits; a "
            "cell of your own needs a class of its own, with register_cell"
        )
    return config


def _fields_of(model: NeuralLM) -> Json:
    """The fields of a config's `model`."""
    given: Json = {
        "embed_dim": 0 if model.embedding is None else model.embedding.shape[1],
        "tie": model.w_hq is None,
        "dtype": jnp.dtype(model.dtype or model.param_dtype).name,
        "dropout": float(model.dropout),
    }
    if isinstance(model, MLPLM):
        shape = {"num_hiddens": model.b_h.shape[0], "context": model.context, "activation": model.activation}
        return given | {"kind": "mlp"} | shape
    assert isinstance(model, RNNLM)
    cells = list(model.cell.cells) if isinstance(model.cell, Stack) else [model.cell]
    names = {name for cell in cells for name, cls in CELLS.items() if cls is type(cell)}
    if len(names) != 1:
        kinds = ", ".join(dict.fromkeys(type(cell).__name__ for cell in cells))
        raise UserError(f"its layers are {kinds}, but must be of one registered class")
    of_cell = {name: getattr(cells[0], name) for name in ("activation", "reset_after") if hasattr(cells[0], name)}
    return given | of_cell | {
        "cell": names.pop(),
        "num_layers": len(cells),
        "num_hiddens": cells[0].hidden_features,
        "layer_norm": getattr(cells[0], "scale_h", None) is not None,
    }  # fmt: skip
