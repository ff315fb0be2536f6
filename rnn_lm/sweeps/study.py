"""An Optuna study that many workers share: who draws, who trains which trial, and whose trials are left behind.

Optuna's own heartbeat works only inside `Study.optimize`, which trains one trial at a time. Here each worker locks a
file for as long as its process lives, and a running trial whose worker's lock is free is taken up by another worker.
"""

import fcntl
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, BruteForceSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, get_field
from rnn_lm.files import ALONE, Json, alone_in, read_if_there, write_json
from rnn_lm.runs.folder import MAY_CHANGE, Hashes, another_folder
from rnn_lm.sweeps.storage import database, journal

JOURNAL, STUDY, WORKERS = "study.log", "study.json", "workers"  # in the folder of a search
# Fields that a run may change when it is resumed, but which a trial's value depends on.
COMPARED = ("steps", "eval_every", "stop_patience")
WORKER, OVERRIDES, REPEATS = "worker", "overrides", "repeats"  # attributes of trials
CONFIG, FOLDER, EXHAUSTED = "config", "folder", "exhausted"  # and of the study

# What a trial that ended is for Optuna. One that diverged is a pruned one: TPE counts it among the bad ones, where it
# would ignore a failed one and draw there again, and no finite loss has to be made up for it.
STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}


def _tpe(seed: int) -> BaseSampler:
    """Optuna's defaults, but for `group`, written out so that a newer Optuna does not change a search."""
    return TPESampler(
        n_startup_trials=10,  # random ones before the first estimate
        n_ei_candidates=24,  # draws from the good trials' density, of which the most promising is taken
        multivariate=True,  # fields are estimated together, since the best rate depends on the size
        group=True,  # also where a field is drawn in some trials only
        constant_liar=True,  # running trials count as bad, so that workers do not draw the same
        seed=seed,
    )


# sweep.sampler → the sampler.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": RandomSampler, "grid": BruteForceSampler}
# sweep.pruner → the pruner of runs of so many steps. High learning rates are behind at first.
PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "median": lambda steps: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=steps // 4),
    "none": lambda steps: optuna.pruners.NopPruner(),
}


@dataclass(frozen=True)
class Drawn:
    """A trial as others see it."""

    number: int
    overrides: Json | None  # None: being drawn
    repeats: int | None  # the number of an earlier trial with the same overrides, which is not trained twice
    ended: bool


