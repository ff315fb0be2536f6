"""Many runs as few programs: which of them are trained side by side, on which devices, and the loop over all."""

import hashlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import jax
from ml_collections import ConfigDict

from rnn_lm.config import tokens_per_step
from rnn_lm.data.corpus import Corpus
from rnn_lm.errors import Diverged
from rnn_lm.interrupts import Stopped, deferred_signals
from rnn_lm.nn.registry import cell_class
from rnn_lm.program import batches_of, cohort_of
from rnn_lm.runs.folder import has_ended, locked
from rnn_lm.sweeps.members import Member, check_members, members_of
from rnn_lm.sweeps.results import NGRAMS, RESULTS, check_sweep_folder, row_of, write_results
from rnn_lm.training.baselines import Baselines
from rnn_lm.training.finish import finish
from rnn_lm.training.loop import Trainer
from rnn_lm.training.memory import members_that_fit
from rnn_lm.training.progress import SweepDisplay
from rnn_lm.training.run import Run
from rnn_lm.training.train import prepare, remarks

# On an accelerator members are trained side by side while h w_hh of one of them is fewer operations than a large GPU
# does, in float32, in the 5 µs that it takes to start a kernel; above that they would only queue up.
MAX_OPERATIONS = 250e6


def use_all_cores() -> None:
    """Makes each CPU core a device of its own. Only before JAX's first computation; after it, nothing changes.

    They share their threads, so a run on one of them has the bits that it has alone.
    """
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def leaves_idle(config: ConfigDict) -> bool:
    """Whether training one of these models leaves JAX's default device idle, so that several go as one, `vmap`ped.

    Never a CPU: there a `vmap`ped step takes longer than its members' one after the other, as the machine code of the
    recurrence and the fast products are for one model. benchmarks/sweep.py measures it.
    """
    gates = getattr(cell_class(config.model.cell), "num_gates", 1) if config.model.kind == "rnn" else 1
    operations = 2 * config.batch_size * config.model.num_hiddens**2 * gates
    return jax.default_backend() != "cpu" and operations <= MAX_OPERATIONS


# Whether runs that share this config's program are trained side by side, by the config's sweep.mode.
MODES: dict[str, Callable[[ConfigDict], bool]] = {
    "auto": leaves_idle,
    "vmap": lambda config: True,
    "sequential": lambda config: False,
}


def plan(members: Sequence[Member], num_devices: int) -> list[list[Member]]:
    """The members in jobs for the devices: those of one are of one cohort, and are trained side by side."""
    groups: dict[tuple, list[Member]] = {}
    for member in members:
        groups.setdefault(cohort_of(member.config), []).append(member)
    jobs: list[list[Member]] = []
    for group in groups.values():
        mode = group[0].config.sweep.mode
        lanes = math.ceil(len(group) / num_devices) if MODES[mode](group[0].config) else 1
        jobs += _parts(group, lanes)
    return jobs


