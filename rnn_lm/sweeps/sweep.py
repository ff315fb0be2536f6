"""Sweeps: many runs, grouped into jobs of one program, on all devices."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rnn_lm.config import tokens_of, tokens_per_step
from rnn_lm.cores import usable_cores
from rnn_lm.errors import Diverged
from rnn_lm.files import Json, path_of, read_json
from rnn_lm.interrupts import Stopped, deferred_signals
from rnn_lm.mesh import DataMesh
from rnn_lm.nn.registry import cell_class
from rnn_lm.program import cohort_of, program_of
from rnn_lm.runs.lock import locked_members
from rnn_lm.runs.record import OnLine
from rnn_lm.sweeps.lists import Override
from rnn_lm.sweeps.members import Member, check_members, members_of
from rnn_lm.sweeps.results import NGRAMS, RESULTS, Results, check_sweep_folder, outcome_of, row_of
from rnn_lm.sweeps.shared import LastBatches, SharedBaselines
from rnn_lm.training.finish import finish
from rnn_lm.training.loop import Trainer
from rnn_lm.training.memory import members_that_fit
from rnn_lm.training.opening import text_lines
from rnn_lm.training.progress import SweepDisplay
from rnn_lm.training.run import Run
from rnn_lm.training.train import prepare_machine_code, remarks

# On an accelerator, members are trained at once if h w_hh of one needs at most this many operations. A large GPU does
# as many, in float32, in the 5 µs that it takes to start a kernel.
MAX_OPERATIONS = 250e6
Team = Sequence[jax.Device]  # that train a job together


def use_all_cores() -> None:
    """Makes each CPU core a device, unless JAX_NUM_CPU_DEVICES says how many. No effect after JAX's first computation.

    The devices share their threads, so a run has the same bits as alone.
    """
    with suppress(RuntimeError):
        if "JAX_NUM_CPU_DEVICES" not in os.environ:
            jax.config.update("jax_num_cpu_devices", usable_cores())


def leaves_idle(config: ConfigDict) -> bool:
    """Whether one model leaves JAX's default device partly idle, so that members should be trained at once.

    Never true of a CPU: its machine code is for one model, and a `vmap`ped step is slower than the steps of its members
    one after the other (benchmarks/sweep.py measures this).
    """
    gates = getattr(cell_class(config.model.cell), "num_gates", 1) if config.model.kind == "rnn" else 1
    operations = 2 * config.batch_size * config.model.num_hiddens**2 * gates
    return jax.default_backend() != "cpu" and operations <= MAX_OPERATIONS


# sweep.mode → whether members that share a program are trained at once.
MODES: dict[str, Callable[[ConfigDict], bool]] = {
    "auto": leaves_idle,
    "vmap": lambda config: True,
    "sequential": lambda config: False,
}


def plan(members: Sequence[Member], num_teams: int) -> list[list[Member]]:
    """Groups members into jobs for the teams. The members of a job share a program and are trained at once."""
    groups: dict[tuple, list[Member]] = {}
    for member in members:
        groups.setdefault(cohort_of(member.config), []).append(member)
    jobs: list[list[Member]] = []
    for group in groups.values():
        config = group[0].config
        size = math.ceil(len(group) / num_teams) if MODES[config.sweep.mode](config) else 1
        jobs += _parts(group, size)
    return jobs


def teams_of(devices: Sequence[jax.Device], size: int) -> list[Team]:
    """Teams of `size` devices each, without those that are left over."""
    return [devices[start : start + size] for start in range(0, len(devices) - size + 1, size)]


def team_size(members: Sequence[Member], num_devices: int) -> int:
    """The number of devices that divide the minibatches of a job: `mesh.data`, or more if otherwise some are idle.

    The devices of a CPU share its threads, so none of them is ever idle.
    """
    size = members[0].config.mesh.data
    if jax.default_backend() == "cpu":
        return size
    largest = num_devices // len(plan(members, num_devices))
    rows = math.gcd(*(member.config.batch_size for member in members))
    return max([size, *(more for more in range(size, largest + 1) if rows % more == 0)])


def sweep(
    config: ConfigDict,
    overrides: Sequence[Override],
    workdir: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    command: Sequence[str] = (),
    on_line: OnLine | None = None,
) -> Json:
    """Trains `config` with each of `overrides`, each in its own folder, or resumes an earlier call.

    Shard (i, n) trains members number i, i + n, i + 2n, …; several processes may fill one folder. `command` trains
    `config` on the command line. `on_line` gets each new line of a member's `metrics.jsonl` as a dict, with the name
    as its `member`; one line at a time, from several threads.

    Returns:
      The content of `results.json`, with the results of all members so far.

    Raises:
      UserError: a member, the text or the folder is invalid; nothing is left behind.
      Diverged: all members diverged.
      Stopped: SIGTERM or SIGINT came; the runs are saved.
    """
    workdir = path_of(workdir)
    members = members_of(config, overrides, workdir)
    check_sweep_folder(workdir, members)
    check_members(members, workdir)
    mine = members[shard[0] :: shard[1]]
    results = Results(workdir, members, command)
    results.write()
    with deferred_signals() as pending:
        try:
            train_members(
                mine, workdir / NGRAMS, stop=lambda: bool(pending.signum), on_end=results.add, on_line=lines_of(on_line)
            )
        finally:
            results.write()
        if pending.signum:
            ended = sum(member.ended for member in mine)
            raise Stopped(
                pending.signum,
                f"stopped: {ended} of {len(mine)} members finished, the others saved; run the same command to resume",
            )
    result = read_json(workdir / RESULTS)
    if all(row["status"] == "diverged" for row in result["members"]):
        raise Diverged(f"all members of the sweep diverged; see {workdir / RESULTS}; try smaller learning rates")
    return result


def lines_of(on_line: OnLine | None) -> Callable[[Member, Json], None]:
    """Hands lines of members, which come from several threads, to `on_line` with their names, one at a time."""
    one_at_a_time = threading.Lock()

    def line_of(member: Member, line: Json) -> None:
        if on_line is not None:
            with one_at_a_time:
                on_line(line | {"member": member.name})

    return line_of


def train_members(
    members: Sequence[Member],
    counts: Path,
    *,
    stop: Callable[[], bool],
    on_end: Callable[[Json], object] = lambda row: None,
    on_line: Callable[[Member, Json], object] = lambda member, line: None,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Trains the members that have not ended, each in its folder, until all end or `stop()` is true, and saves.

    `counts` is the folder of n-grams that members share. `on_end` is called with the row of each member that ends,
    `on_line` with each of its lines. Jobs are trained by teams of `devices`, by default all of this process.

    Raises:
      UserError: a folder or a file is invalid; the other members are stopped and saved.
    """
    going = [member for member in members if not member.ended]
    if not going:
        return
    devices = devices or jax.local_devices()
    teams = teams_of(devices, team_size(going, len(devices)))
    jobs, display = iter(plan(members, len(teams))), _display_of(members, going)
    train_jobs(jobs, display, counts, stop=stop, on_end=on_end, on_line=on_line, teams=teams)


