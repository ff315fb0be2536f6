"""Training: config → run folder. The compiled steps are in `step`; this is what the host does around them."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import rnn_lm
from rnn_lm.data.batches import Batches
from rnn_lm.data.corpus import Corpus, load_corpus
from rnn_lm.errors import Diverged, UserError
from rnn_lm.files import read_json
from rnn_lm.inference.evaluate import evaluate_side_by_side
from rnn_lm.inference.generate import generate_side_by_side
from rnn_lm.interrupts import Stopped, deferred_signals
from rnn_lm.keys import named_key
from rnn_lm.nn import cpu
from rnn_lm.nn.models import LanguageModel
from rnn_lm.training.baselines import Baselines
from rnn_lm.training.config import check_config, program_of, tokens_per_step
from rnn_lm.training.progress import Display, ProgressDisplay
from rnn_lm.training.run import Run, graphdef_of, new_state
from rnn_lm.training.run_folder import NGRAM, SUMMARY, check_folder, locked, read_summary
from rnn_lm.training.step import Means, train_steps, train_steps_side_by_side
from rnn_lm.training.summary import write_summaries

DISPATCH_SECONDS = 0.5  # long enough that Python costs nothing, short enough to stop and to show progress
EVAL_STREAMS = 32  # parallel streams of an evaluation while training
SAMPLE_PROMPT, SAMPLE_LENGTH = 32, 300  # tokens


def train(config: ConfigDict, workdir: str | Path, *, profile: str | Path = "") -> dict[str, Any]:
    """Trains the model that `config` describes in the folder `workdir`; goes on where an earlier call stopped.

    Where `profile` names a folder, a few steps are traced first, beside those of the run; the trace goes there.

    Returns:
      The run's summary, as in its `summary.json`. A finished run returns it at once.

    Raises:
      UserError: where the config, the text or the folder will not do; nothing is left behind then.
      Diverged: at a loss that is not finite; the last good checkpoint stays.
      Stopped: by SIGTERM or SIGINT, after saving.
    """
    workdir = Path(workdir)
    check_config(config)
    prepare(config)
    corpus = load_corpus(**config.corpus)
    batches = batches_of(config, corpus)
    check_folder(workdir, config, corpus)
    summary = read_summary(workdir)
    if profile and Path(profile).exists() and not Path(profile).is_dir():
        raise UserError(f"--profile={profile} is no folder")
    if summary is not None and summary["steps"] >= config.steps:
        if profile:
            raise UserError("--profile: this run has finished; give another --workdir, or more --config.steps")
        print("this run has finished, nothing to do; a larger --config.steps continues it", file=sys.stderr)
        return summary
    for remark in remarks(config):
        print(remark, file=sys.stderr)
    check_memory(config, len(corpus.vocabulary))
    with locked(workdir), Baselines(workdir / NGRAM, corpus) as baselines:
        with deferred_signals() as pending:
            with closing(Trainer([Run(config, workdir, corpus)], batches)) as trainer:
                if profile:
                    from rnn_lm.training.profile import write_trace

                    write_trace(trainer, Path(profile))
                trainer.run(lambda: bool(pending.signum), ProgressDisplay(trainer.first_step, config.steps))
            [run] = trainer.runs
            if run.diverged:
                raise Diverged(
                    f"training diverged: {run.diverged}; "
                    "try a smaller --config.optimizer.learning_rate in a new --workdir"
                )
            if pending.signum:
                step = run.saved_step
                raise Stopped(
                    pending.signum, f"stopped at step {step}, which is saved; the same command goes on from there"
                )
        if not baselines.counted:
            print("counting n-grams …", file=sys.stderr, flush=True)
        baselines.wait()
        print("scoring the best checkpoint on the whole validation and test text …", file=sys.stderr, flush=True)
        trainer.summarize(baselines)
    return read_json(workdir / SUMMARY)


def prepare(config: ConfigDict) -> None:
    """Begins what takes a while and is needed when the first step is traced."""
    if config.model.kind == "rnn" and jax.default_backend() == "cpu":
        threading.Thread(target=cpu.is_available).start()


def remarks(config: ConfigDict) -> Iterator[str]:
    """What is not wrong with a config, but perhaps not meant."""
    if config.truncation.kind in ("segment", "window") and config.truncation.steps >= config.segment_length:
        yield (
            f"note: truncation.steps = {config.truncation.steps} ≥ segment_length = {config.segment_length}: "
            "that is full backpropagation within each window"
        )


def batches_of(config: ConfigDict, corpus: Corpus) -> Batches:
    """What the steps of a run train on."""
    return Batches.of(
        corpus.train.ids,
        batch_size=config.batch_size,
        segment_length=config.segment_length,
        partition=config.partition,
        stride=config.truncation.update_every,
        seed=config.seed,
    )


def check_memory(config: ConfigDict, vocab_size: int) -> None:
    """Refuses what cannot fit: on a CPU, XLA was seen to wait for ever for an allocation that had failed."""
    state = jax.eval_shape(partial(new_state, config, vocab_size))
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = physical_bytes()
    if jax.default_backend() == "cpu" and needed > there:
        raise UserError(
            f"out of memory: the model and its optimizer take {needed / 2**30:,.0f} GiB of this machine's "
            f"{there / 2**30:,.0f}; try a smaller config.model.num_hiddens"
        )


def physical_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lanes_that_fit(runs: Sequence[Run], batches: Batches) -> int:
    """How many of these runs, all of one program, fit into the device side by side, by the compiled program's account.

    Compiles for all of them and, where that is too many, for as many as that compilation promises.
    """
    run, lanes = runs[0], len(runs)
    new = partial(new_state, run.config, len(run.corpus.vocabulary))
    while lanes > 1:
        state, keys = (_shapes_of_lanes(jax.eval_shape(f), lanes) for f in (new, run.keys))
        numbers = {name: jax.ShapeDtypeStruct((lanes,), jnp.float32) for name in run.numbers()}
        seeds = jnp.zeros(lanes, jnp.int32)
        # By the names that the Trainer uses, or it would be compiled again for it.
        given = {"batches": batches, "seeds": seeds, "numbers": numbers, "keys": keys, **static_of(run)}
        needed = _bytes_of(train_steps_side_by_side.lower(state, jnp.int32(0), **given).compile())
        if needed <= (available := available_bytes(*batches.rows.devices())):
            break
        lanes = max(1, min(lanes - 1, lanes * available // needed))
    return lanes


def _shapes_of_lanes(tree: Any, lanes: int) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((lanes, *a.shape), a.dtype), tree)


def _bytes_of(compiled: jax.stages.Compiled) -> int:
    """What a program takes on its device while it runs; 0 where the backend does not say."""
    sizes: Any = compiled.memory_analysis()
    if sizes is None:
        return 0
    inputs, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return inputs + outputs + sizes.temp_size_in_bytes


def available_bytes(device: jax.Device) -> int:
    """The memory that a program may take there: nine tenths of what is free, or of a CPU core's share."""
    if stats := device.memory_stats():
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return int(0.9 * physical_bytes() / jax.local_device_count())