def sweep(
    config: ConfigDict,
    overrides: Sequence[dict[str, Any]],
    workdir: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains `config` once for each of `overrides`, each in a folder of its own; goes on where an earlier call stopped.

    Shard (i, n) trains members number i, i + n, i + 2n, …; any number of processes may fill one folder. `command` is
    what trains `config` on the command line.

    Returns:
      What `results.json` has: of all members, as far as they are over.

    Raises:
      UserError: where a member, the text or the folder will not do; nothing is left behind then.
      Diverged: where all members diverged.
      Stopped: by SIGTERM or SIGINT, after saving.
    """
    workdir = Path(workdir)
    members = members_of(config, overrides, workdir)
    check_sweep_folder(workdir, members)
    check_members(members, workdir)
    mine = members[shard[0] :: shard[1]]
    write_results(workdir, members, command)
    with deferred_signals() as pending:
        train_members(
            mine,
            workdir / NGRAMS,
            stop=lambda: bool(pending.signum),
            on_end=lambda: write_results(workdir, members, command),
        )
        result = write_results(workdir, members, command)
        if pending.signum:
            over = sum(has_ended(member.workdir, member.config.steps) for member in mine)
            raise Stopped(
                pending.signum,
                f"stopped with {over} of {len(mine)} members over and the others saved; "
                "the same command goes on from there",
            )
    if all(row["status"] == "diverged" for row in result["members"]):
        raise Diverged(
            f"all members of the sweep diverged; {workdir / RESULTS} tells where; try smaller learning rates"
        )
    return result


def _what_came_of(member: Member) -> str:
    row = row_of(member)
    if row["status"] == "diverged":
        return f"{member.name}: diverged, {row['diverged']['what']} is not finite at step {row['diverged']['step']}"
    return f"{member.name}: validation perplexity {row['valid']['perplexity']:.3f}"


def train_members(
    members: Sequence[Member],
    counts: Path,
    *,
    stop: Callable[[], bool],
    on_end: Callable[[], Any] = lambda: None,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Trains all members, each in its folder, until the last is over or `stop` says so; then what goes on is saved.

    Those that have finished or diverged stay as they are. `counts` is the folder of the n-grams that members share.
    `on_end` is called whenever one ends. A job runs on one of `devices`, by default all of this process, in a
    thread of its own.

    Raises:
      UserError: where a folder or a file will not do; the others are stopped and saved then.
    """
    going = [member for member in members if not has_ended(member.workdir, member.config.steps)]
    if not going:
        return
    devices = devices or jax.local_devices()
    jobs = plan(members, len(devices))
    failed, free = threading.Event(), SimpleQueue[jax.Device]()
    for device in devices:
        free.put(device)
    display = SweepDisplay(len(going), sum(member.config.steps * tokens_per_step(member.config) for member in going))
    for remark in dict.fromkeys(itertools.chain.from_iterable(remarks(member.config) for member in going)):
        display.message(remark)

    def end(member: Member) -> None:
        on_end()
        display.end(_what_came_of(member))

    with closing(display), ExitStack() as in_the_end, ThreadPoolExecutor(len(devices)) as pool:
        baselines = _SharedBaselines(counts, in_the_end)

        def work(job: list[Member]) -> None:
            device = free.get()
            try:
                with jax.default_device(device):
                    _train_job(job, baselines, lambda: stop() or failed.is_set(), display, end)
            except BaseException:
                failed.set()
                raise
            finally:
                free.put(device)

        for future in as_completed([pool.submit(work, job) for job in jobs]):
            future.result()


def _train_job(
    job: list[Member],
    baselines: "_SharedBaselines",
    stop: Callable[[], bool],
    display: SweepDisplay,
    on_end: Callable[[Member], None],
) -> None:
    """Trains members of one program, as many side by side as fit."""
    if stop() or all(has_ended(member.workdir, member.config.steps) for member in job):
        return
    config, corpus = job[0].config, job[0].corpus
    prepare(config)
    runs = [Run(member.config, member.workdir, corpus, alone=False) for member in job]
    batches = batches_of(runs[0].program, corpus)
    counted = baselines.of(corpus)
    at_once = members_that_fit(runs, batches)
    for part in _parts(job, math.ceil(len(job) / math.ceil(len(job) / at_once))):
        if all(has_ended(member.workdir, config.steps) for member in part):
            continue
        started = time.perf_counter()
        with ExitStack() as locks:
            for member in part:
                locks.enter_context(locked(member.workdir))
            runs = [Run(member.config, member.workdir, corpus, alone=False) for member in part]
            going = sum(not run.ended for run in runs)
            with closing(Trainer(runs, batches, started=started)) as trainer:
                trainer.run(stop, display.of(trainer.first_step, going * tokens_per_step(config)))
            if stop() or not counted.wait(stop=stop):
                return
            finish(trainer, counted)
            for member, run in zip(part, runs, strict=True):
                if not run.ended:
                    on_end(member)


def counts_path(folder: Path, corpus: Corpus) -> Path:
    """Where the n-grams of a text are kept."""
    parts = (corpus.train.ids, corpus.valid.ids, corpus.test.ids)
    digest = hashlib.sha256(b"".join(ids.tobytes() for ids in parts)).hexdigest()
    return folder / f"{digest[:16]}-{len(corpus.vocabulary)}.npz"


class _SharedBaselines:
    """The baselines of each text, counted once, when its first member is trained."""

    def __init__(self, folder: Path, in_the_end: ExitStack):
        self._folder, self._in_the_end = folder, in_the_end
        self._of: dict[Path, Baselines] = {}
        self._lock = threading.Lock()

    def of(self, corpus: Corpus) -> Baselines:
        path = counts_path(self._folder, corpus)
        with self._lock:
            if path not in self._of:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._of[path] = self._in_the_end.enter_context(Baselines(path, corpus, shared=True))
            return self._of[path]


def _parts(members: list[Member], size: int) -> Iterator[list[Member]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
