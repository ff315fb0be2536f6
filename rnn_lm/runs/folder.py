"""The folder of a run: which files it has, whose it is, and whether it is done."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rnn_lm.config import complete_config
from rnn_lm.data.corpus import Corpus
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, get_field
from rnn_lm.files import read_if_there, read_json, temporary_name, write_json
from rnn_lm.plugins import IMPORTED

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
# What a kill may leave of a folder that has no config yet.
BEFORE_CONFIG = {VOCABULARY, *(temporary_name(Path(name)).name for name in (VOCABULARY, CONFIG))}
# A run may go on with other values of these; all else must stay.
MAY_CHANGE = ("steps", "log_every", "save_every", "eval_every", "sweep.mode")


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


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where it has not finished."""
    return read_if_there(workdir / SUMMARY)


def read_diverged(workdir: Path) -> dict[str, Any] | None:
    """Where the run's training diverged, and what is not finite; None where it has not."""
    return read_if_there(workdir / DIVERGED)


def has_ended(workdir: Path, steps: int) -> bool:
    """Whether a run of so many steps has finished, or diverged."""
    summary = read_summary(workdir)
    return read_diverged(workdir) is not None or (summary is not None and summary["steps"] >= steps)
