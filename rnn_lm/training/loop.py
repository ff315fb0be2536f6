"""Training: config → run folder. The compiled steps are in `step`; this is what the host does around them."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
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
from rnn_lm.inference.evaluate import evaluate, figures
from rnn_lm.inference.generate import generate
from rnn_lm.interrupts import Pending, Stopped, deferred_signals
from rnn_lm.keys import named_key
from rnn_lm.ngram import NGramLM
from rnn_lm.nn import native
from rnn_lm.nn.models import LanguageModel
from rnn_lm.training.baselines import fit_ngram
from rnn_lm.training.checkpoints import Checkpoints, fill_tree
from rnn_lm.training.config import check_config, tokens_per_step
from rnn_lm.training.metrics import Record
from rnn_lm.training.progress import ProgressDisplay
from rnn_lm.training.run_folder import (
    CHECKPOINTS,
    check_folder,
    locked,
    make_model,
    read_summary,
    write_identity,
)
from rnn_lm.training.step import Means, TrainState, train_steps
from rnn_lm.training.summary import write_summary

DISPATCH_SECONDS = 0.5  # long enough that Python costs nothing, short enough to stop and to show progress
EVAL_STREAMS = 32  # parallel streams of an evaluation while training
SAMPLE_PROMPT, SAMPLE_LENGTH = 32, 300  # tokens


def train(
    config: ConfigDict, workdir: str | Path, *, started: float = rnn_lm.STARTED, ngram: NGramLM | None = None
) -> dict[str, Any]:
    """Trains the model that `config` describes in the folder `workdir`; goes on where an earlier call stopped.

    The seconds in its summary count from `started`, a `time.perf_counter()`; by default the start of the process.
    `ngram` is what `fit_ngram` would count, where that has been done already.

    Returns:
      The run's summary, as in its `summary.json`. A finished run returns it at once.

    Raises:
      UserError: where the config, the text or the folder will not do; nothing is left behind then.
      Diverged: at a loss that is not finite; the last good checkpoint stays.
      Stopped: by SIGTERM or SIGINT, after saving.
    """
    workdir = Path(workdir)
    check_config(config)
    if config.model.kind == "rnn" and jax.default_backend() == "cpu":
        threading.Thread(target=native.build).start()  # this early it is ready when the first step is traced
    corpus = load_corpus(**config.corpus)
    batches = batches_of(config, corpus)
    check_folder(workdir, config, corpus)
    summary = read_summary(workdir)
    if summary is not None and summary["steps"] >= config.steps:
        print("this run has finished, nothing to do; a larger --config.steps continues it", file=sys.stderr)
        return summary
    if config.truncation.kind in ("segment", "window") and config.truncation.steps >= config.segment_length:
        print(
            f"note: truncation.steps = {config.truncation.steps} ≥ segment_length = {config.segment_length}: "
            "that is full backpropagation within each window",
            file=sys.stderr,
        )
    with locked(workdir), ThreadPoolExecutor(max_workers=1) as beside, ExitStack() as in_the_end:
        over = threading.Event()
        in_the_end.callback(over.set)  # nobody waits for the counts any more
        with deferred_signals() as pending:
            with closing(Trainer(config, workdir, corpus, batches, started)) as trainer:
                counting = beside.submit(fit_ngram, workdir, corpus, over.is_set, ngram)
                trainer.run(pending)
            if pending.signum:
                step = trainer.saved_step
                raise Stopped(
                    pending.signum, f"stopped at step {step}, which is saved; the same command goes on from there"
                )
        if not counting.done():
            print("counting n-grams …", file=sys.stderr, flush=True)
        counted = counting.result()
        assert counted is not None  # it was not told to stop
        write_summary(
            workdir,
            config,
            corpus,
            counted,
            started=started,
            seconds_to_first_step=trainer.seconds_to_first_step,
            tokens_per_second=trainer.tokens_per_second(),
        )
    summary = read_summary(workdir)
    assert summary is not None
    return summary


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


def new_state(config: ConfigDict, vocab_size: int) -> TrainState:
    """What a run starts from."""
    return TrainState.create(make_model(config, vocab_size), config.optimizer.name, config.batch_size)


def check_memory(state: TrainState) -> None:
    """Refuses what cannot fit: on a CPU, XLA was seen to wait for ever for an allocation that had failed."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if jax.default_backend() == "cpu" and needed > there:
        raise UserError(
            f"out of memory: the model and its optimizer take {needed / 2**30:,.0f} GiB of this machine's "
            f"{there / 2**30:,.0f}; try a smaller config.model.num_hiddens"
        )


