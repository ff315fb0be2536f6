"""Training: a config → the folder of a run."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rnn_lm.config import check_config
from rnn_lm.data.batches import Batches
from rnn_lm.errors import Diverged, UserError
from rnn_lm.fields import FIELDS, get_field
from rnn_lm.files import Json, path_of, read_json
from rnn_lm.interrupts import Pending, Stopped, deferred_signals
from rnn_lm.mesh import DataMesh
from rnn_lm.nn import native
from rnn_lm.processes import SHARE, check_same, check_shared, code_version, is_first, largest
from rnn_lm.program import batches_of
from rnn_lm.runs.folder import NGRAM, SUMMARY, another_folder, check_folder, has_ended, is_done, read_diverged
from rnn_lm.runs.load import adopt, text_and_origin
from rnn_lm.runs.lock import locked
from rnn_lm.runs.origin import hashes_of
from rnn_lm.runs.record import OnLine
from rnn_lm.training.baselines import Baselines
from rnn_lm.training.finish import finish
from rnn_lm.training.loop import Trainer
from rnn_lm.training.memory import check_memory
from rnn_lm.training.opening import model_lines, text_lines
from rnn_lm.training.progress import Display, ProgressDisplay
from rnn_lm.training.run import Run
from rnn_lm.visible import visible


def train(config: ConfigDict, workdir: str | Path, *, profile: str | Path = "", on_line: OnLine | None = None) -> Json:
    """Trains the model of `config` in the folder `workdir`, or resumes an earlier call.

    If `profile` names a folder, a few extra steps are traced first and the trace is written to it. `on_line` gets each
    new line of `metrics.jsonl` as a dict; after a crash, the lines since the last checkpoint come again.

    Returns:
      The run's summary, as in `summary.json`. If the run is done already, it is returned at once.

    Raises:
      UserError: the config, the text or the folder is invalid; nothing is left behind.
      Diverged: the perplexity or a gradient is not finite; the last checkpoint whose loss was finite is kept.
      Stopped: SIGTERM or SIGINT came; the run is saved.
    """
    workdir, trace = path_of(workdir), path_of(profile)
    if config.init_from and path_of(config.init_from).resolve() == workdir.resolve():
        raise UserError(f"--config.init_from={config.init_from} is the --workdir; {another_folder(workdir)}")
    config = adopt(config)
    check_config(config)
    mesh = DataMesh.of(config.mesh.data)
    prepare_machine_code()
    corpus, origin = text_and_origin(config)
    run = Run(config, workdir, corpus, origin, on_line=on_line)
    batches = mesh.put(batches_of(run.program, corpus))
    check_folder(workdir, config, hashes_of(corpus, origin))
    if profile and trace.exists() and not trace.is_dir():
        raise UserError(f"--profile={profile} is not a folder")
    if profile and jax.process_count() > 1:
        raise UserError("--profile traces a process that trains alone, not a job")
    _check_agreement(run)
    if is_done(workdir, config):
        if profile:
            raise UserError("--profile: this run is done; give another --workdir or more --config.steps")
        summary = read_json(workdir / SUMMARY)
        changed = "--config.stop_patience=0" if summary["steps"] < config.steps else "a larger --config.steps"
        if is_first():
            say(f"this run is done; {changed} continues it")
        return summary
    check_memory(run.program, run.numbers)
    if not is_first():
        return _train_along(run, batches, mesh)
    say(*remarks(config), *text_lines(corpus, origin))
    with _locked(workdir), Baselines(workdir / NGRAM, corpus) as baselines:
        with deferred_signals() as pending:
            with closing(_trainer_of(run, batches, mesh)) as trainer:
                say(*model_lines(trainer))
                if profile:
                    from rnn_lm.training.profile import write_trace

                    write_trace(trainer, trace)
                trainer.run(lambda: bool(pending.signum), ProgressDisplay(trainer.first_step, config.steps))
            _check_ended(run, pending)
        if not baselines.counted:
            say("counting n-grams …")
        baselines.wait()
        say("scoring the best checkpoint on the whole validation and test text …")
        finish(trainer, baselines)
        _check_finite(run)
    return read_json(workdir / SUMMARY)


def _check_agreement(run: Run) -> None:
    """Raises UserError in all processes of a job if they would train different runs."""
    if jax.process_count() == 1:
        return
    named = ("corpus.source", "corpus.path", "init_from")  # they may be elsewhere on another machine
    values = {f"config.{name}": repr(get_field(run.config, name)) for name in FIELDS if name not in named}
    values["text"], values["model of init_from"] = hashes_of(run.corpus, run.origin)
    values |= {"code": code_version(), "state of --workdir": str(is_done(run.workdir, run.config))}
    check_same(values, "start all of them with the same command, code and folders")


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Locks the folder against other jobs. The processes of this one must see the same folder."""
    with locked(workdir):
        check_shared(workdir)
        yield


def _trainer_of(run: Run, batches: Batches, mesh: DataMesh) -> Trainer:
    trainer = Trainer([run], batches, mesh)
    check_same({"checkpoint": str(trainer.first_step)}, SHARE)
    return trainer


def _train_along(run: Run, batches: Batches, mesh: DataMesh) -> Json:
    """What the other processes of a job do. They end when the first one has scored the run."""
    check_shared(run.workdir)
    with deferred_signals() as pending:
        with closing(_trainer_of(run, batches, mesh)) as trainer:
            trainer.run(lambda: bool(pending.signum), Display())
        _check_ended(run, pending)
    while not has_ended(run.workdir, run.config):
        time.sleep(0.1)
    if diverged := read_diverged(run.workdir):
        run.diverged = f"{diverged['what']} is not finite"
    _check_finite(run)
    return read_json(run.workdir / SUMMARY)


def _check_ended(run: Run, pending: Pending) -> None:
    _check_finite(run)
    if signum := int(largest(pending.signum)):  # which may have come to one process only
        raise Stopped(signum, f"stopped and saved at step {run.saved_step}; run the same command to resume")


def _check_finite(run: Run) -> None:
    if run.diverged:
        advice = "try a smaller --config.optimizer.learning_rate in a new --workdir"
        raise Diverged(f"training diverged: {run.diverged}; {advice}")


def say(*lines: str) -> None:
    print(*map(visible, lines), sep="\n", file=sys.stderr, flush=True)


def prepare_machine_code() -> None:
    """Starts to load the machine code, which the first step needs, in a thread; where it must, to compile it first."""
    if jax.default_backend() == "cpu":
        threading.Thread(target=native.is_available).start()


def remarks(config: ConfigDict) -> Iterator[str]:
    """Notes on a config that is valid but perhaps unintended."""
    if config.truncation.kind in ("segment", "window") and config.truncation.steps >= config.segment_length:
        yield (
            f"note: truncation.steps = {config.truncation.steps} ≥ segment_length = {config.segment_length}: "
            "this is full backpropagation within each window"
        )
