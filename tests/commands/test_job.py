"""Jobs of several processes: real ones, over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.runs.checkpoints import Checkpoints
from tests.commands.conftest import one_line

ROOT = Path(rnn_lm.__file__).parents[1]
CONFIG = """
def get_config():
    return {{"batch_size": 4, "segment_length": 8, "steps": 20, "eval_every": 50, "eval_tokens": 500, "save_every": 4,
             "log_every": 50, "model": {{"num_hiddens": 16}}, "corpus": {{"path": {path!r}}},
             "optimizer": {{"learning_rate": 1e-3}}}}
"""
RESUME = "run the same command to resume"
AGAIN = "start all of them again, or fewer, to resume at the last checkpoint"
KILLED = f"error: this process, or another one of the job, was killed; {AGAIN}"
ENDED = (1, "", [f"error: another process of the job has ended; {AGAIN}"])
ABORTED = (-signal.SIGABRT, "", [KILLED])  # by JAX


def free_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


class Process:
    """One process of a job."""

    def __init__(self, folder, number, arguments, variables):
        self.paths = [folder / f"{kind}{number}" for kind in ("out", "err")]
        with open(self.paths[0], "w") as out, open(self.paths[1], "w") as err:
            command = [sys.executable, "run.py", *map(str, arguments)]
            self.popen = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, env=os.environ | variables)

    def end(self, within=60):
        """Exit code, stdout, and the lines of stderr that begin with `error:`."""
        code = self.popen.wait(within)
        if code in (-signal.SIGKILL, -signal.SIGABRT):
            wait(lambda: "error: " in self.paths[1].read_text())  # which another process writes
        out, err = (path.read_text() for path in self.paths)
        return code, out, [line for line in err.splitlines() if line.startswith("error:")]


def wait(happened, within=60):
    deadline = time.monotonic() + within
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def config(tmp_path, text_file):
    (path := tmp_path / "config.py").write_text(CONFIG.format(path=str(text_file)))
    return path


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(config, workdir, tmp_path):
    """Starts the processes of a job."""
    started = []

    def start(*flags, each=((), ()), by_hand=True, variables=({}, {}), only=(0, 1)):
        port = free_port()
        for i in only:
            address = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"] if by_hand else []
            arguments = [f"--config={config}", f"--workdir={workdir}", "--distributed", *address]
            arguments += ["--config.mesh.data=2", *flags, *each[i]]
            started.append(Process(tmp_path, len(started), arguments, variables[i]))
        return started[-len(only) :]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


def latest(workdir):
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays_of(workdir):
    with closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        return [checkpoints.restore(step)[0] for step in (checkpoints.best_step(), checkpoints.steps()[-1])]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--process_id=0", "--process_id needs --distributed"),
        ("--timeout=5", "--timeout needs --distributed"),
        ("--distributed --coordinator=a:1", "--coordinator, --num_processes and --process_id go together"),
        ("--distributed --timeout=0", "--timeout=0 must be at least 1 second"),
        (
            "--distributed --coordinator=a --num_processes=2 --process_id=0",
            "--coordinator=a is not HOST:PORT, such as node1:1234",
        ),
        (
            "--distributed --coordinator=a:1 --num_processes=2 --process_id=2",
            "--process_id=2 must be from 0 to --num_processes - 1",
        ),
    ],
)
def test_wrong_flags(capsys, config, workdir, flags, message):
    assert main([f"--config={config}", f"--workdir={workdir}", *flags.split()]) == 2
    assert one_line(capsys) == f"error: {message}\n" and not workdir.exists()


def test_a_port_in_use(capsys, config, workdir):
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = ["--distributed", f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
        assert main([f"--config={config}", f"--workdir={workdir}", *flags]) == 2
    assert f"--coordinator={address}: " in (error := one_line(capsys)) and "give another port" in error


def test_processes_that_disagree(start, workdir):
    different = "error: process 1 of the job has another config.steps than process 0; start all of them with the same"
    for process in start(each=((), ("--config.steps=30",))):
        code, out, (error,) = process.end()
        assert (code, out) == (2, "") and error.startswith(different)
        assert len(process.paths[1].read_text().splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.slow
def test_a_job_that_is_killed_and_stopped_and_ends_alone_is_as_if_undisturbed(start, workdir, config, tmp_path):
    steps, alone = "--config.steps=400", tmp_path / "alone"
    assert main([f"--config={config}", f"--workdir={alone}", steps]) == 0

    first, second = start(steps, "--timeout=10")
    wait(lambda: latest(workdir) >= 100)
    second.popen.kill()
    assert first.end(within=30) in (ENDED, ABORTED) and second.end() == (-signal.SIGKILL, "", [KILLED])
    assert latest(workdir) < 400 and not (workdir / "summary.json").exists()

    job, (before, after) = start(steps), (latest(workdir), 100)
    wait(lambda: latest(workdir) >= before + after)
    job[1].popen.terminate()
    assert [process.end() for process in job] == 2 * [(143, "", [])]
    stopped = latest(workdir)
    for process in job:
        assert process.paths[1].read_text().endswith(f"stopped and saved at step {stopped}; {RESUME}\n")
    assert before + after <= stopped < 400

    assert main([f"--config={config}", f"--workdir={workdir}", steps]) == 0
    assert [(line["step"], line["split"]) for line in lines_of(workdir)] == [
        (line["step"], line["split"]) for line in lines_of(alone)
    ]
    for of_job, of_one in zip(arrays_of(workdir), arrays_of(alone), strict=True):
        assert of_job.keys() == of_one.keys()
        for name, array in of_job.items():
            np.testing.assert_allclose(array, of_one[name], rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.slow
def test_slurm_says_who_is_who(start, workdir):
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    variables = [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    first, second = start(by_hand=False, variables=variables)
    code, out, errors = first.end()
    assert (code, errors) == (0, []) and "Finished: 20 steps" in out
    assert second.end() == (0, "", []) and second.paths[1].read_text() == ""
    assert [(line["step"], line["split"]) for line in lines_of(workdir)] == [(20, "train"), (20, "valid")]

    again = start(by_hand=False, variables=variables)  # on the same port
    assert [process.end()[0] for process in again] == [0, 0] and again[0].end()[1] == out


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_while_the_first_one_scores_ends_the_other(start, tmp_path, workdir, victim):
    (slow := tmp_path / "slow.py").write_text("import time; import rnn_lm.training.train as it\n"
                                              "it.finish = lambda *arguments: time.sleep(1000)\n")  # fmt: skip
    job = start(f"--import={slow}", "--timeout=10")
    wait(lambda: "scoring the best" in job[0].paths[1].read_text())
    job[victim].popen.kill()
    assert job[victim].end() == (-signal.SIGKILL, "", [KILLED])
    assert job[1 - victim].end(within=30) in (ENDED, ABORTED)
    assert latest(workdir) == 20 and not (workdir / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_fault_in_one_process_ends_the_other(start, tmp_path, number):
    (wrong := tmp_path / "wrong.py").write_text("from rnn_lm.training.run import Run\nRun.log_valid = None\n")
    each = [(), ()]
    each[number] = (f"--import={wrong}",)
    job = start("--timeout=10", each=each)
    assert job[1 - number].end() in (ENDED, ABORTED)
    assert job[number].end() == (1, "", []) and "TypeError: 'NoneType'" in job[number].paths[1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in training", "over the whole text"])
def test_a_run_that_diverges_ends_all_with_3(start, tmp_path, workdir, where):
    (low := tmp_path / "low.py").write_text("import rnn_lm.training.finish as it\nit.MAX_NLL = 0\n")
    flags = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e38"]
    for process in start(*(flags if where == "in training" else [f"--import={low}"])):
        code, out, (error,) = process.end()
        assert (code, out) == (3, "") and error.startswith("error: training diverged: ")
    assert (workdir / "diverged.json").exists()


@pytest.mark.slow
def test_a_process_that_waits_for_the_others_can_be_stopped_and_gives_up(start, workdir):
    for number in (0, 1):
        (waiting,) = start("--timeout=3", only=(number,))
        code, out, (error,) = waiting.end(within=30)
        assert (code, out) == (2, "") and error.startswith("error: the processes did not all meet at 127.0.0.1:")
    (waiting,) = start(only=(1,))
    time.sleep(4)  # it waits by now
    waiting.popen.send_signal(signal.SIGINT)
    assert waiting.end(within=5) == (130, "", [])
    assert not workdir.exists()


@pytest.mark.slow
def test_folders_that_are_not_shared(start, tmp_path, workdir):
    (soon := tmp_path / "soon.py").write_text("import rnn_lm.processes as it\nit.SEEN_SECONDS = 1\n")
    for process in start(f"--import={soon}", each=((), (f"--workdir={tmp_path / 'elsewhere'}",))):
        code, out, (error,) = process.end()
        assert (code, out) == (2, "") and error.endswith("--workdir must be a folder that all processes share")
    assert not (tmp_path / "elsewhere").exists() and not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.mesh.data=1"], "config.mesh.data is 1; 2 processes need a multiple of 2"),
        (["--profile=trace"], "--profile traces a process that trains alone, not a job"),
    ],
)
def test_what_jobs_do_not_do(start, workdir, flags, message):
    for process in start(*flags):
        assert process.end() == (2, "", [f"error: {message}"])
    assert not workdir.exists()