def train_jobs(
    jobs: Iterator[list[Member]],
    display: SweepDisplay,
    counts: Path,
    *,
    stop: Callable[[], bool],
    on_end: Callable[[Json], object],
    on_line: Callable[[Member, Json], object],
    teams: Sequence[Team],
    prune: Callable[[Member, int, float], bool] = lambda member, step, nll: False,
) -> None:
    """`train_members` of jobs, which the threads of the teams take from one iterator, each when it is free.

    `prune` gets the step and the validation loss of each evaluation, and says whether to give the member up.
    """
    failed = threading.Event()

    def end(member: Member) -> None:
        row = row_of(member)
        on_end(row)
        display.end(outcome_of(row))

    with closing(display), ExitStack() as stack, ThreadPoolExecutor(len(teams)) as pool:
        baselines = SharedBaselines(counts, stack)

        def stopping() -> bool:
            return stop() or failed.is_set()

        def work(team: Team) -> None:
            batches = LastBatches(DataMesh.on(team))
            try:
                with jax.default_device(team[0]):
                    while not stopping() and (job := next(jobs, None)):
                        _train_job(job, baselines, batches, stopping, display, end, on_line, prune)
            except BaseException:
                failed.set()
                raise

        waiting = {pool.submit(work, team) for team in teams}
        while waiting:  # in short waits: Python sees a signal that comes just before a wait only after it
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


def _display_of(members: Sequence[Member], going: Sequence[Member]) -> SweepDisplay:
    """The display of a sweep, which says first what the members that are `going` are trained on."""
    tokens = {member.name: tokens_of(member.config) for member in members}
    to_train = sum(tokens[member.name] for member in going)
    total = sum(tokens.values())
    display = SweepDisplay(len(members), total, finished=len(members) - len(going), before=total - to_train)
    lines = (line for member in going for line in (*text_lines(member.corpus, member.origin), *remarks(member.config)))
    for line in dict.fromkeys(lines):
        display.message(line)
    return display


def _train_job(
    job: list[Member],
    baselines: SharedBaselines,
    last_batches: LastBatches,
    stop: Callable[[], bool],
    display: SweepDisplay,
    on_end: Callable[[Member], None],
    on_line: Callable[[Member, Json], object],
    prune: Callable[[Member, int, float], bool],
) -> None:
    """Trains members that share a program, as many at once as fit into memory."""
    if stop() or all(member.ended for member in job):
        return
    config, corpus = job[0].config, job[0].corpus
    shown = display.of(job[0].name + (f" and {len(job) - 1} more" if job[1:] else ""), cohort_of(config))
    prepare_machine_code()
    program, numbers = program_of(config, len(corpus.vocabulary))
    batches = last_batches.of(program, corpus)
    counted = baselines.of(corpus)
    mesh = last_batches.mesh
    parts = math.ceil(len(job) / members_that_fit(program, numbers.arrays(), len(job), batches, mesh))
    for part in _parts(job, math.ceil(len(job) / parts)):
        if all(member.ended for member in part):
            continue
        started = time.perf_counter()
        with locked_members([member.workdir for member in part]):
            runs = [
                Run(
                    member.config,
                    member.workdir,
                    corpus,
                    member.origin,
                    alone=False,
                    on_line=partial(on_line, member),
                    prune=partial(prune, member),
                )
                for member in part
            ]
            going = sum(not run.ended for run in runs)
            with closing(Trainer(runs, batches, mesh, started=started)) as trainer:
                shown.start(trainer.first_step, config.steps, going * tokens_per_step(config))
                trainer.run(stop, shown)
            if stop() or not counted.wait(stop=stop):
                return
            finish(trainer, counted)
            shown.end()
            for member, run in zip(part, runs, strict=True):
                if not run.ended:
                    on_end(member)


def _parts(members: list[Member], size: int) -> Iterator[list[Member]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
