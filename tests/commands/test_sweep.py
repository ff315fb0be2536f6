"""`sweep` as a user meets it."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rnn_lm.commands import main
from rnn_lm.commands.sweep import describe, parse_shard
from rnn_lm.errors import UserError
from rnn_lm.files import read_json
from rnn_lm.sweeps.results import settings_of
from tests.commands.conftest import assert_fits
from tests.training.test_loop import assert_same_run

CONFIG = """
from rnn_lm import sweeps

def sweep():
    return sweeps.chain(sweeps.product(sweeps.choice("optimizer.learning_rate", [1e-3, 1e-2]), sweeps.seeds(2)),
                        sweeps.choice("optimizer.learning_rate", [1e9]))

def get_config():
    return {{"batch_size": 4, "segment_length": 8, "steps": 30, "eval_every": 10, "save_every": 10, "log_every": 10,
             "model": {{"num_hiddens": 8}}, "optimizer": {{"clip_norm": 0.0}},
             "corpus": {{"path": {path!r}, "valid_fraction": 0.1, "test_fraction": 0.1}}}}
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "rates.py").write_text(CONFIG.format(path=str(text_file)))
    return ["sweep", f"--config={folder / 'rates.py'}", f"--workdir={folder / 'rates-sweep'}"]


@pytest.fixture(scope="module")
def swept(flags):
    """The folder of a finished sweep, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("rnn_lm.commands._print", printed.append)
        assert main(flags) == 0
    return Path(flags[2].removeprefix("--workdir=")), printed[0]


def test_the_screen_has_a_ranking_and_the_folder_of_the_best(swept, cli, tmp_path):
    folder, out = swept
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["1", "0.01", "2/2"],
        ["2", "0.001", "2/2"],
        ["3", "1e+09", "0/1,"],
    ]
    assert "1 diverged: learning_rate=1e+09" in out and "not finished yet" not in out
    result = json.loads((folder / "results.json").read_text())
    best = min((row for row in result["members"] if row["valid"]), key=lambda row: row["valid"]["nll"])
    assert result["best"]["name"] == best["name"] and "learning_rate=0.01,seed=" in best["name"]
    said = [line.strip() for line in out.replace("\\\n", "").splitlines()]
    generate, copy, longer = (shlex.split(line) for line in said if line.startswith(("python run.py", "cp ")))
    assert generate[2:] == ["generate", f"--workdir={best['workdir']}", "--length=500"]
    assert copy[:-1] == ["cp", "-r", best["workdir"]] and copy[-1].endswith("/rates-best")
    assert longer == [*shlex.split(result["best"]["command"]), "--config.steps=60"]
    arguments = longer[2:-2]  # all but `python run.py`, the folder and the steps
    assert longer[-2] == f"--workdir={copy[-1]}"
    assert cli(*arguments, f"--workdir={tmp_path / 'best'}")[0] == 0
    assert_same_run(tmp_path / "best", Path(best["workdir"]))
    summary = json.loads((tmp_path / "best" / "summary.json").read_text())
    assert summary["valid"]["nll"] == best["valid"]["nll"]
    code, evaluated, _ = cli("evaluate", "--workdir", best["workdir"])
    assert code == 0 and json.loads(evaluated)["nll"] == pytest.approx(best["test"]["nll"], rel=1e-7)


def test_a_copy_of_the_best_is_trained_further(swept, cli):
    folder, out = swept
    said = [line.strip() for line in out.replace("\\\n", "").splitlines()]
    for line in said:
        if line.startswith("cp "):
            _, _, source, target = shlex.split(line)
            shutil.copytree(source, target)
        elif "--config.steps" in line:
            code, out, err = cli(*shlex.split(line)[2:])
    assert code == 0 and "Finished: 60 steps" in out and "step 30/60" in err
    assert read_json(folder / "results.json")["best"]  # the sweep is as it was
    shutil.rmtree(target)


def without_paths(screen):
    """Without the lines that have one: the folders of tests are wider than a terminal."""
    return "\n".join(line for line in screen.splitlines() if tempfile.gettempdir() not in line)


def test_the_table_fits_and_says_whose_figures_they_are(swept, columns):
    result = read_json(swept[0] / "results.json")
    screen = describe(result)
    shown = [setting["valid"] and f"{setting['valid']['nll']:.4f}" for setting in result["settings"]]
    bits = [setting["test"] and f"{setting['test']['bits_per_char']:.4f}" for setting in result["settings"]]
    assert_fits(without_paths(screen), columns, "0.01", "1e+09", *filter(None, [*shown, *bits]))
    said = " ".join(screen.split())
    assert "Perplexity and bits per character are those of the test text." in said and "bits/char" in said
    for setting in result["settings"]:  # so many fields share a column
        setting["overrides"] |= {"model.cell": "gru", "model.num_hiddens": 128, "optimizer.clip_norm": 0.5, "seed": 3}
    screen = describe(result)
    assert_fits(without_paths(screen), columns, *filter(None, bits))
    assert "num_hiddens=128" in screen and "learning_rate=0.001" in screen


def test_files_that_other_programs_read(swept):
    folder, out = swept
    rows = list(csv.DictReader((folder / "results.csv").open()))
    members = json.loads((folder / "results.json").read_text())["members"]
    assert [row["name"] for row in rows] == [row["name"] for row in members]
    assert float(rows[1]["test_perplexity"]) == members[1]["test"]["perplexity"] and rows[1]["seed"] == "1"
    summary = read_json(Path(members[1]["workdir"]) / "summary.json")
    timed = {name: str(summary[name]) for name in ("wall_seconds", "tokens_per_second")}
    assert timed | {"train_nll": str(summary["train"]["nll"])} == {name: rows[1][name] for name in [*rows[1]][-3:]}
    assert rows[4]["status"] == "diverged" and rows[4]["test_nll"] == rows[4]["seed"] == ""
    for name in ("learning_curves", "loss_by_learning_rate"):
        path = folder / "plots" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG") and str(path) in out


def test_a_finished_sweep_says_the_same_again(swept, flags, cli):
    assert cli(*flags)[:2] == (0, swept[1] + "\n")


def test_a_sweep_may_be_in_the_folder_that_one_is_in(swept, flags, cli, tmp_path, monkeypatch):
    shutil.copytree(swept[0], tmp_path / "here")
    (tmp_path / "here" / "slurm-1.out").touch()  # and have a job's log in it
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = cli(*flags[:2], "--workdir=.")
    assert code == 0 and "--workdir=../here-best" in out and "--workdir=learning_rate=0.01,seed=" in out


@pytest.mark.slow
def test_killed_on_two_cores_and_started_again_it_has_the_bits_of_one(swept, flags, tmp_path):
    """In a process of its own, where each core is a device; killed once a member has a checkpoint."""
    workdir = tmp_path / "killed"
    command = [sys.executable, "run.py", *flags[:2], f"--workdir={workdir}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(workdir.glob("*/checkpoints/*")) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d of 5 finished", done.stderr)
    for row in json.loads((workdir / "results.json").read_text())["members"]:
        if row["status"] == "finished":
            assert_same_run(workdir / row["name"], swept[0] / row["name"])
    assert done.stdout.splitlines()[:5] == swept[1].splitlines()[:5]


def test_mistakes_are_one_line_and_leave_all_as_it_is(swept, flags, cli, tmp_path):
    folder, _ = swept
    config = Path(flags[1].removeprefix("--config=")).read_text()

    def given(sweep):
        path = tmp_path / f"{abs(hash(sweep))}.py"
        path.write_text(config + f"\ndef sweep():\n    {sweep}\n")
        return ["sweep", f"--config={path}", f"--workdir={tmp_path / 'new'}"]

    (tmp_path / "none.py").write_text("def get_config():\n    return {}\n")
    (tmp_path / "file").write_text("")
    for arguments, message in [
        (["sweep"], "--config is missing"),
        (["sweep", f"--config={tmp_path / 'none.py'}"], "has no sweep() that returns a list of dicts"),
        (given("return []"), "sweep() returns no members"),
        (given("return 5"), "has no sweep() that returns a list of dicts"),
        (given("return [{'seed': 1}, 3]"), "has no sweep() that returns a list of dicts"),
        (given("return sweeps.zip(sweeps.seeds(1), sweeps.choice('steps', [1, 2]))"), "sweeps of the same length"),
        (given("return [{'optimizer.lerning_rate': 1}]"), "did you mean 'optimizer.learning_rate'"),
        (given("return [{'seed': 1}, {'seed': 1}]"), "two members of the sweep have the name seed=1"),
        (given("return [{'workdir': 'x'}]"), "workdir cannot be overridden"),
        (given("return [{1: 2}]"), "has no sweep() that returns a list of dicts"),
        ([*flags, "--shard=3/2"], "--shard=3/2 is not I/N with I from 0 to N-1"),
        ([*flags, "--shard=2/2"], "--shard=2/2"),
        ([*flags, "--shard=a"], "--shard=a"),
        ([*flags, "--config.batch_size=2"], "belongs to another config: batch_size is 4 there, 2 here"),
        ([*given("return sweeps.seeds(2)")[:2], flags[2]], "belongs to another sweep: 5 of its members"),
        ([*flags[:2], f"--workdir={tmp_path}"], "is not empty and not this sweep (it has"),
        ([*flags[:2], f"--workdir={tmp_path / 'file'}"], "is a file; give another folder"),
        ([*flags, "--config.sweep.mode=vamp"], "did you mean 'vmap'"),
    ]:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, (arguments, err)
        assert before == {path: path.read_bytes() for path in before}
    assert not (tmp_path / "new").exists()


def test_shards_are_numbered_from_0():
    assert [parse_shard(text) for text in ("0/1", "2/3")] == [(0, 1), (2, 3)]
    for text in ("1/1", "-1/2", "1", "", "1/0", "0/3/4"):
        with pytest.raises(UserError):
            parse_shard(text)


def row(status, nll=None, **overrides):
    figures = {"nll": nll, "perplexity": 2.0, "bits_per_char": nll} if status == "finished" else None
    return {"name": "x", "overrides": overrides, "status": status, "valid": figures, "test": None}


def test_settings_are_ranked_by_their_mean_and_those_that_diverge_come_last():
    rows = [
        row("finished", 1.0, a=1, seed=0), row("diverged", a=1, seed=1),
        row("finished", 3.0, a=2, seed=0), row("finished", 2.0, a=2, seed=1), row("finished", 4.0, a=2, seed=2),
        row("finished", 2.5, a=3, seed=0), row("unfinished", a=3, seed=1),
        row("unfinished", a=4, seed=0),
    ]  # fmt: skip
    ranked = settings_of(rows)
    assert [setting["overrides"]["a"] for setting in ranked] == [3, 2, 1, 4]
    assert ranked[1]["valid"]["nll"] == 3.0
    assert ranked[1]["valid"]["nll_standard_error"] == pytest.approx(1 / 3**0.5)  # of 2, 3, 4
    assert ranked[1]["valid"]["perplexity"] == pytest.approx(20.0855369)  # exp of the mean
    assert ranked[0]["valid"]["nll_standard_error"] is None and ranked[3]["valid"] is None
    rows[2]["test"], rows[3]["test"] = rows[2]["valid"], rows[3]["valid"] | {"nll": None, "bits_per_char": None}
    assert settings_of(rows)[1]["test"]["nll_standard_error"] is None  # the state ran away in the test text
    shown = describe({"members": rows, "settings": ranked, "best": None})
    assert "1 diverged: x" in shown and "not finished yet: 2." in shown
    assert "±" in shown and "s.e. is the standard error" in " ".join(shown.split())


def test_without_several_seeds_no_errors_are_shown():
    rows = [row("finished", 1.0, a=1), row("finished", 2.0, a=2), row("pruned", a=3)]
    shown = describe({"members": rows, "settings": settings_of(rows), "best": None})
    assert "±" not in shown and "s.e." not in shown and "1.0000" in shown and "perplexity" in shown
