"""The training loop on the host: dispatch compiled steps, log, evaluate, save."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import rnn_lm
from rnn_lm.config import tokens_per_step
from rnn_lm.data.batches import Batches
from rnn_lm.inference.evaluate import evaluate_members
from rnn_lm.inference.generate import generate_members
from rnn_lm.keys import named_key
from rnn_lm.members import Members
from rnn_lm.mesh import ONE_DEVICE, DataMesh
from rnn_lm.nn.models import LanguageModel
from rnn_lm.processes import is_first, largest, of_first
from rnn_lm.program import Numbers, model_of
from rnn_lm.training.progress import Display
from rnn_lm.training.run import Run
from rnn_lm.training.step import Means, Report, specs_of, train_steps

DISPATCH_SECONDS = 0.5  # long enough to hide the cost of Python, short enough to stop and to show progress
EVAL_STREAMS = 32  # parallel streams of an evaluation during training
SAMPLE_PROMPT, SAMPLE_LENGTH = 32, 300  # tokens


@dataclass
class Stopwatch:
    """Measures the speed of training."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, steps: int, seconds: float) -> None:
        self.steps += steps
        self.seconds += seconds

    def speed(self, tokens_per_step: int) -> float | None:
        """Tokens per second; None before the first step."""
        return self.steps * tokens_per_step / self.seconds if self.steps else None


