"""A run → its model, vocabulary and text; and what another run takes from it to start from."""

from collections.abc import Container, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rnn_lm.config import set_field
from rnn_lm.convert.weights import check_finite
from rnn_lm.data.corpus import Corpus, load_corpus
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import Unreadable, UserError, unknown_name
from rnn_lm.fields import SHAPE, get_field
from rnn_lm.files import EXPORTED, VOCABULARY, Json, path_of, read_json, write_json
from rnn_lm.inference.mixture import BUCKETS, Mixture, fit_weights
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.arrays import named_leaves
from rnn_lm.nn.models import LanguageModel
from rnn_lm.nn.registry import CELLS
from rnn_lm.program import model_of, new_model, program_of
from rnn_lm.runs.checkpoints import Checkpoints, fill_tree
from rnn_lm.runs.folder import CHECKPOINTS, MIXTURE, NGRAM, config_path, read_config
from rnn_lm.runs.origin import Origin

PARAMS = "params."  # what the names of a checkpoint's parameters start with
MAX_MIXTURE_TOKENS = 250_000  # of the validation text; fitting a mixture to them takes seconds


def load(workdir: str | Path, *, mix: Literal["none", "ngram"] = "none") -> tuple[LanguageModel, Vocabulary]:
    """Loads the model of a run, from the checkpoint with the lowest validation loss, and its vocabulary.

    `workdir` may also be a folder that `export` made.

    With `mix="ngram"` the model is a `Mixture` of the network and the run's n-gram model. Its weights are fitted on the
    validation text the first time and kept in the folder.

    >>> model, vocabulary = load("runs/char")  # doctest: +SKIP

    Raises:
      UserError: the folder holds no run, the checkpoint is missing or damaged, or there is no n-gram model to mix with.
    """
    if mix not in ("none", "ngram"):
        raise unknown_name("mix", mix, ("none", "ngram"))
    workdir = path_of(workdir)
    config, _ = read_config(workdir)
    check_cell_is_known(workdir, config)
    if config_path(workdir).name == EXPORTED:
        from rnn_lm.convert.folder import read_folder

        weights = read_folder(workdir)
        vocabulary = weights.vocabulary
        model = model_with(config, weights.arrays, len(vocabulary))
    else:
        vocabulary = vocabulary_of(workdir)
        model, _, _ = load_checkpoint(workdir, config, len(vocabulary))
    return (_mixture(workdir, model) if mix == "ngram" else model), vocabulary


def vocabulary_of(workdir: Path) -> Vocabulary:
    """The vocabulary of a run or of an exported folder."""
    return Vocabulary.from_json(read_json(workdir / VOCABULARY))


