"""The results of a sweep: its members' folders → `results.json`, `results.csv` and the ranking of its settings."""

import csv
import io
import math
import shlex
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rnn_lm.errors import UserError
from rnn_lm.fields import Value
from rnn_lm.files import Json, alone_in, read_json, write_json, write_text
from rnn_lm.runs.folder import another_folder, beside, check_only, ending_of, free_folder
from rnn_lm.runs.lock import LOCK
from rnn_lm.sweeps.members import Member, shown

RESULTS, TABLE, NGRAMS, PLOTS = "results.json", "results.csv", "ngrams", "plots"
STATUSES = ("finished", "diverged", "pruned")  # of members that have ended
FIGURES = ("nll", "perplexity", "bits_per_char")
WAIT = 20  # before writing all rows again, times as long as the last writing took


def check_sweep_folder(workdir: Path, members: Sequence[Member]) -> None:
    """Raises UserError unless `workdir` is absent, empty, or the folder of this sweep."""
    names = {member.name for member in members}
    if (workdir / RESULTS).exists():
        theirs = [row["name"] for row in read_json(workdir / RESULTS).get("members", [])]
        if others := [name for name in theirs if name not in names and (workdir / name).exists()]:
            raise UserError(
                f"--workdir={workdir} belongs to another sweep: {len(others)} of its members are not in this one, "
                f"such as {others[0]}; {another_folder(workdir)}"
            )
    else:  # later there may be other files, such as logs
        check_only(workdir, {*names, RESULTS, TABLE, NGRAMS, PLOTS, LOCK}, "this sweep")


class Results:
    """The results of a sweep's members so far, in `results.json` and `results.csv`. All its threads may use it.

    The row of a member that has ended is read once.
    """

    def __init__(self, workdir: Path, members: Sequence[Member], command: Sequence[str]):
        """`command` trains the config without overrides."""
        self._workdir, self._members, self._command = workdir, members, command
        self._ended: dict[str, Json] = {}  # rows by name
        self._lock = threading.Lock()
        self._due = 0.0  # when to write again

    def add(self, row: Json) -> None:
        """Takes the row of a member that has ended, and writes if it is time: all rows for each would be too many."""
        with self._lock:
            self._ended[row["name"]] = row
            if time.monotonic() < self._due:
                return
        self.write()

    def write(self) -> None:
        """Writes the files, which other shards write, too."""
        self._workdir.mkdir(parents=True, exist_ok=True)
        with self._lock, alone_in(self._workdir):
            started = time.monotonic()
            rows = self.rows()
            self._ended |= {row["name"]: row for row in rows if row["status"] != "unfinished"}
            result: Json = {"members": rows, "settings": settings_of(rows), "best": self._best_of(rows)}
            write_json(self._workdir / RESULTS, result | self.about(rows))
            write_text(self._workdir / TABLE, _csv(rows))
            now = time.monotonic()
            self._due = now + WAIT * (now - started)

    def rows(self) -> list[Json]:
        """The rows of all members."""
        return [self._row_of(member) for member in self._members]

    def about(self, rows: Sequence[Json]) -> Json:
        """What else `results.json` has."""
        return {}

    def _row_of(self, member: Member) -> Json:
        return self._ended.get(member.name) or row_of(member)

    def _best_of(self, rows: Sequence[Json]) -> Json | None:
        """The finished member with the lowest validation loss, and the command that trains it alone."""
        finished = [row for row in rows if row["status"] == "finished"]
        if not finished:
            return None
        best = min(finished, key=lambda row: row["valid"]["nll"])
        flags = [f"--config.{field}={shown(value)}" for field, value in best["overrides"].items()]
        alone = beside(self._workdir, f"{self._workdir.resolve().name.removesuffix('-sweep')}-best")
        folder = free_folder(alone) if alone.exists() else alone
        # The command trains it again in another folder, or continues it there if its run is copied to it.
        return {"name": best["name"], "command": shlex.join([*self._command, *flags, f"--workdir={folder}"])}


