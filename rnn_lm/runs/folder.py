"""The folder of a run: its files, its config, and whether it is done."""

import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from rnn_lm.config import complete_config
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, get_field, of_sweep
from rnn_lm.files import (
    ALONE,
    EXPORTED,
    VOCABULARY,
    Json,
    absolute,
    read_if_there,
    read_json,
    temporary_name,
    write_json,
)
from rnn_lm.plugins import IMPORTED

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
METRICS, SAMPLES = "metrics.jsonl", "samples.txt"
SUMMARY, DIVERGED, PRUNED = "summary.json", "diverged.json", "pruned.json"
NGRAM, MIXTURE = "ngram.npz", "mixture.json"
# Fields that may change when a run is resumed.
MAY_CHANGE = ("steps", "log_every", "save_every", "eval_every", "stop_patience", *filter(of_sweep, FIELDS))


class Hashes(NamedTuple):
    """The SHA-256 of what a config only names: the text ("": a saved model, without one), and `init_from`'s weights."""

    text: str
    weights: str = ""


def check_folder(workdir: Path, config: ConfigDict, hashes: Hashes, *, named: Path | None = None) -> None:
    """Raises UserError unless `workdir` is absent, empty, or this run's. `named`: of a member, the sweep's folder."""
    if not (workdir / CONFIG).exists():
        check_only(workdir, {VOCABULARY, CONFIG}, "a run", named)  # a killed process may have written no config
    elif different := _differences(workdir, config, hashes):
        raise UserError(
            f"--workdir={workdir} belongs to another config: {'; '.join(different)}; {another_folder(named or workdir)}"
        )


def check_only(workdir: Path, names: set[str], what: str, named: Path | None = None) -> None:
    """Raises UserError unless `workdir` is absent, or a folder with nothing but the files of `what`."""
    if not workdir.exists():
        return
    hint = another_folder(named or workdir)
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; {hint}")
    ours = names | {temporary_name(Path(name)).name for name in names} | {ALONE}
    if others := {path.name for path in workdir.iterdir()} - ours:
        is_not = f" and not {what}" if what else ""
        shown = min(others, key=lambda name: (name.startswith("."), name))  # rather one that people see
        raise UserError(f"--workdir={workdir} is not empty{is_not} (it has {shown}); {hint}")


def write_identity(workdir: Path, config: ConfigDict, vocabulary: Vocabulary, hashes: Hashes) -> None:
    """Writes `config.json` and `vocabulary.json`, and removes the files of a run that has ended."""
    resolved = config.to_dict()
    resolved["corpus"]["sha256"] = hashes.text
    if config.corpus.path or not hashes.text:  # no source was read
        del resolved["corpus"]["source"]
    if config.corpus.path:  # valid from any folder
        resolved["corpus"]["path"] = absolute(config.corpus.path)
    if config.init_from:
        resolved["init_from"] = absolute(config.init_from)
        resolved["init_sha256"] = hashes.weights
    if IMPORTED:  # for those who load the run
        resolved["import"] = IMPORTED
    write_json(workdir / VOCABULARY, vocabulary.to_json())
    write_json(workdir / CONFIG, resolved)
    for name in (SUMMARY, DIVERGED, PRUNED):
        (workdir / name).unlink(missing_ok=True)


def _differences(workdir: Path, config: ConfigDict, hashes: Hashes) -> list[str]:
    """The fields that differ from the folder's config. Texts and weights are compared by their SHA-256."""
    old, known = read_config(workdir)
    if not known.text:
        raise UserError(
            f"--workdir={workdir} holds a model without a text; to train it further, give --config.init_from={workdir} "
            f"and another --workdir"
        )
    ignored = {"corpus.source", "corpus.path", "init_from", *MAY_CHANGE}
    if config.optimizer.schedule == "plateau":
        ignored.discard("eval_every")  # this schedule counts evaluations
    pairs = {name: (get_field(old, name), get_field(config, name)) for name in FIELDS if name not in ignored}
    different = [f"{name} is {a!r} there, {b!r} here" for name, (a, b) in pairs.items() if a != b]
    for what, there, here in zip(("text", "model of init_from"), known, hashes, strict=True):
        if there != here:
            shown = [f"SHA-256 {sha256[:12]}…" if sha256 else "none" for sha256 in (there, here)]
            different.append(f"the {what} has {shown[0]} there, {shown[1]} here")
    return different