def check_cell_is_known(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the run's cell is not registered, as its module has not been imported."""
    if config.model.kind == "rnn" and config.model.cell not in CELLS:
        modules = read_json(config_path(workdir)).get("import") or ["MODULE_OR_FILE"]
        flags = " ".join(f"--import={name}" for name in modules)
        raise UserError(f"{workdir}: the cell {config.model.cell!r} is not registered; give {flags}")


def _mixture(workdir: Path, network: LanguageModel) -> Mixture:
    if not read_config(workdir)[1].text:
        raise UserError(f"--workdir={workdir} holds a model without a text, so it has no n-gram model; leave out --mix")
    if not (workdir / NGRAM).exists():
        raise UserError(f"--workdir={workdir} has no n-gram model ({NGRAM}) yet; train it for longer")
    try:
        ngram = NGramLM.load(workdir / NGRAM)
    except Unreadable as error:
        raise Unreadable(f"{error}; delete it and train the run for longer to have it counted again") from error
    fingerprint = network.fingerprint()
    if ngram.vocab_size != network.vocab_size:
        raise UserError(f"{workdir / NGRAM} has another vocabulary; delete it to have it counted again")
    kept: Json = {}
    with suppress(Unreadable):
        kept = read_json(workdir / MIXTURE)
    with suppress(KeyError, ValueError, TypeError):
        weights = np.array(kept["weights"], float)
        valid = weights.shape == (ngram.order * BUCKETS,) and abs(weights - 0.5).max() < 0.5
        if valid and kept["network"] == fingerprint:
            return Mixture(network, ngram, weights)
    ids = corpus_of(workdir).valid.ids
    if len(ids) < 2:
        raise UserError(f"--workdir={workdir} has no validation text to fit the mixture's weights on; leave out --mix")
    weights = fit_weights(network, ngram, ids[:MAX_MIXTURE_TOKENS])
    with suppress(OSError):  # the folder may be read-only
        write_json(workdir / MIXTURE, {"network": fingerprint, "weights": weights.tolist()})
    return Mixture(network, ngram, weights)


def corpus_of(workdir: Path) -> Corpus:
    """The text of a run.

    Raises:
      UserError: it is missing or has changed since.
    """
    config, hashes = read_config(workdir)
    if not hashes.text:
        raise UserError(f"--workdir={workdir} holds a model without a text of its own")
    corpus = load_corpus(**config.corpus, vocabulary=vocabulary_of(workdir))
    if corpus.sha256 != hashes.text:
        raise UserError(f"{corpus.name} has changed since the run was trained")
    return corpus


def adopt(config: ConfigDict, given: Container[str] = ()) -> ConfigDict:
    """The config, with what must agree with the model of `init_from` taken from there.

    Raises:
      UserError: there is no model, or a field of `given` has another value there.
    """
    if not config.init_from:
        return config
    config, path = config.copy_and_resolve_references(), path_of(config.init_from)
    with _called_init_from(path):
        theirs, _ = read_config(path)
        check_cell_is_known(path, theirs)
        vocabulary = vocabulary_of(path)
    fields = {f"model.{name}": get_field(theirs, f"model.{name}") for name in SHAPE}
    fields |= {"corpus.tokens": vocabulary.kind, "corpus.normalize": vocabulary.normalize}
    for name, value in fields.items():
        if name in given and (mine := get_field(config, name)) != value:
            raise UserError(
                f"config.{name} is {mine!r} here and {value!r} in --config.init_from={path}; leave it out, or start "
                "from another model"
            )
        set_field(config, name, value)
    return config


def text_and_origin(config: ConfigDict) -> tuple[Corpus, Origin | None]:
    """The text of a run with this config, and the model that it starts from; None: from random weights.

    Raises:
      UserError: there is no such text or model, or the checkpoint is damaged.
    """
    if not config.init_from:
        return load_corpus(**config.corpus), None
    path = path_of(config.init_from)
    with _called_init_from(path):
        model, vocabulary = load(path)
        arrays = arrays_of(model)
        check_finite(arrays)
    origin = Origin.of(config.init_from, model.fingerprint(), arrays, vocabulary)
    return load_corpus(**config.corpus, vocabulary=vocabulary), origin


def arrays_of(model: LanguageModel) -> dict[str, np.ndarray]:
    """The parameters of a model by name."""
    return {name: np.asarray(array) for name, array in named_leaves(nnx.state(model, nnx.Param)).items()}


@contextmanager
def _called_init_from(path: Path) -> Iterator[None]:
    """Errors about the folder name the field that gave it."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(f"--workdir={path}", f"--config.init_from={path}")
        raise UserError(message.removesuffix("; train one with --config first")) from error


def load_checkpoint(workdir: Path, config: ConfigDict, vocab_size: int) -> tuple[LanguageModel, int, int]:
    """The model of a run's best checkpoint (or the latest, if none was evaluated), its step, and the latest step."""
    with closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"--workdir={workdir} has no checkpoint yet; train it for longer")
        best = checkpoints.best_step()
        arrays, _ = checkpoints.restore(best)
    arrays = {name.removeprefix(PARAMS): array for name, array in arrays.items() if name.startswith(PARAMS)}
    return model_with(config, arrays, vocab_size), best, steps[-1]


def model_with(config: ConfigDict, arrays: dict[str, np.ndarray], vocab_size: int) -> LanguageModel:
    """The model of a config with these arrays, by name; raises UserError if they do not fit."""
    program, numbers = program_of(config, vocab_size)
    template = nnx.state(nnx.eval_shape(partial(new_model, program, numbers)), nnx.Param)
    if others := arrays.keys() - named_leaves(template).keys():
        raise UserError(f"the weights do not fit this model: it has no {', '.join(sorted(others))}")
    return model_of(program, fill_tree(template, arrays), config.model.dropout)
