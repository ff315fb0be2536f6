"""The folder of a run: which files it has, whose it is, and the trained model in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from rnn_lm.data.corpus import Corpus, load_corpus
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import NewerFormat, UserError, unknown_name
from rnn_lm.files import read_if_there, read_json, temporary_name, write_json
from rnn_lm.inference.mixture import BUCKETS, Mixture, fit_weights
from rnn_lm.keys import named_key
from rnn_lm.ngram import NGramLM
from rnn_lm.nn.models import MODELS, LanguageModel
from rnn_lm.nn.registry import CELLS
from rnn_lm.plugins import IMPORTED
from rnn_lm.training.checkpoints import Checkpoints, fill_tree
from rnn_lm.training.config import FIELDS, complete_config, get_field

CONFIG, VOCABULARY, METRICS, SAMPLES, SUMMARY, DIVERGED, NGRAM, MIXTURE, CHECKPOINTS = (
    "config.json",
    "vocabulary.json",
    "metrics.jsonl",
    "samples.txt",
    "summary.json",
    "diverged.json",
    "ngram.npz",
    "mixture.json",
    "checkpoints",
)
MAX_MIXTURE_TOKENS = 250_000  # of the validation text that the weights of a mixture are fitted on: seconds
# What a kill may leave of a folder that has no config yet.
BEFORE_CONFIG = {VOCABULARY, *(temporary_name(Path(name)).name for name in (VOCABULARY, CONFIG))}
# A run may go on with other values of these; all else must stay.
MAY_CHANGE = ("steps", "log_every", "save_every", "eval_every", "sweep.mode")


def make_model(
    config: ConfigDict | FrozenConfigDict,
    vocab_size: int,
    *,
    key: jax.Array | None = None,
    initial_radius: jax.Array | None = None,
) -> LanguageModel:
    """The model that a config describes, with its initial weights.

    `key` and `initial_radius` stand in for what the config says; they may be traced.
    """
    key = named_key(config.seed, "params") if key is None else key
    body: dict[str, Any]
    if config.model.kind == "mlp":
        body = {"context": config.model.context, "activation": config.model.activation}
    else:
        body = {
            "cell": config.model.cell,
            "num_layers": config.model.num_layers,
            "layer_norm": config.model.layer_norm,
            "activation": config.model.activation,
            "recurrent_init": nnx.initializers.orthogonal(
                config.model.initial_radius if initial_radius is None else initial_radius
            ),
        }
    model = MODELS[config.model.kind](
        vocab_size,
        config.model.num_hiddens,
        embed_dim=config.model.embed_dim,
        dropout=config.model.dropout,
        tie=config.model.tie,
        dtype=config.model.dtype,
        rngs=nnx.Rngs(params=key, default=key),
        **body,
    )
    if others := nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param))):
        name = ".".join(map(str, others[0][0]))
        raise UserError(
            f"cell {config.model.cell!r} keeps state in {name}, which is no nnx.Param; training keeps only those from "
            "step to step (dropout between the layers is config.model.dropout)"
        )
    return model


def check_folder(workdir: Path, config: ConfigDict, corpus: Corpus, *, named: Path | None = None) -> None:
    """Raises UserError where `workdir` cannot be the folder of this run: it is to be absent, empty, or this run's.

    `named` is the --workdir that was given, where the run's folder is one of those in it.
    """
    free = free_folder(named or workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder, such as {free}")
    if (workdir / CONFIG).exists():
        if different := _differences(workdir, config, corpus):
            raise UserError(
                f"--workdir={workdir} belongs to another config: {'; '.join(different)}; "
                f"give a free folder, such as --workdir={free}"
            )
    elif workdir.is_dir() and {path.name for path in workdir.iterdir()} - BEFORE_CONFIG:
        raise UserError(
            f"--workdir={workdir} holds other things than a run; give a free folder, such as --workdir={free}"
        )


def check_only(workdir: Path, ours: set[str], what: str) -> None:
    """Raises UserError where `workdir` is not a folder, or one with other things in it than those of `what`."""
    free = free_folder(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder, such as {free}")
    if workdir.is_dir() and (others := {path.name for path in workdir.iterdir()} - ours):
        raise UserError(
            f"--workdir={workdir} holds other things than {what}, such as {min(others)}; "
            f"give a free folder, such as --workdir={free}"
        )


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder, if need be, and keeps other processes from training in it meanwhile.

    A folder that is still empty in the end is taken away again.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in --workdir={workdir}; wait or give another") from error
        try:
            yield
        finally:
            if not any(workdir.iterdir()):
                workdir.rmdir()
    finally:
        os.close(handle)  # which unlocks


def write_identity(workdir: Path, config: ConfigDict, corpus: Corpus) -> None:
    """What the folder's run is, `config.json` and `vocabulary.json`; and that it is not over."""
    resolved = config.to_dict()
    resolved["corpus"]["sha256"] = corpus.sha256
    if config.corpus.path:  # so that it is found from any folder
        resolved["corpus"]["path"] = os.path.abspath(os.path.expanduser(config.corpus.path))
    if IMPORTED:  # no part of what the run is, but who reads it may need them
        resolved["import"] = IMPORTED
    write_json(workdir / VOCABULARY, corpus.vocabulary.to_json())
    write_json(workdir / CONFIG, resolved)
    for over in (SUMMARY, DIVERGED):
        (workdir / over).unlink(missing_ok=True)


