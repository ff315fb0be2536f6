"""The folder of a run: which files it has, whose it is, and the trained model in it."""

import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from rnn_lm.data.corpus import Corpus
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.files import write_json
from rnn_lm.keys import named_key
from rnn_lm.nn.models import RNNLM
from rnn_lm.training.checkpoints import Checkpoints, fill_tree
from rnn_lm.training.config import FIELDS, complete_config, get_field

CONFIG, VOCABULARY, METRICS, SAMPLES, SUMMARY, CHECKPOINTS = (
    "config.json",
    "vocabulary.json",
    "metrics.jsonl",
    "samples.txt",
    "summary.json",
    "checkpoints",
)
# A run may go on with other values of these; all else must stay.
MAY_CHANGE = ("steps", "log_every", "save_every", "eval_every")


def make_model(config: ConfigDict, vocab_size: int) -> RNNLM:
    """The model that a config describes, with its initial weights."""
    return RNNLM(
        vocab_size,
        config.model.num_hiddens,
        cell=config.model.cell,
        activation=config.model.activation,
        recurrent_init=nnx.initializers.orthogonal(config.model.initial_radius),
        embed_dim=config.model.embed_dim,
        rngs=nnx.Rngs(params=named_key(config.seed, "params")),
    )


def claim(workdir: Path, config: ConfigDict, corpus: Corpus) -> None:
    """Makes `workdir` the folder of this run: new, or the same run's from before.

    Raises:
      UserError: where the folder holds anything else; then it is left as it is.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder, such as {_free(workdir)}")
    if not (workdir / CONFIG).exists() and workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(
            f"--workdir={workdir} holds other things than a run; give a free folder, such as {_free(workdir)}"
        )
    if (workdir / CONFIG).exists():
        theirs = _read_json(workdir / CONFIG)
        different = _differences(theirs, config, corpus)
        if different:
            raise UserError(
                f"--workdir={workdir} belongs to another config: {'; '.join(different)}; "
                f"give a free folder, such as --workdir={_free(workdir)}"
            )
    resolved = config.to_dict()
    resolved["corpus"]["sha256"] = corpus.sha256
    write_json(workdir / CONFIG, resolved)
    write_json(workdir / VOCABULARY, corpus.vocabulary.to_json())


def _differences(theirs: dict[str, Any], config: ConfigDict, corpus: Corpus) -> list[str]:
    """Fields in which the folder's config differs from this one, the corpus being what its text is."""
    sha256 = theirs.get("corpus", {}).pop("sha256", None)
    old = complete_config(theirs)
    ignored = {"corpus.source", "corpus.path", *MAY_CHANGE}
    if config.optimizer.schedule == "plateau":
        ignored.discard("eval_every")  # the schedule counts evaluations
    pairs = {name: (get_field(old, name), get_field(config, name)) for name in FIELDS if name not in ignored}
    different = [f"{name} is {a!r} there, {b!r} here" for name, (a, b) in pairs.items() if a != b]
    if sha256 != corpus.sha256:
        different.append(f"the text has SHA-256 {str(sha256)[:12]}… there, {corpus.sha256[:12]}… here")
    return different


def _free(workdir: Path) -> Path:
    number = 2
    while (free := workdir.with_name(f"{workdir.name}-{number}")).exists():
        number += 1
    return free


def read_config(workdir: Path) -> tuple[ConfigDict, str]:
    """A run's config, and the SHA-256 of its corpus.

    Raises:
      UserError: where the folder holds no run.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir={workdir} holds no run ({CONFIG} is not there); train one with --config first")
    value = _read_json(workdir / CONFIG)
    sha256 = value.get("corpus", {}).pop("sha256", "")
    return complete_config(value), sha256


def load(workdir: str | Path) -> tuple[RNNLM, Vocabulary]:
    """A trained run: its model, with the weights of the best checkpoint by validation loss, and its vocabulary.

    >>> model, vocabulary = load("runs/char")  # doctest: +SKIP

    Raises:
      UserError: where the folder holds no run, or no checkpoint yet, or a damaged one.
    """
    workdir = Path(workdir)
    config, _ = read_config(workdir)
    vocabulary = Vocabulary.from_json(_read_json(workdir / VOCABULARY))
    model, _, _ = load_checkpoint(workdir, config, len(vocabulary))
    return model, vocabulary


def load_checkpoint(workdir: Path, config: ConfigDict, vocab_size: int) -> tuple[RNNLM, int, int]:
    """The model of a run's best checkpoint (the latest, where none was evaluated), its step and the latest's step."""
    with closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is None:
            raise UserError(f"--workdir={workdir} has no checkpoint yet; train it for longer")
        arrays, notes = checkpoints.restore(latest)
        best = notes["best"]["step"] or latest
        if best != latest:
            arrays, _ = checkpoints.restore(best)
    model = nnx.eval_shape(partial(make_model, config, vocab_size))  # no weights to draw: they are in the checkpoint
    nnx.update(model, fill_tree({"params": nnx.state(model, nnx.Param)}, arrays)["params"])
    return model, best, latest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where it has not finished."""
    return _read_json(workdir / SUMMARY) if (workdir / SUMMARY).exists() else None