@dataclass
class Best:
    """The best evaluation so far, and what the plateau schedule makes of it."""

    step: int | None = None
    nll: float = float("inf")
    waited: int = 0  # evaluations since
    plateau_factor: float = 1.0

    def update(self, step: int, nll: float, config: ConfigDict) -> bool:
        """Takes in an evaluation; whether it is the new best."""
        if nll < self.nll:
            self.step, self.nll, self.waited = step, nll, 0
            return True
        self.waited += 1
        if self.waited > config.optimizer.patience:
            self.waited = 0
            self.plateau_factor *= config.optimizer.decay_factor
        return False


class Trainer:
    """A run in progress: its state on the device, its record on disk, and the loop between them."""

    def __init__(self, config: ConfigDict, workdir: Path, corpus: Corpus, batches: Batches, started: float):
        self.config = config
        self._started = started
        self.workdir = workdir
        self.corpus = corpus
        model = nnx.eval_shape(partial(make_model, config, len(corpus.vocabulary)))
        self.graphdef, _ = nnx.split(model, nnx.Param)
        draws = {"dropout": config.model.dropout, "truncation": config.truncation.kind == "randomized"}
        self._dispatch = partial(
            train_steps,
            batches=batches,
            graphdef=self.graphdef,
            optimizer=config.optimizer.name,
            schedule=config.optimizer.schedule,
            keys={name: named_key(config.seed, name) for name, on in draws.items() if on},
            truncation=config.truncation.kind,
            truncation_steps=config.truncation.steps,
            remat=config.remat,
        )
        create = jax.jit(partial(new_state, config, len(corpus.vocabulary)))
        self.best = Best()
        self.saved_step: int | None = None
        with closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
            if steps := checkpoints.steps():
                self.saved_step = steps[-1]
                arrays, notes = checkpoints.restore(self.saved_step)
                self.state = fill_tree(jax.eval_shape(create), arrays)
                self.best = Best(**notes["best"])
            else:
                check_memory(jax.eval_shape(create))
                self.state = create()
        self.first_step = int(self.state.step)
        if self.first_step > config.steps:
            raise UserError(
                f"--workdir={workdir} is at step {self.first_step} already; give --config.steps of at least that"
            )
        write_identity(workdir, config, corpus)  # from here on things are written
        self.checkpoints = Checkpoints(workdir / CHECKPOINTS)
        self.record = Record(workdir, self.first_step)
        self.display = ProgressDisplay(self.first_step, config.steps)
        self.seconds_to_first_step: float | None = None
        self.busy_seconds = 0.0  # spent in dispatches after the first, which compiles
        self._line_steps, self._line_seconds = 0, 0.0  # the same since the last train line

    def run(self, stop: Pending) -> None:
        """Trains to the last step, or until a signal has come; then the state is saved.

        The host works on the report of one dispatch while the device runs the next, so nothing waits for Python
        except where the state itself is needed: to evaluate and to save.
        """
        config, step, size = self.config, self.first_step, 1
        previous: tuple[int, Any, float] | None = None
        while step < config.steps:
            start, step = step, min(step + size, *self._events_after(step), config.steps)
            launched = time.perf_counter()
            self.state, report = self._dispatch(self.state, jnp.int32(step), numbers=self._numbers())
            if self._due(step, config.log_every):
                self.state = replace(self.state, means=Means.none())
            if previous is not None:
                size = self._handle(*previous, size)
                launched = time.perf_counter()  # this dispatch began when the one before it ended
            previous = (start, report, launched)
            evaluating, saving = self._due(step, config.eval_every), self._due(step, config.save_every)
            if evaluating or saving or stop.signum:
                size = self._handle(*previous, size)
                previous = None
                better = evaluating and self._evaluate(step)
                if saving or better or stop.signum:
                    self._save(step)
                if stop.signum:
                    return

    def close(self) -> None:
        """Waits for the files that are still being written."""
        self.display.close()
        self.record.close()
        self.checkpoints.close()

    def tokens_per_second(self) -> float | None:
        """Training speed of this process, compilation, evaluations and saving aside."""
        steps = int(self.state.step) - self.first_step - 1
        return self._tokens(steps) / self.busy_seconds if self.busy_seconds else None

    def model(self) -> LanguageModel:
        """The model with the weights of the current step."""
        return nnx.merge(self.graphdef, self.state.params)

    def _numbers(self) -> dict[str, jax.Array]:
        """The hyper-parameters that are arguments of the compiled step."""
        numbers = {k: v for k, v in self.config.optimizer.items() if not isinstance(v, str)}
        numbers |= {"steps": self.config.steps, "plateau_factor": self.best.plateau_factor}
        numbers["keep_probability"] = self.config.truncation.keep_probability
        return {name: jnp.float32(value) for name, value in numbers.items()}

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _events_after(self, step: int) -> list[int]:
        """The next steps at which something is to be logged, evaluated or saved."""
        intervals = (self.config.log_every, self.config.eval_every, self.config.save_every)
        return [(step // every + 1) * every for every in intervals if every > 0]

    def _handle(self, start: int, report: Any, launched: float, size: int) -> int:
        """Waits for a dispatch and logs it. Returns how many steps the next one should have."""
        report = jax.device_get(report)
        seconds, step = time.perf_counter() - launched, int(report["step"])
        first = self.seconds_to_first_step is None
        if first:
            self.seconds_to_first_step = time.perf_counter() - self._started
        else:
            self.busy_seconds += seconds
            self._line_steps += step - start
            self._line_seconds += seconds
        if not report["finite"] or self._due(step, self.config.log_every):
            self._log_train(step, report)
        if not report["finite"]:
            raise self._diverged(step, "the loss or its gradient")
        if first:  # it compiled, so its time says nothing
            return size
        seconds_per_step = seconds / (step - start)
        self.display.update(step, self._tokens(1) / seconds_per_step, seconds_per_step)
        return max(1, min(4 * size, int(DISPATCH_SECONDS / seconds_per_step)))

    def _log_train(self, step: int, report: Any) -> None:
        line: dict[str, Any] = {"step": step, "tokens": self._tokens(step), "split": "train"}
        means = {name: float(value) for name, value in report["means"].values.items()}
        line |= figures(means.pop("nll"), self.corpus.train.tokens_per_character)
        line |= means if self.config.optimizer.clip_norm else {"grad_norm": means["grad_norm"]}
        line["learning_rate"] = float(report["learning_rate"])
        if self._line_steps:
            line["tokens_per_second"] = self._tokens(self._line_steps) / self._line_seconds
        self._line_steps, self._line_seconds = 0, 0.0
        self.display.train_perplexity = line["perplexity"]
        self.record.write(line)

    def _evaluate(self, step: int) -> bool:
        """Validation loss and a sample. Returns whether this is the best model so far."""
        split = self.corpus.valid
        ids = split.ids[: self.config.eval_tokens + 1] if self.config.eval_tokens else split.ids
        model = self.model()
        nll = evaluate(model, ids, reset_every=-(-(len(ids) - 1) // EVAL_STREAMS)).nll
        line: dict[str, Any] = {"step": step, "tokens": self._tokens(step), "split": "valid"}
        line |= figures(nll, split.tokens_per_character)
        self.record.write(line)
        if not np.isfinite(nll):
            raise self._diverged(step, "the validation loss")
        self.display.valid_perplexity = line["perplexity"]
        prompt = split.ids[:SAMPLE_PROMPT]
        sample = generate(model, prompt, SAMPLE_LENGTH, key=named_key(self.config.seed, "sample", step))[0]
        text = self.corpus.vocabulary.decode([*prompt, *sample])
        self.record.write_sample(step, line["perplexity"], text)
        self.display.message(
            f"\n--- a sample at step {step} (validation perplexity {line['perplexity']:.2f})\n{text}\n"
        )
        return self.best.update(step, nll, self.config)

    def _save(self, step: int) -> None:
        if step == self.saved_step:
            return
        state = jax.device_get(self.state)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.carry))):
            raise self._diverged(step, "a parameter")
        self.checkpoints.save(step, state, {"best": vars(self.best)})
        self.saved_step = step

    def _diverged(self, step: int, what: str) -> Diverged:
        kept = (
            f"the checkpoint of step {self.saved_step} stays"
            if self.saved_step is not None
            else "nothing was saved yet"
        )
        return Diverged(
            f"training diverged: {what} is not finite at step {step}; {kept}; "
            "try a smaller --config.optimizer.learning_rate in a new --workdir"
        )

    def _tokens(self, steps: int) -> int:
        return steps * tokens_per_step(self.config)