class Study:
    """The study of a search's folder, for one worker. Threads may use it."""

    def __init__(self, workdir: Path, config: ConfigDict, hashes: Hashes, storage: str):
        """Opens the study, or makes it. `storage` is the URL of a database; "": a file in the folder.

        Raises:
          UserError: the storage cannot be used, or the study is of another config or folder.
        """
        self._config, self._workers = config, workdir / WORKERS
        self._is_grid = config.sweep.sampler == "grid"
        self._trials: dict[int, Trial] = {}  # that this worker trains
        self._reported: dict[int, set[int]] = {}  # the steps of theirs that other workers have reported
        self.worker = uuid4().hex
        opened = database(storage) if storage else None
        self._workers.mkdir(parents=True, exist_ok=True)
        with alone_in(self._workers):
            try:
                self._study = self._open(workdir, opened, hashes)
            except UserError:
                if not (workdir / STUDY).exists():  # nothing is left behind
                    with suppress(OSError):
                        (self._workers / ALONE).unlink()
                        self._workers.rmdir()
                        workdir.rmdir()
                raise
            for path in self._workers.iterdir():
                if path.name != ALONE and not self._is_alive(path.name):
                    path.unlink()
            self._lock = os.open(self._workers / self.worker, os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Leaves trials that are still running to other workers."""
        with alone_in(self._workers):
            (self._workers / self.worker).unlink(missing_ok=True)
            os.close(self._lock)  # unlocks

    def ask(self, draw: Callable[[Trial], Json]) -> Drawn | None:
        """A trial of a worker that has died, or a new one; None: all are drawn.

        `draw` makes the overrides of a trial. Asking is one worker's at a time, so that all draws know of each other.
        """
        with alone_in(self._workers):
            trials = self._all()
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._is_left(trial, trials):
                    # A worker may have died before its trial was drawn, or while it was.
                    self._sample_for(trial.number)
                    return self._draw(Trial(self._study, trial._trial_id), draw, trials)
            searched = self._is_grid and EXHAUSTED in self._study.user_attrs  # other samplers may go on
            if searched or len(trials) >= self._config.sweep.trials:
                return None
            self._sample_for(len(trials))
            return self._draw(self._study.ask(), draw, trials)

    def _draw(self, trial: Trial, draw: Callable[[Trial], Json], trials: list[FrozenTrial]) -> Drawn:
        trial.set_user_attr(WORKER, self.worker)
        if OVERRIDES not in trial.user_attrs:
            overrides = draw(trial)
            for other in trials[: trial.number]:
                if other.user_attrs.get(OVERRIDES) == overrides and REPEATS not in other.user_attrs:
                    trial.set_user_attr(REPEATS, other.number)
                if self._is_grid and other.params == trial.params:
                    self._study.set_user_attr(EXHAUSTED, True)  # what is left of it is being trained
            trial.set_user_attr(OVERRIDES, overrides)
        ended = False
        if (repeats := trial.user_attrs.get(REPEATS)) is None:
            self._trials[trial.number] = trial
            # A run that is resumed evaluates again what a worker that died has reported.
            before = trials[trial.number : trial.number + 1]  # none: the trial is new
            self._reported[trial.number] = {step for known in before for step in known.intermediate_values}
        else:
            ended = trials[repeats].state.is_finished()
            self._settle(trials[repeats], [trial.number])
        return Drawn(trial.number, trial.user_attrs[OVERRIDES], repeats, ended)

    def _is_left(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> bool:
        """Whether nobody trains a running trial, or nobody has told the result that it repeats."""
        if (original := trial.user_attrs.get(REPEATS)) is not None and OVERRIDES in trial.user_attrs:
            return trials[original].state != TrialState.RUNNING
        worker = trial.user_attrs.get(WORKER, "")
        return worker != self.worker and not (worker and self._is_alive(worker))

    def _is_alive(self, worker: str) -> bool:
        """Whether the process of a worker holds its lock. Such a lock ends with its process, however that ends."""
        try:
            handle = os.open(self._workers / worker, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(handle)

    def _sample_for(self, number: int) -> None:
        """A sampler for one trial: its draws depend on the seed, its number and the trials before, on no worker."""
        seed = int(np.random.SeedSequence([self._config.seed, number]).generate_state(1)[0])
        self._study.sampler = SAMPLERS[self._config.sweep.sampler](seed)

    def tell(self, number: int, status: str, nll: float | None) -> None:
        """Tells how a trial has ended, and all that repeat it."""
        with alone_in(self._workers):
            self._tell(number, STATES[status], nll)
            self._trials.pop(number, None)
            trials = self._all()
            self._settle(trials[number], [t.number for t in trials if t.user_attrs.get(REPEATS) == number])

    def _settle(self, original: FrozenTrial, repeats: list[int]) -> None:
        """Tells the trials that repeat one which has ended, if it has."""
        if original.state != TrialState.RUNNING:
            for number in repeats:
                self._tell(number, original.state, original.value)

    def _tell(self, number: int, state: TrialState, value: float | None) -> None:
        try:
            is_complete = state == TrialState.COMPLETE
            self._study.tell(number, value if is_complete else None, state=state, skip_if_finished=True)
        except RuntimeError:  # with no combination left, the grid stops `optimize`, which is not used here
            if not self._is_grid:
                raise
            self._study.set_user_attr(EXHAUSTED, True)

    def prune(self, number: int, step: int, nll: float) -> bool:
        """Reports a validation loss. Returns whether to give the trial up."""
        trial = self._trials[number]
        if step not in self._reported[number]:
            trial.report(nll, step)
        return trial.should_prune()

    def trials(self) -> list[Drawn]:
        """All trials so far, by number."""
        return [_drawn(trial) for trial in self._all()]

    def values(self) -> list[tuple[int, float]]:
        """The numbers and losses of the trials that finished, in the order in which they did."""
        finished = [trial for trial in self._all() if trial.state == TrialState.COMPLETE]
        finished.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        return [(trial.number, trial.values[0]) for trial in finished]

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def importances(self) -> dict[str, float]:
        """How much each parameter matters for a low loss, by PED-ANOVA (Watanabe et al. 2023); the shares sum to 1.

        It compares the best tenth of the finished trials with the whole range, not with all trials: those of TPE are
        much like the best ones. Empty for fewer than ten trials.
        """
        finished = [trial for trial in self._all() if trial.state == TrialState.COMPLETE]
        if len(finished) < 10:
            return {}
        with warnings.catch_warnings():  # of what cannot tell much
            warnings.simplefilter("ignore")
            evaluator = PedAnovaImportanceEvaluator(evaluate_on_local=False)
            return get_param_importances(self._study, evaluator=evaluator)

    def _open(self, workdir: Path, storage: BaseStorage | None, hashes: Hashes) -> optuna.Study:
        """The study of the folder, which knows its name. The study knows the folder's number and the config."""
        there = read_if_there(workdir / STUDY)
        if not storage and there and there.get("made") and not (workdir / JOURNAL).exists():
            raise _not_there(workdir)
        opened = storage or journal(workdir / JOURNAL)
        ours = there or {"name": workdir.resolve().name if storage else "search", "folder": uuid4().hex}
        pruner = PRUNERS[self._config.sweep.pruner](self._config.steps)
        try:
            study = optuna.load_study(study_name=ours["name"], storage=opened, pruner=pruner)
        except KeyError:
            if there and there.get("made"):
                raise _not_there(workdir) from None
            write_json(workdir / STUDY, ours)
            study = optuna.create_study(study_name=ours["name"], storage=opened, pruner=pruner)
            study.set_user_attr(FOLDER, ours["folder"])
        if study.user_attrs.get(FOLDER) not in (None, ours["folder"]) or (study.trials and not there):
            raise UserError(
                f"the storage has a study {ours['name']} of another folder; workers of one search share their folder, "
                f"and another search needs another name: {another_folder(workdir)}"
            )
        identity = identity_of(self._config, hashes)
        different = _differences(study.user_attrs.get(CONFIG, identity), identity)
        if different:
            raise UserError(
                f"--workdir={workdir} has a search of another config: {'; '.join(different)}; {another_folder(workdir)}"
            )
        study.set_user_attr(FOLDER, ours["folder"])
        study.set_user_attr(CONFIG, identity)
        write_json(workdir / STUDY, ours | {"made": True})
        return study


def _drawn(trial: FrozenTrial) -> Drawn:
    told = trial.user_attrs
    return Drawn(trial.number, told.get(OVERRIDES), told.get(REPEATS), trial.state.is_finished())


def _not_there(workdir: Path) -> UserError:
    return UserError(
        f"--workdir={workdir} has a study which is not in this storage; give the --storage that it was started with, "
        f"or {another_folder(workdir)}"
    )


def identity_of(config: ConfigDict, hashes: Hashes) -> Json:
    """What all trials of a study have in common, so that their losses may be compared."""
    ignored = {"corpus.source", "corpus.path", "init_from", *MAY_CHANGE} - {*COMPARED}
    fields = {name: get_field(config, name) for name in FIELDS if name not in ignored}
    return fields | {"text": hashes.text, "weights of init_from": hashes.weights}


def _differences(there: Json, here: Json) -> list[str]:
    """Fields that an older version did not have have their default."""
    pairs = {name: (there.get(name, FIELDS[name].default if name in FIELDS else ""), here[name]) for name in here}
    return [f"{name} is {a!r} there, {b!r} here" for name, (a, b) in pairs.items() if a != b]


def probe(draw: Callable[[Trial], Json], config: ConfigDict) -> None:
    """One draw outside any study, which finds mistakes before anything is written."""
    draw(optuna.create_study(sampler=SAMPLERS[config.sweep.sampler](config.seed)).ask())
