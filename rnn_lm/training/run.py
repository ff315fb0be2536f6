"""A run during training: its config, record and checkpoints. The loop has its arrays."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rnn_lm.config import tokens_per_step
from rnn_lm.data.corpus import Corpus
from rnn_lm.errors import UserError
from rnn_lm.files import Json, write_json
from rnn_lm.inference.evaluate import MAX_NLL, figures
from rnn_lm.processes import is_first
from rnn_lm.program import Numbers, program_of
from rnn_lm.runs.checkpoints import Checkpoints, fill_tree
from rnn_lm.runs.folder import CHECKPOINTS, DIVERGED, PRUNED, has_ended, write_identity
from rnn_lm.runs.origin import Origin, hashes_of
from rnn_lm.runs.record import OnLine, Record, metric_lines
from rnn_lm.training.step import Report, TrainState, new_state


@dataclass
class Best:
    """The best evaluation so far, and the state of the plateau schedule."""

    step: int | None = None
    nll: float = float("inf")
    waited: int = 0  # evaluations since the best one or the last decay
    plateau_factor: float = 1.0

    def update(self, step: int, nll: float, config: ConfigDict) -> bool:
        """Records an evaluation. Returns whether it is the new best."""
        if nll < self.nll:
            self.step, self.nll, self.waited = step, nll, 0
            return True
        self.waited += 1
        if self.waited > config.optimizer.patience:
            self.waited = 0
            self.plateau_factor *= config.optimizer.decay_factor
        return False


class Run:
    """A run in progress. If it has `ended` in an earlier process (done, diverged, pruned), its folder stays."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        corpus: Corpus,
        origin: Origin | None = None,
        *,
        alone: bool = True,
        on_line: OnLine | None = None,
        prune: Callable[[int, float], bool] = lambda step, nll: False,
    ):
        """`origin`: the weights to start from.

        `alone`: the only run of this process; it is trained even if its folder says that it has ended.
        `prune` gets the step and the validation loss of each evaluation but the last, and says whether to give up.
        """
        self.config, self.workdir, self.corpus, self.origin = config, workdir, corpus, origin
        self.program, self._numbers = program_of(config, len(corpus.vocabulary))
        self.ended = not alone and has_ended(workdir, config)
        self._alone, self._on_line, self._prune = alone, on_line, prune
        self.diverged = ""  # or the reason
        self.best = Best()
        self.first_step, self.saved_step = 0, -1  # −1: none
        self.seen_step = -1  # the last one whose parameters are known to have a finite loss
        self.since_best = 0  # evaluations
        self._is_open = False
        self.pruned = False
        self.stopped = False  # early, as it had enough

    @property
    def numbers(self) -> Numbers:
        """The current arguments of the compiled step."""
        return self._numbers._replace(plateau_factor=self.best.plateau_factor).arrays()

    @property
    def going(self) -> bool:
        """Whether it is still to be trained."""
        return not (self.ended or self.diverged or self.stopped)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `stop_patience` evaluations were no better than the best one before."""
        return 0 < self.config.stop_patience <= self.since_best

    @property
    def has_enough(self) -> bool:
        """Whether it should stop early."""
        return self.pruned or self.out_of_patience

    def better(self, step: int, nll: float) -> bool:
        """Records an evaluation, which may prune the run. Returns whether it is the new best."""
        if step < self.config.steps and self._prune(step, nll):
            self.pruned = True
            write_json(self.workdir / PRUNED, {"step": step, "nll": nll})
        better = self.best.update(step, nll, self.config)
        self.since_best = 0 if better else self.since_best + 1
        return better

    def open(self) -> TrainState:
        """Returns the state of the latest checkpoint, or a new one, and opens the folder for writing."""
        new = partial(new_state, self.program)
        with closing(Checkpoints(self.workdir / CHECKPOINTS, read_only=True)) as checkpoints:
            if steps := checkpoints.steps():
                self.first_step = self.saved_step = steps[-1]
                arrays, notes = checkpoints.restore(self.saved_step)
                state = fill_tree(jax.eval_shape(new, self.numbers), arrays)
                self.best = Best(**notes["best"])
            else:
                start = partial(self.origin.put_into, program=self.program) if self.origin else None
                state = new(self.numbers, start)
        if self.first_step > self.config.steps:
            raise UserError(
                f"--workdir={self.workdir} is already at step {self.first_step}; set --config.steps to at least that"
            )
        if not self.ended:
            if is_first():
                hashes = hashes_of(self.corpus, self.origin)
                write_identity(self.workdir, self.config, self.corpus.vocabulary, hashes)
                self._record = Record(self.workdir, self.first_step, self._on_line)
            self._checkpoints = Checkpoints(self.workdir / CHECKPOINTS, background=self._alone)
            self._is_open = True
            evaluated = [line["step"] for line in metric_lines(self.workdir, "valid")]
            evaluated = [step for step in evaluated if step <= self.first_step]  # later lines are being cut
            self.since_best = sum(step > (self.best.step or 0) for step in evaluated)
            self.stopped = self.out_of_patience
            self.seen_step = self.first_step - (self.first_step not in evaluated)
        return state

    def close(self) -> None:
        """Finishes pending writes."""
        if self._is_open:
            self._is_open = False
            self._checkpoints.close()

    def log_train(self, report: Report, tokens_per_second: float | None) -> Json:
        """Logs the means since the last train line. Returns the new line."""
        line = self._line(int(report["step"]), "train")
        means = {name: float(value) for name, value in report["means"].values.items()}
        line |= figures(means.pop("nll"), self.corpus.train.tokens_per_character)
        line |= means if self.config.optimizer.clip_norm else {"grad_norm": means["grad_norm"]}
        line["learning_rate"] = float(report["learning_rate"])
        if tokens_per_second:
            line["tokens_per_second"] = tokens_per_second
        self._write(line)
        return line

    def log_valid(self, step: int, nll: float) -> Json:
        """Logs an evaluation. Returns the line."""
        line = self._line(step, "valid") | figures(nll, self.corpus.valid.tokens_per_character)
        self._write(line)
        if nll < MAX_NLL:
            self.seen_step = step
        else:
            self.diverge(step, "the validation perplexity")
        return line

    def log_sample(self, step: int, perplexity: float, text: str) -> None:
        self._record.write_sample(step, perplexity, text)

    def save(self, step: int, state: TrainState) -> None:
        """Saves a state that is on the host."""
        if step == self.saved_step:
            return
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.carry))):
            self.diverge(step, "a parameter")
            return
        self._checkpoints.save(step, state, {"best": vars(self.best)})
        self.saved_step = step

    def diverge(self, step: int, what: str) -> None:
        """Records that `what` is not finite. Keeps the last checkpoint whose loss was seen to be finite."""
        if is_first():
            write_json(self.workdir / DIVERGED, {"step": step, "what": what})
        if self.saved_step > self.seen_step and self._is_open:
            self.saved_step = self._checkpoints.delete_after(self.seen_step)
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step >= 0 else "no checkpoint is kept"
        self.diverged = f"{what} is not finite at step {step}; {kept}"

    def _write(self, line: Json) -> None:
        if is_first():
            self._record.write(line)

    def _line(self, step: int, split: str) -> Json:
        return {"step": step, "tokens": step * tokens_per_step(self.config), "split": split}