def another_folder(workdir: Path) -> str:
    """The advice in an error message about a folder that is in use."""
    return f"give another folder, such as --workdir={free_folder(workdir)}"


def free_folder(workdir: Path) -> Path:
    """A folder with a similar name that does not exist."""
    number = 2
    while (free := beside(workdir, f"{workdir.resolve().name or 'run'}-{number}")).exists():
        number += 1
    return free


def beside(workdir: Path, name: str) -> Path:
    """The path of `name` next to a folder, absolute or relative as the folder's."""
    path = workdir.resolve().parent / name
    return path if workdir.is_absolute() else Path(os.path.relpath(path))


def read_config(workdir: Path) -> tuple[ConfigDict, Hashes]:
    """The config of a run or of an exported folder, and the SHA-256 of what it names.

    Raises:
      UserError: the folder holds neither.
    """
    path = config_path(workdir)
    value = read_json(path)
    for name in ("import", "version", "title", "about"):  # the last three are of an exported folder
        value.pop(name, None)
    try:
        hashes = Hashes(value["corpus"].pop("sha256"), value.pop("init_sha256", ""))
        return complete_config(value), hashes
    except (KeyError, TypeError, AttributeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else repr(error)
        raise UserError(f"{path} is not the config of a run ({reason})") from error


def config_path(workdir: Path) -> Path:
    """The file with the config of a run, or of an exported folder; raises UserError if there is none."""
    found = [workdir / name for name in (CONFIG, EXPORTED) if (workdir / name).is_file()]
    if not found:
        why = f"{CONFIG} is missing" if workdir.is_dir() else "it is a file" if workdir.exists() else "no such folder"
        runs = sorted(path.parent for path in workdir.glob(f"*/{CONFIG}"))  # a sweep's, or those in `runs`
        hint = f"give one of the runs in it, such as --workdir={runs[0]}" if runs else "train one with --config first"
        raise UserError(f"--workdir={workdir} holds no run ({why}); {hint}")
    return found[0]


def read_summary(workdir: Path) -> Json | None:
    """The summary of a run; None if the run is not done."""
    return read_if_there(workdir / SUMMARY)


def read_diverged(workdir: Path) -> Json | None:
    """The step at which a run diverged, and what was not finite; None if the run has not diverged."""
    return read_if_there(workdir / DIVERGED)


def is_done(workdir: Path, config: ConfigDict) -> bool:
    """Whether a run has all steps of its config, or was stopped early with at least this much patience."""
    summary = read_summary(workdir)
    return summary is not None and _has_all_steps(summary, config)


def ending_of(workdir: Path, config: ConfigDict) -> tuple[str, Json]:
    """How a run has ended and what says so: "finished" and its summary, "diverged" or "pruned" and where; "unfinished".

    A diverged run has `diverged.json`. Older versions wrote a summary if the perplexity of a whole text was not finite.
    """
    if diverged := read_diverged(workdir):
        return "diverged", diverged
    if pruned := read_if_there(workdir / PRUNED):
        return "pruned", pruned
    summary = read_summary(workdir)
    if summary is None or not _has_all_steps(summary, config):
        return "unfinished", {}
    for split in ("valid", "test"):
        if split in summary and summary[split]["perplexity"] is None:
            return "diverged", {"step": summary["best_step"], "what": f"the perplexity of the whole {split} text"}
    return "finished", summary


def has_ended(workdir: Path, config: ConfigDict) -> bool:
    """Whether a run is done, has diverged or was pruned."""
    return ending_of(workdir, config)[0] != "unfinished"


def _has_all_steps(summary: Json, config: ConfigDict) -> bool:
    patience = summary.get("stop_patience", 0)  # 0: not stopped early
    return summary["steps"] >= config.steps or 0 < config.stop_patience <= patience