def static_of(run: Run) -> dict[str, Any]:
    """What a program is compiled for."""
    config = run.config
    return {
        "graphdef": graphdef_of(program_of(config), len(run.corpus.vocabulary)),
        "optimizer": config.optimizer.name,
        "schedule": config.optimizer.schedule,
        "truncation": config.truncation.kind,
        "truncation_steps": config.truncation.steps,
        "remat": config.remat,
    }


class Trainer:
    """Runs of one program in progress: their states on the device, their folders, and the loop between them.

    One run's state is as it is. Of several, trained side by side, each array has an axis in front, the runs: their
    `lanes`. Lanes may be at different steps when they are opened; those ahead wait for the others.
    """

    def __init__(self, runs: Sequence[Run], batches: Batches, *, started: float = rnn_lm.STARTED):
        """`batches` are those of any of them. The seconds in summaries count from `started`."""
        self.runs, self.started = runs, started
        self.config = runs[0].config  # of what all runs of a program agree in
        self._side_by_side = len(runs) > 1
        static = static_of(runs[0])
        self.graphdef: nnx.GraphDef = static["graphdef"]
        states = []
        self._opened = ExitStack()
        with ExitStack() as in_case_of_an_error:
            for run in runs:
                states.append(run.open())
                in_case_of_an_error.callback(run.close)
            self._opened = in_case_of_an_error.pop_all()
        self.state = self._together(states)
        self.first_step = min((run.first_step for run in runs if not run.over), default=self.config.steps)
        options = {"keys": self._together([run.keys() for run in runs]), **static}
        if self._side_by_side:
            seeds = jnp.array([run.config.seed for run in runs], jnp.int32)
            self._steps_until = partial(train_steps_side_by_side, batches=batches, seeds=seeds, **options)
        else:
            self._steps_until = partial(
                train_steps, batches=replace(batches, seed=jnp.int32(self.config.seed)), **options
            )
        self._freeze()
        self.seconds_to_first_step: float | None = None
        self._steps, self._seconds = 0, 0.0  # of dispatches after the first, which compiles
        self._line_steps, self._line_seconds = 0, 0.0  # the same since the last train line

    def run(self, stop: Callable[[], bool], display: Display) -> None:
        """Trains to the last step, or until `stop` says so; then the states are saved.

        The host works on the report of one dispatch while the device runs the next, so nothing waits for Python
        except where the state itself is needed: to evaluate and to save.
        """
        config, step, size = self.config, self.first_step, 1
        self.display = display
        previous: tuple[int, int, Any, float] | None = None
        with closing(display):
            while step < config.steps and any(self._going(run) for run in self.runs):
                start, step = step, min(step + size, *self._events_after(step), config.steps)
                launched = time.perf_counter()
                report = self.dispatch(step)
                if self._due(step, config.log_every):
                    self._forget_means(step)
                if previous is not None:
                    size = self._handle(*previous, size)
                    launched = time.perf_counter()  # this dispatch began when the one before it ended
                previous = (start, step, report, launched)
                stopping = stop()
                evaluating, saving = self._due(step, config.eval_every), self._due(step, config.save_every)
                if evaluating or saving or stopping:
                    size = self._handle(*previous, size)
                    previous = None
                    better = self._evaluate(step) if evaluating else []
                    for lane, run in self._at(step):
                        if saving or stopping or run in better:
                            run.save(step, self._lane(self.state, lane))
                    self._freeze()
                    if stopping:
                        return

    def dispatch(self, until: int) -> Any:
        """Has the device take the steps up to number `until`. Returns their report, which it may still be writing."""
        step, numbers = jax.device_put((np.int32(until), self._numbers()))
        self.state, report = self._steps_until(self.state, step, numbers=numbers)
        return report

    def compiled(self) -> jax.stages.Compiled:
        """The program that `dispatch` runs."""
        steps: Any = self._steps_until
        return steps.func.lower(self.state, np.int32(0), numbers=self._numbers(), **steps.keywords).compile()

    def close(self) -> None:
        """Waits for the files that are still being written."""
        self._opened.close()

    def summarize(self, baselines: Baselines) -> None:
        """Writes the summaries of all runs that have just finished."""
        there = [run for run in self.runs if self._going(run)]
        for run in there:
            baselines.share(run.workdir / NGRAM)
        write_summaries(
            [(run.workdir, run.config) for run in there],
            self.runs[0].corpus,
            baselines,
            started=self.started,
            seconds_to_first_step=self.seconds_to_first_step,
            tokens_per_second=self._tokens(self._steps) / self._seconds if self._seconds else None,
            lanes=len(self.runs),
        )

    def model(self, lane: int) -> LanguageModel:
        """The model of one run with the weights of the current step."""
        return nnx.merge(self.graphdef, self._lane(self.state.params, lane))

    def _going(self, run: Run) -> bool:
        return not run.over and not run.diverged

    def _at(self, step: int) -> list[tuple[int, Run]]:
        """The runs that have just come to `step`, and their lanes."""
        return [(lane, run) for lane, run in enumerate(self.runs) if self._going(run) and run.first_step < step]

    def _together(self, trees: Sequence[Any]) -> Any:
        """What each run has, as the compiled step takes it."""
        return jax.tree.map(lambda *lanes: jnp.stack(lanes), *trees) if self._side_by_side else trees[0]

    def _lane(self, tree: Any, lane: int) -> Any:
        """One run's part of it."""
        return jax.tree.map(lambda lanes: lanes[lane], tree) if self._side_by_side else tree

    def _numbers(self) -> dict[str, np.ndarray]:
        """The hyper-parameters that are arguments of the compiled step, as they are now."""
        lanes = [run.numbers() for run in self.runs]
        shape = (len(lanes),) if self._side_by_side else ()
        return {name: np.reshape([its[name] for its in lanes], shape).astype(np.float32) for name in lanes[0]}

    def _freeze(self) -> None:
        """Stops the lanes of runs that are over."""
        going = jnp.array([self._going(run) for run in self.runs]).reshape(self.state.finite.shape)
        self.state = replace(self.state, finite=self.state.finite & going)

    def _forget_means(self, step: int) -> None:
        """Begins the next train line of the runs that come to `step`; those that are ahead of it keep theirs."""
        means = self._together([Means.none() for _ in self.runs])
        if any(ahead := [run.first_step >= step for run in self.runs]):
            keep = jnp.array(ahead).reshape(self.state.step.shape)
            means = jax.tree.map(lambda old, none: jnp.where(keep, old, none), self.state.means, means)
        self.state = replace(self.state, means=means)

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _events_after(self, step: int) -> list[int]:
        """The next steps at which something is to be logged, evaluated or saved."""
        intervals = (self.config.log_every, self.config.eval_every, self.config.save_every)
        return [(step // every + 1) * every for every in intervals if every > 0]

    def _handle(self, start: int, step: int, report: Any, launched: float, size: int) -> int:
        """Waits for a dispatch and logs it. Returns how many steps the next one should have."""
        report = jax.device_get(report)
        seconds = time.perf_counter() - launched
        first = self.seconds_to_first_step is None
        if first:
            self.seconds_to_first_step = time.perf_counter() - self.started
        else:
            self._steps, self._seconds = self._steps + step - start, self._seconds + seconds
            self._line_steps, self._line_seconds = self._line_steps + step - start, self._line_seconds + seconds
        logging = self._due(step, self.config.log_every)
        speed = self._tokens(self._line_steps) / self._line_seconds if self._line_steps else None
        for lane, run in self._at(step):
            its = self._lane(report, lane)
            if logging or not its["finite"]:
                self.display.train_perplexity = run.log_train(its, speed)["perplexity"]
            if not its["finite"]:
                run.diverge(int(its["step"]), "the loss or its gradient")
        if logging:
            self._line_steps, self._line_seconds = 0, 0.0
        if first or not self._at(step):  # the first compiled, so its time says nothing
            return size
        seconds_per_step = seconds / (step - start)
        self.display.update(step, self._tokens(len(self.runs)) / seconds_per_step, seconds_per_step)
        return max(1, min(4 * size, int(DISPATCH_SECONDS / seconds_per_step)))

    def _evaluate(self, step: int) -> list[Run]:
        """Validation loss and a sample of each run. Returns those that are better than before."""
        split = self.runs[0].corpus.valid
        ids = split.ids[: self.config.eval_tokens + 1] if self.config.eval_tokens else split.ids
        prompt = split.ids[:SAMPLE_PROMPT]
        # Of all lanes, those that wait or are over too, so that rounding does not depend on which these are.
        models = [self.model(lane) for lane in range(len(self.runs))]
        keys = [named_key(run.config.seed, "sample", step) for run in self.runs]
        scores = evaluate_side_by_side(models, ids, reset_every=-(-(len(ids) - 1) // EVAL_STREAMS))
        samples = generate_side_by_side(models, prompt, SAMPLE_LENGTH, keys=keys)
        better = []
        for lane, run in self._at(step):
            score, sample = scores[lane], samples[lane]
            perplexity = run.log_valid(step, score.nll)["perplexity"]
            if run.diverged:
                continue
            self.display.valid_perplexity = perplexity
            text = run.corpus.vocabulary.decode([*prompt, *sample])
            run.log_sample(step, perplexity, text)
            self.display.message(f"\n--- a sample at step {step} (validation perplexity {perplexity:.2f})\n{text}\n")
            if run.best.update(step, score.nll, run.config):
                better.append(run)
        return better

    def _tokens(self, steps: int) -> int:
        return steps * tokens_per_step(self.config)