class Trainer:
    """Trains runs that share a program, all at once. Runs that resume from a later step wait for the others."""

    def __init__(
        self, runs: Sequence[Run], batches: Batches, mesh: DataMesh = ONE_DEVICE, *, started: float = rnn_lm.STARTED
    ):
        """Opens the folders of the runs. The minibatches are on the devices of `mesh`.

        Their summaries count seconds from `started`.
        """
        self.runs, self.started = runs, started
        self.config, self.program = runs[0].config, runs[0].program  # runs differ only in numbers
        self.members, self.mesh = Members(len(runs)), mesh
        self._static = {"program": self.program, "members": self.members, "mesh": mesh}
        self._batches = batches
        states = []
        with ExitStack() as opened:
            for run in runs:
                states.append(run.open())
                opened.callback(run.close)
            self._opened = opened.pop_all()
        self.state = mesh.put(self.members.stack(states), specs_of(self.members))
        self.first_step = min((run.first_step for run in runs if run.going), default=self.config.steps)
        self.seconds_to_first_step: float | None = None
        self.total, self._since_log = Stopwatch(), Stopwatch()  # both without the first dispatch, which compiles
        self._freeze()

    def run(self, stop: Callable[[], bool], display: Display) -> None:
        """Trains to the last step or until `stop()` is true, and saves.

        The host handles the report of one dispatch while the device runs the next. The device waits for the host only
        when the state is evaluated or saved.
        """
        config, step, size = self.config, self.first_step, 1
        self.display = display
        previous: tuple[int, int, Report, float] | None = None
        with closing(display):
            while step < config.steps and any(run.going for run in self.runs):
                start, step = step, min(step + size, *self._events_after(step), config.steps)
                launched = time.perf_counter()
                report = self.dispatch(step)
                if self._due(step, config.log_every):
                    self._forget_means(step)
                if previous is not None:
                    size = self._handle(*previous, size)
                    launched = time.perf_counter()  # when the dispatch before it ended
                previous = (start, step, report, launched)
                stopping = bool(largest(stop()))
                evaluating, saving = self._due(step, config.eval_every), self._due(step, config.save_every)
                if evaluating or saving or stopping or jax.process_count() > 1:  # which wait for each other anyway
                    size = self._handle(*previous, size)
                    previous = None
                    better = self._evaluate(step) if evaluating else []
                    for i, run in self._at(step):
                        if saving or stopping or run in better or run.has_enough:
                            run.save(step, self.mesh.get(self.members.member(self.state, i)))
                            run.stopped = run.has_enough
                    self._freeze()
                    if stopping:
                        return

    def dispatch(self, until: int) -> Report:
        """Starts the steps up to number `until` on the device. Returns their report without waiting for it."""
        self.state, report = train_steps(*self._arguments(until), **self._static)
        return report

    def traced(self) -> jax.stages.Traced:
        """The program that `dispatch` runs."""
        return train_steps.trace(*self._arguments(0), **self._static)

    def _arguments(self, until: int) -> tuple[Any, ...]:
        step, numbers = self.mesh.put(jax.device_put((np.int32(until), self._numbers())))
        return self.state, step, self._batches, numbers

    def close(self) -> None:
        """Finishes pending writes and closes the files of the runs."""
        self._opened.close()

    def _numbers(self) -> Numbers:
        """The current numbers of all runs, on the host."""
        numbers = [run.numbers for run in self.runs]
        return numbers[0] if len(numbers) == 1 else jax.tree.map(lambda *values: np.stack(values), *numbers)

    def _at(self, step: int) -> list[tuple[int, Run]]:
        """The runs that were trained up to `step`, each with its index."""
        return [(i, run) for i, run in enumerate(self.runs) if run.going and run.first_step < step]

    def _freeze(self) -> None:
        """Stops the members whose runs have ended."""
        going = np.array([run.going for run in self.runs]).reshape(self.state.finite.shape)
        self.state = replace(self.state, finite=self.state.finite & going)

    def _forget_means(self, step: int) -> None:
        """Resets the means of the runs that have reached `step`; runs ahead of it keep theirs."""
        means = self.mesh.put(self.members.stack([Means.none() for _ in self.runs]))
        if any(ahead := [run.first_step >= step for run in self.runs]):
            keep = np.array(ahead).reshape(self.state.step.shape)
            means = jax.tree.map(lambda old, none: jnp.where(keep, old, none), self.state.means, means)
        self.state = replace(self.state, means=means)

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _events_after(self, step: int) -> list[int]:
        """The next steps at which to log, evaluate and save."""
        intervals = (self.config.log_every, self.config.eval_every, self.config.save_every)
        return [(step // every + 1) * every for every in intervals if every > 0]

    def _handle(self, start: int, step: int, report: Report, launched: float, size: int) -> int:
        """Waits for a dispatch and logs it. Returns the number of steps for the next one."""
        report = jax.device_get(report)
        seconds = largest(time.perf_counter() - launched)  # all processes take as many steps in the next dispatch
        first = self.seconds_to_first_step is None
        if first:
            self.seconds_to_first_step = time.perf_counter() - self.started
        else:
            self.total.add(step - start, seconds)
            self._since_log.add(step - start, seconds)
        tokens = tokens_per_step(self.config)
        logging, speed = self._due(step, self.config.log_every), self._since_log.speed(tokens)
        for i, run in self._at(step):
            its = self.members.member(report, i)
            if logging or not its["finite"]:
                self.display.train_perplexity = run.log_train(its, speed)["perplexity"]
            run.seen_step = max(run.seen_step, int(its["step"]) - (1 if its["finite"] else 2))
            if not its["finite"]:
                run.diverge(int(its["step"]), "the perplexity or a gradient")
        if logging:
            self._since_log = Stopwatch()
        if first or not self._at(step):  # the first dispatch compiles
            return size
        seconds_per_step = seconds / (step - start)
        self.display.update(step, len(self.runs) * tokens / seconds_per_step, seconds_per_step)
        return max(1, min(4 * size, int(DISPATCH_SECONDS / seconds_per_step)))

    def _samples(self, step: int, prompt: np.ndarray) -> list[np.ndarray]:
        keys = [named_key(run.config.seed, "sample", step) for run in self.runs]
        models = self._models(self.mesh.first(self.state.params))
        return generate_members(models, prompt, SAMPLE_LENGTH, keys=keys)

    def _models(self, params: nnx.State) -> list[LanguageModel]:
        return [model_of(self.program, each) for each in self.members.unstack(params)]

    @property
    def eval_ids(self) -> np.ndarray:
        """The part of the validation text that evaluations read."""
        ids = self.runs[0].corpus.valid.ids
        return ids[: self.config.eval_tokens + 1] if self.config.eval_tokens else ids

    def _evaluate(self, step: int) -> list[Run]:
        """Logs the validation loss and a sample of each run. Returns the runs with a new best loss."""
        ids, prompt = self.eval_ids, self.runs[0].corpus.valid.ids[:SAMPLE_PROMPT]
        # All members, so that rounding does not depend on which of them wait or have ended.
        models = self._models(self.state.params)
        scores = evaluate_members(models, ids, reset_every=-(-(len(ids) - 1) // EVAL_STREAMS), mesh=self.mesh)
        samples = self._samples(step, prompt) if is_first() else None
        better = []
        for i, run in self._at(step):
            nll = of_first(scores[i].nll)  # sums on other kinds of CPU round differently
            perplexity = run.log_valid(step, nll)["perplexity"]
            if run.diverged:
                continue
            self.display.valid_perplexity = perplexity
            if samples is not None:
                text = run.corpus.vocabulary.decode([*prompt, *samples[i][0]])
                run.log_sample(step, perplexity, text)
                prompted = f"after {len(prompt)} tokens of the validation text (perplexity {perplexity:.2f})"
                self.display.message(f"\n--- a sample at step {step}, {prompted}\n{text}\n")
            if run.better(step, nll):
                better.append(run)
        return better