def _differences(workdir: Path, config: ConfigDict, corpus: Corpus) -> list[str]:
    """Fields in which the folder's config differs from this one, the corpus being what its text is."""
    old, sha256 = read_config(workdir)
    ignored = {"corpus.source", "corpus.path", *MAY_CHANGE}
    if config.optimizer.schedule == "plateau":
        ignored.discard("eval_every")  # the schedule counts evaluations
    pairs = {name: (get_field(old, name), get_field(config, name)) for name in FIELDS if name not in ignored}
    different = [f"{name} is {a!r} there, {b!r} here" for name, (a, b) in pairs.items() if a != b]
    if sha256 != corpus.sha256:
        different.append(f"the text has SHA-256 {sha256[:12]}… there, {corpus.sha256[:12]}… here")
    return different


def free_folder(workdir: Path) -> Path:
    """A name like this one that is not taken."""
    number = 2
    while (free := beside(workdir, f"{workdir.resolve().name or 'run'}-{number}")).exists():
        number += 1
    return free


def beside(workdir: Path, name: str) -> Path:
    """A neighbour of a folder, by a path as absolute or relative as its own."""
    path = workdir.resolve().parent / name
    return path if workdir.is_absolute() else Path(os.path.relpath(path))


def read_config(workdir: Path) -> tuple[ConfigDict, str]:
    """A run's config, and the SHA-256 of its corpus.

    Raises:
      UserError: where the folder holds no run.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir={workdir} holds no run ({CONFIG} is not there); train one with --config first")
    value = read_json(workdir / CONFIG)
    value.pop("import", None)
    try:
        sha256 = value["corpus"].pop("sha256")
        return complete_config(value), sha256
    except (KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{workdir / CONFIG} is not the config of a run; give another --workdir") from error


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
    model = nnx.eval_shape(partial(make_model, config, vocab_size))  # no weights to draw: they are in the checkpoint
    nnx.update(model, fill_tree({"params": nnx.state(model, nnx.Param)}, arrays)["params"])
    return model, best, steps[-1]


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where it has not finished."""
    return read_if_there(workdir / SUMMARY)


def read_diverged(workdir: Path) -> dict[str, Any] | None:
    """Where the run's training diverged, and what is not finite; None where it has not."""
    return read_if_there(workdir / DIVERGED)


def is_over(workdir: Path, steps: int) -> bool:
    """Whether a run of so many steps has finished, or diverged."""
    summary = read_summary(workdir)
    return read_diverged(workdir) is not None or (summary is not None and summary["steps"] >= steps)