def settings_of(rows: Sequence[Json]) -> list[Json]:
    """The settings of the members, without seeds: means and standard errors over members that are done.

    They are sorted by the mean validation loss. Settings with diverged members come last.
    """
    groups: dict[tuple, list[Json]] = {}
    for row in rows:
        if "repeats" in row:  # a trial that was not trained, as another had its overrides
            continue
        setting = tuple((field, value) for field, value in row["overrides"].items() if field != "seed")
        groups.setdefault(setting, []).append(row)
    settings: list[Json] = []
    for setting, group in groups.items():
        counts = {status: [row["status"] for row in group].count(status) for status in STATUSES}
        finished = [row for row in group if row["status"] == "finished"]
        result: Json = {"overrides": dict(setting), "members": len(group), **counts}
        for split in ("valid", "test"):
            result[split] = _over_seeds([row[split] for row in finished if row[split]])
        settings.append(result)

    def rank(setting: Json) -> tuple:
        return setting["valid"] is None, setting["diverged"] > 0, (setting["valid"] or {}).get("nll", 0)

    return sorted(settings, key=rank)


def _over_seeds(figures: Sequence[dict[str, float | None]]) -> Json | None:
    """Means and standard errors. The perplexity is exp of the mean nll."""
    nlls = [math.inf if each["nll"] is None else each["nll"] for each in figures]
    bits = [math.inf if each["bits_per_char"] is None else each["bits_per_char"] for each in figures]
    if not nlls:
        return None
    nll = statistics.fmean(nlls)
    return {
        "nll": nll,
        "nll_standard_error": _standard_error(nlls),
        "perplexity": math.exp(nll) if nll < 700 else math.inf,
        "bits_per_char": statistics.fmean(bits),
        "bits_per_char_standard_error": _standard_error(bits),
    }


def _standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None for fewer than two values, or if one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def row_of(member: Member) -> Json:
    """The entry of a member in `results.json`."""
    status, summary = ending_of(member.workdir, member.config)
    row: Json = {
        "name": member.name,
        "workdir": str(member.workdir),
        "overrides": member.overrides,
        "status": status,
        "valid": None,
        "test": None,
    }
    if status == "diverged":
        return row | {"diverged": summary}
    if status == "pruned":  # on less of the text than `valid`, and by another checkpoint
        return row | {"pruned": summary}
    if status == "unfinished":
        return row
    for split in ("valid", "test"):
        if split in summary:
            row[split] = {name: summary[split][name] for name in (*FIGURES, "tokens")}
    about = {name: summary[name] for name in ("steps", "num_params", "tokens_per_second", "wall_seconds")}
    about["stop_patience"] = summary.get("stop_patience", 0)  # not in an older run's summary
    about["train_nll"] = summary.get("train", {}).get("nll")  # of the last training line, if there is one
    return row | {"mode": "vmap" if summary["lanes"] > 1 else "sequential"} | about


def outcome_of(row: Json) -> str:
    """The result of a member that has ended, in one line."""
    if row["status"] == "diverged":
        return f"{row['name']}: diverged, {row['diverged']['what']} is not finite at step {row['diverged']['step']}"
    if row["status"] == "pruned":
        return f"{row['name']}: pruned at step {row['pruned']['step']}"
    return f"{row['name']}: validation perplexity {row['valid']['perplexity']:.3f}"


def _csv(rows: Sequence[Json]) -> str:
    """A line for each member, with a column for each overridden field."""
    fields = list(dict.fromkeys(field for row in rows for field in row["overrides"]))
    figures = [(split, name) for split in ("valid", "test") for name in FIGURES]
    about = ["steps", "num_params", "mode", "workdir", "wall_seconds", "tokens_per_second", "train_nll"]
    lines = [["name", "status", *fields, *(f"{split}_{name}" for split, name in figures), *about]]
    for row in rows:
        overridden: list[Value | None] = [row["overrides"].get(field) for field in fields]
        scores = [(row[split] or {}).get(name) for split, name in figures]
        lines.append([row["name"], row["status"], *overridden, *scores, *(row.get(name) for name in about)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
