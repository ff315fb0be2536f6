"""What a run has made: its model, its vocabulary and its text."""

from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict

from rnn_lm.data.corpus import Corpus, load_corpus
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import NewerFormat, UserError, unknown_name
from rnn_lm.files import read_json, write_json
from rnn_lm.inference.mixture import BUCKETS, Mixture, fit_weights
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.models import LanguageModel
from rnn_lm.nn.registry import CELLS
from rnn_lm.program import model_of, new_params, program_of
from rnn_lm.runs.checkpoints import Checkpoints, fill_tree
from rnn_lm.runs.folder import CHECKPOINTS, CONFIG, MIXTURE, NGRAM, VOCABULARY, read_config

MAX_MIXTURE_TOKENS = 250_000  # of the validation text that the weights of a mixture are fitted on: seconds


def load(workdir: str | Path, *, mix: Literal["none", "ngram"] = "none") -> tuple[LanguageModel, Vocabulary]:
    """A trained run: its model, with the weights of the best checkpoint by validation loss, and its vocabulary.

    With `mix="ngram"` the model is a `Mixture` of the network and the run's n-gram model. How much each of them counts
    is fitted on the validation text the first time, and kept in the folder.

    >>> model, vocabulary = load("runs/char")  # doctest: +SKIP

    Raises:
      UserError: where the folder holds no run, or no checkpoint yet, or a damaged one; or nothing to mix with.
    """
    if mix not in ("none", "ngram"):
        raise unknown_name("mix", mix, ("none", "ngram"))
    workdir = Path(workdir)
    config, _ = read_config(workdir)
    check_cell_is_known(workdir, config)
    vocabulary = Vocabulary.from_json(read_json(workdir / VOCABULARY))
    model, _, _ = load_checkpoint(workdir, config, len(vocabulary))
    return (_mixture(workdir, model) if mix == "ngram" else model), vocabulary


def check_cell_is_known(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where a run's cell is one of somebody's own, whose module has not been imported."""
    if config.model.kind == "rnn" and config.model.cell not in CELLS:
        noted = read_json(workdir / CONFIG).get("import") or ["MODULE_OR_FILE"]
        raise UserError(
            f"--workdir={workdir} has a cell {config.model.cell!r} that is not registered; "
            f"give {' '.join(f'--import={name}' for name in noted)}, which registers it"
        )


def _mixture(workdir: Path, network: LanguageModel) -> Mixture:
    if not (workdir / NGRAM).exists():
        raise UserError(f"--workdir={workdir} has no n-gram model ({NGRAM}) to mix with yet; train it for longer")
    ngram, fingerprint = NGramLM.load(workdir / NGRAM), network.fingerprint()
    if ngram.vocab_size != network.vocab_size:
        raise UserError(f"{workdir / NGRAM} is of another vocabulary; delete it to have it counted again")
    kept: dict[str, Any] = {}
    try:
        kept = read_json(workdir / MIXTURE)
    except NewerFormat:
        raise
    except UserError:
        pass  # not fitted yet, or damaged
    with suppress(KeyError, ValueError, TypeError):
        weights = np.array(kept["weights"], float)
        if (
            kept["network"] == fingerprint
            and weights.shape == (ngram.order * BUCKETS,)
            and abs(weights - 0.5).max() < 0.5
        ):
            return Mixture(network, ngram, weights)
    ids = corpus_of(workdir).valid.ids
    if len(ids) < 2:
        raise UserError(f"--workdir={workdir} has no validation text, which the mixture's weights are fitted on")
    weights = fit_weights(network, ngram, ids[:MAX_MIXTURE_TOKENS])
    with suppress(OSError):  # where it may not be written it is fitted again the next time
        write_json(workdir / MIXTURE, {"network": fingerprint, "weights": weights.tolist()})
    return Mixture(network, ngram, weights)


def corpus_of(workdir: Path) -> Corpus:
    """The text that a run was trained on.

    Raises:
      UserError: where it is gone, or another one by now.
    """
    config, sha256 = read_config(workdir)
    corpus = load_corpus(**config.corpus)
    if corpus.sha256 != sha256:
        raise UserError(f"{corpus.name} is no longer the text that the run was trained on")
    return corpus


def load_checkpoint(workdir: Path, config: ConfigDict, vocab_size: int) -> tuple[LanguageModel, int, int]:
    """The model of a run's best checkpoint (the latest, where none was evaluated), its step and the latest's step."""
    with closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"--workdir={workdir} has no checkpoint yet; train it for longer")
        best = checkpoints.best_step()
        arrays, _ = checkpoints.restore(best)
    program, numbers = program_of(config, vocab_size)
    template = {"params": jax.eval_shape(partial(new_params, program), numbers.arrays())}
    model = model_of(program, fill_tree(template, arrays)["params"], config.model.dropout)
    return model, best, steps[-1]
