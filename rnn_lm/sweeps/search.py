"""Searches: sweeps whose members are drawn one after the other, by Optuna, each knowing how earlier ones ended."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from rnn_lm.config import check_config, tokens_of
from rnn_lm.errors import Diverged, UserError
from rnn_lm.files import Json, path_of, read_if_there, read_json
from rnn_lm.interrupts import Stopped, deferred_signals
from rnn_lm.program import cohort_of
from rnn_lm.runs.folder import another_folder, check_only
from rnn_lm.runs.lock import LOCK
from rnn_lm.runs.origin import hashes_of
from rnn_lm.runs.record import OnLine
from rnn_lm.sweeps.lists import Override
from rnn_lm.sweeps.members import Member, Texts, check_members, member_of, name_of
from rnn_lm.sweeps.results import NGRAMS, PLOTS, RESULTS, TABLE, Results, outcome_of, row_of
from rnn_lm.sweeps.sweep import MODES, lines_of, plan, teams_of, train_jobs
from rnn_lm.training.opening import text_lines
from rnn_lm.training.progress import SweepDisplay
from rnn_lm.training.train import remarks

if TYPE_CHECKING:
    from optuna.trial import Trial

    from rnn_lm.sweeps.study import Study

Suggest = Callable[[Any], Override]  # draws the overrides of an optuna.Trial
# Trials that a device is given together where one would leave it idle. They know nothing of each other's results, so
# many more would draw as if at random.
AT_ONCE = 8


def search(
    config: ConfigDict,
    suggest: Suggest,
    workdir: str | Path,
    *,
    storage: str = "",
    command: Sequence[str] = (),
    on_line: OnLine | None = None,
) -> Json:
    """Trains `config` with overrides that Optuna draws, until there are `config.sweep.trials`, or resumes.

    Several processes, on several machines, may search in one folder that they share. The objective is the validation
    loss of a run's best checkpoint in nats per token.

    Args:
      config: what all trials have in common.
      suggest: gets an `optuna.Trial`, draws with its `suggest_float` and others, and returns the overrides of a member.
      workdir: the folder of the search.
      storage: URL of the database that has the study, such as `postgresql+psycopg2://…`; "": a file in the folder.
      command: trains `config` on the command line.
      on_line: as that of `sweep`.

    Returns:
      The content of `results.json`, with the trials of all workers so far.

    Raises:
      UserError: Optuna is missing; `suggest`, the text, the folder or the storage is invalid.
      Diverged: all trials diverged.
      Stopped: SIGTERM or SIGINT came; the runs are saved.
    """
    try:
        from rnn_lm.sweeps.storage import in_our_words
        from rnn_lm.sweeps.study import Study, probe
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("a search needs the package optuna: pip install 'rnn_lm[search]'") from error
    workdir = path_of(workdir)
    members = _Members(config, suggest, workdir)
    _check_search_folder(workdir)
    with in_our_words():
        probe(members.draw, config)
        hashes = hashes_of(members.base.corpus, members.base.origin)
        with closing(Study(workdir, config, hashes, storage)) as study:
            return _work(study, members, workdir, command, on_line)


def _work(study: "Study", members: "_Members", workdir: Path, command: Sequence[str], on_line: OnLine | None) -> Json:
    """Trains trials until none is left to be drawn or taken up."""
    config, results = members.config, _SearchResults(workdir, members, study, command)
    results.write()

    def end(row: Json) -> None:
        study.tell(members.numbers[row["name"]], row["status"], (row["valid"] or {}).get("nll"))
        results.add(row)

    def prune(member: Member, step: int, nll: float) -> bool:
        return study.prune(members.numbers[member.name], step, nll)

    with deferred_signals() as pending:
        teams, display = teams_of(jax.local_devices(), members.base.config.mesh.data), _display_of(members, study)
        jobs = _Jobs(study, members, len(teams), end, display)
        try:
            train_jobs(
                jobs,
                display,
                workdir / NGRAMS,
                stop=lambda: bool(pending.signum),
                on_end=end,
                on_line=lines_of(on_line),
                teams=teams,
                prune=prune,
            )
        finally:
            results.write(importances=True)
        if pending.signum:
            ended, trials = sum(trial.ended for trial in study.trials()), config.sweep.trials
            raise Stopped(
                pending.signum,
                f"stopped: {ended} of {trials} trials ended, the others saved; run the same command to resume",
            )
    result = read_json(workdir / RESULTS)
    if result["members"] and all(row["status"] == "diverged" for row in result["members"]):
        raise Diverged(f"all trials of the search diverged; see {workdir / RESULTS}; try smaller learning rates")
    return result


class _Members:
    """The members of a search by the numbers of their trials. All its threads may use it."""

    def __init__(self, config: ConfigDict, suggest: Suggest, workdir: Path):
        self.config, self.workdir = config, workdir
        self._suggest = suggest
        check_config(config)
        self._texts: Texts = {}
        self._members: dict[int, Member] = {}
        self._checked: set[tuple] = set()
        self.numbers: dict[str, int] = {}  # by the names of members
        self.base = self._of({}, "the config of the search")

    def draw(self, trial: "Trial") -> Override:
        """The overrides of a trial that is being drawn, checked."""
        given = self._suggest(trial)
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise UserError(f"search(trial) returned {given!r}; it must return a dict, field name → value")
        member = self._of(given, f"trial {trial.number} of the search")
        if (cohort := cohort_of(member.config)) not in self._checked:  # that it can be trained
            check_members([member], self.workdir)
            self._checked.add(cohort)
        return member.overrides

    def of(self, number: int, overrides: Override) -> Member:
        """The member of a trial that was drawn."""
        if number not in self._members:
            member = self._of(overrides, f"trial {number} of the search")
            # The number makes the name unique; four digits of what was drawn are enough then.
            digits = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in member.overrides.items()}
            name = f"{number:04},{name_of(digits)}"
            self._members[number] = replace(member, name=name, workdir=self.workdir / name)
            self.numbers[name] = number
        return self._members[number]

    def _of(self, overrides: Override, what: str) -> Member:
        return member_of(self.config, overrides, self.workdir, self._texts, what)


class _Jobs(Iterator[list[Member]]):
    """The jobs of a search, drawn when a device is free. Threads may share it."""

    def __init__(
        self,
        study: "Study",
        members: _Members,
        teams: int,
        end: Callable[[Json], None],
        display: SweepDisplay,
    ):
        self._study, self._members, self._teams, self._end, self._display = study, members, teams, end, display
        self._ready: list[list[Member]] = []  # trials that were drawn together, but do not share a program
        self._lock = threading.Lock()

    def __next__(self) -> list[Member]:
        with self._lock:
            if not self._ready:
                self._ready = plan(self._asked(), 1)
            if not self._ready:
                raise StopIteration
            return self._ready.pop(0)

    def _asked(self) -> list[Member]:
        """As many trials as one device trains at once. Those that have ended already are told."""
        config, asked = self._members.config, list[Member]()
        size = 1
        if MODES[config.sweep.mode](config):
            left = config.sweep.trials - len(self._study.trials())
            size = max(1, min(AT_ONCE, math.ceil(left / self._teams)))
        while len(asked) < size and (trial := self._study.ask(self._members.draw)):
            member = self._members.of(trial.number, trial.overrides or {})
            tokens = tokens_of(member.config)
            self._display.expect(tokens - tokens_of(self._members.base.config))  # a trial may have other steps or rows
            if trial.repeats is not None:
                self._display.resume(tokens)
                self._display.end(f"{member.name}: as trial {trial.repeats}, which has the same overrides")
            elif member.ended:  # a worker died before it told how
                row = row_of(member)
                self._end(row)
                self._display.resume(tokens)
                self._display.end(outcome_of(row))
            else:
                asked.append(member)
        return asked


class _SearchResults(Results):
    """The results of all trials of a study, whoever trains them."""

    def __init__(self, workdir: Path, members: _Members, study: "Study", command: Sequence[str]):
        super().__init__(workdir, [], command)
        self._of, self._study, self._sweep = members.of, study, members.config.sweep
        self._importances: dict[str, float] = {}

    def write(self, *, importances: bool = False) -> None:
        """`importances`: with these, too; no other thread may run."""
        if importances:
            self._importances = self._study.importances()
        super().write()

    def rows(self) -> list[Json]:
        """Those of all trials that were drawn. If a worker died while it drew one, the next worker draws it first."""
        drawn = {trial.number: trial for trial in self._study.trials() if trial.overrides is not None}
        rows: list[Json] = []
        for number, trial in drawn.items():
            overrides = trial.overrides or {}
            own = self._of(number, overrides)
            if trial.repeats is None:
                rows.append(self._row_of(own) | {"trial": number})
            else:
                original = self._of(trial.repeats, overrides)
                about = {"trial": number, "name": own.name, "repeats": original.name}
                rows.append(self._row_of(original) | about)
        return rows

    def about(self, rows: Sequence[Json]) -> Json:
        """The history of the finished trials in the order in which they ended, and what the loss depends on."""
        best, history = math.inf, []
        for number, nll in self._study.values():
            best = min(best, nll)
            history.append({"trial": number, "nll": nll, "best": best})
        about = {"trials": self._sweep.trials, "sampler": self._sweep.sampler, "pruner": self._sweep.pruner}
        return {"search": about | {"importances": self._importances, "history": history}}


def _check_search_folder(workdir: Path) -> None:
    """Raises UserError unless `workdir` is absent, empty, or the folder of a search."""
    from rnn_lm.sweeps.study import JOURNAL, STUDY, WORKERS

    try:
        if read_if_there(workdir / RESULTS):
            raise UserError(f"--workdir={workdir} belongs to a sweep that is not a search; {another_folder(workdir)}")
        check_only(workdir, {RESULTS, TABLE, NGRAMS, PLOTS, LOCK, JOURNAL, STUDY, WORKERS}, "a search")
    except UserError:
        if not (workdir / STUDY).exists():  # asked last: another worker may be filling the folder
            raise


def _display_of(members: _Members, study: "Study") -> SweepDisplay:
    """The display of a search, which says first what the trials are trained on, as far as they do not vary it."""
    base, trials = members.base, members.config.sweep.trials
    tokens = tokens_of(base.config)
    ended = sum(trial.ended for trial in study.trials())
    display = SweepDisplay(trials, trials * tokens, finished=ended, before=ended * tokens)
    for line in (*text_lines(base.corpus, base.origin), *remarks(base.config)):
        display.message(line)
    return display
