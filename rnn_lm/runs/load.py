"""A run → its model, vocabulary and text."""

from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rnn_lm.data.corpus import Corpus, load_corpus
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import Unreadable, UserError, unknown_name
from rnn_lm.files import Json, path_of, read_json, write_json
from rnn_lm.inference.mixture import BUCKETS, Mixture, fit_weights
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.models import LanguageModel
from rnn_lm.nn.registry import CELLS
from rnn_lm.program import model_of, new_model, program_of
from rnn_lm.runs.checkpoints import Checkpoints, fill_tree
from rnn_lm.runs.folder import CHECKPOINTS, CONFIG, MIXTURE, NGRAM, VOCABULARY, read_config

MAX_MIXTURE_TOKENS = 250_000  # of the validation text; fitting a mixture to them takes seconds


def load(workdir: str | Path, *, mix: Literal["none", "ngram"] = "none") -> tuple[LanguageModel, Vocabulary]:
    """Loads the model of a run, from the checkpoint with the lowest validation loss, and its vocabulary.

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
    vocabulary = Vocabulary.from_json(read_json(workdir / VOCABULARY))
    model, _, _ = load_checkpoint(workdir, config, len(vocabulary))
    return (_mixture(workdir, model) if mix == "ngram" else model), vocabulary


def check_cell_is_known(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the run's cell is not registered, as its module has not been imported."""
    if config.model.kind == "rnn" and config.model.cell not in CELLS:
        modules = read_json(workdir / CONFIG).get("import") or ["MODULE_OR_FILE"]
        flags = " ".join(f"--import={name}" for name in modules)
        raise UserError(f"--workdir={workdir}: the cell {config.model.cell!r} is not registered; give {flags}")


def _mixture(workdir: Path, network: LanguageModel) -> Mixture:
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
    config, sha256 = read_config(workdir)
    corpus = load_corpus(**config.corpus)
    if corpus.sha256 != sha256:
        raise UserError(f"{corpus.name} has changed since the run was trained")
    return corpus


def load_checkpoint(workdir: Path, config: ConfigDict, vocab_size: int) -> tuple[LanguageModel, int, int]:
    """The model of a run's best checkpoint (or the latest, if none was evaluated), its step, and the latest step."""
    with closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"--workdir={workdir} has no checkpoint yet; train it for longer")
        best = checkpoints.best_step()
        arrays, _ = checkpoints.restore(best)
    program, numbers = program_of(config, vocab_size)
    template = {"params": nnx.state(nnx.eval_shape(partial(new_model, program, numbers)), nnx.Param)}
    model = model_of(program, fill_tree(template, arrays)["params"], config.model.dropout)
    return model, best, steps[-1]
