"""Sweeps, run in this process: members equal solo runs, whatever happens on the way."""

import json
import os
import shutil
import signal
from contextlib import ExitStack, closing

import jax
import numpy as np
import pytest

from rnn_lm import sweeps
from rnn_lm.config import complete_config
from rnn_lm.errors import Diverged, UserError
from rnn_lm.interrupts import Stopped
from rnn_lm.program import batches_of
from rnn_lm.runs.folder import read_config
from rnn_lm.runs.load import load
from rnn_lm.runs.lock import locked_members
from rnn_lm.runs.record import read_metrics
from rnn_lm.sweeps.members import members_of
from rnn_lm.sweeps.sweep import leaves_idle, plan, sweep
from rnn_lm.training import memory
from rnn_lm.training.loop import Trainer
from rnn_lm.training.run import Run
from rnn_lm.training.train import train
from tests.conftest import small_config
from tests.training.test_loop import assert_same_run, final_arrays, stop_at

# Plain SGD on an identity network: the last rate does diverge, to numbers that are not finite.
RATES = [0.1, 0.5, 1e9]
MEMBERS = sweeps.product(sweeps.choice("optimizer.learning_rate", RATES), sweeps.seeds(2))
FINISHED = [f"learning_rate={rate},seed={seed}" for rate in (0.1, 0.5) for seed in (0, 1)]


def config_of(text_file, **changes):
    given = {"steps": 30, "optimizer__name": "sgd", "model__activation": "identity", "model__dropout": 0.2}
    return small_config(text_file, **given | {"eval_every": 10, "save_every": 15} | changes)


def losses(workdir, split="train"):
    return [line["nll"] for line in read_metrics(workdir) if line["split"] == split]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory, text_file):
    """The folder of a sweep whose members were trained one after the other, and what it returned."""
    workdir = tmp_path_factory.mktemp("sweeps") / "one-by-one"
    result = sweep(config_of(text_file), MEMBERS, workdir, command=["python", "run.py", "--config=x.py"])
    return workdir, result


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, text_file):
    """The same, `vmap`ped; every loss is logged."""
    workdir = tmp_path_factory.mktemp("sweeps") / "side-by-side"
    result = sweep(config_of(text_file, sweep__mode="vmap"), MEMBERS, workdir)
    return workdir, result


def test_a_member_has_the_bits_and_the_folder_of_its_solo_run(one_by_one, tmp_path, text_file):
    workdir, result = one_by_one
    name = "learning_rate=0.5,seed=1"
    summary = train(config_of(text_file, optimizer__learning_rate=0.5, seed=1), tmp_path / "solo")
    assert_same_run(workdir / name, tmp_path / "solo")
    assert {path.name.partition(".tfevents")[0] for path in (workdir / name).iterdir()} == {
        path.name.partition(".tfevents")[0] for path in (tmp_path / "solo").iterdir()
    }
    theirs = json.loads((workdir / name / "summary.json").read_text())
    for part in ("valid", "test", "train", "baselines", "corpus", "num_params", "best_step", "lanes"):
        assert theirs[part] == summary[part], part
    [row] = [row for row in result["members"] if row["name"] == name]
    assert row["test"] == {figure: summary["test"][figure] for figure in row["test"]} and row["status"] == "finished"
    assert read_config(workdir / name)[0].seed == 1
    load(workdir / name)
    load(workdir / name, mix="ngram")


def test_members_trained_at_once_equal_those_trained_alone(one_by_one, at_once):
    for name in FINISHED:
        alone, together = one_by_one[0] / name, at_once[0] / name
        for split in ("train", "valid"):
            assert losses(together, split) == pytest.approx(losses(alone, split), rel=1e-5)
        mine, theirs = final_arrays(together), final_arrays(alone)
        assert mine.keys() == theirs.keys()
        for array in mine:
            np.testing.assert_allclose(mine[array], theirs[array], rtol=1e-3, atol=1e-5, err_msg=array)
    by_name = [{row["name"]: row for row in result["members"]} for _, result in (one_by_one, at_once)]
    for name in FINISHED:
        alone, together = (rows[name] for rows in by_name)
        assert alone["mode"] == "sequential" and together["mode"] == "vmap"
        assert together["test"]["perplexity"] == pytest.approx(alone["test"]["perplexity"], rel=1e-3)
        lanes = json.loads((at_once[0] / name / "summary.json").read_text())["lanes"]
        assert lanes == 6


def test_members_that_diverge_are_reported_and_the_others_go_on(one_by_one, at_once):
    for workdir, result in (one_by_one, at_once):
        assert [row["name"] for row in result["members"] if row["status"] == "finished"] == FINISHED
        for row in result["members"][4:]:
            assert row["status"] == "diverged" and row["valid"] is row["test"] is None
            assert row["diverged"] == {
                "step": read_metrics(workdir / row["name"])[-1]["step"],
                "what": "the perplexity or a gradient",
            }
            assert read_metrics(workdir / row["name"])[-1]["perplexity"] is None  # not finite
        assert result["settings"][-1]["overrides"] == {"optimizer.learning_rate": 1e9}
        assert result["settings"][-1] | {"diverged": 2, "finished": 0, "valid": None} == result["settings"][-1]
    steps = [[row["diverged"]["step"] for row in result["members"][4:]] for _, result in (one_by_one, at_once)]
    assert steps[0] == steps[1]


def test_n_grams_are_counted_once_and_shared(one_by_one):
    workdir, _ = one_by_one
    files = [workdir / name / "ngram.npz" for name in FINISHED] + list((workdir / "ngrams").glob("*.npz"))
    assert len(files) == 5 and len({file.stat().st_ino for file in files}) == 1


def test_a_finished_sweep_stays_as_it_is_and_grows_by_new_members(one_by_one, tmp_path, text_file, capsys):
    workdir = tmp_path / "sweep"
    shutil.copytree(one_by_one[0], workdir)
    before = {path: path.read_bytes() for name in FINISHED for path in (workdir / name).rglob("*") if path.is_file()}
    assert sweep(config_of(text_file), MEMBERS, workdir)["members"] == [
        row | {"workdir": str(workdir / row["name"])} for row in one_by_one[1]["members"]
    ]
    with pytest.raises(UserError, match="the training text has"):  # nothing comes of a mistake
        sweep(config_of(text_file), [*MEMBERS, {"batch_size": 9999}], workdir)
    capsys.readouterr()
    grown = sweep(config_of(text_file), [*MEMBERS, {"optimizer.learning_rate": 0.2, "seed": 0}], workdir)
    said = capsys.readouterr().err
    assert "6 of 7 members finished, 1 to train" in said and "compiling learning_rate=0.2,seed=0 …" in said
    assert f"text: {text_file}" in said
    assert len(grown["members"]) == 7 and grown["members"][-1]["status"] == "finished"
    assert before == {path: path.read_bytes() for path in before}
    for other, message in [
        (MEMBERS[:-1], "belongs to another sweep: 2 of its members are not in this one, such as learning_rate=1e.09"),
        (sweeps.seeds(2), "belongs to another sweep: 7 of its members"),
    ]:
        with pytest.raises(UserError, match=message):
            sweep(config_of(text_file), other, workdir)
    with pytest.raises(UserError, match="belongs to another config: batch_size is 4 there, 8 here"):
        sweep(config_of(text_file, batch_size=8), [*MEMBERS, {"optimizer.learning_rate": 0.2, "seed": 0}], workdir)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("mode", ["sequential", pytest.param("vmap", marks=pytest.mark.slow)])
def test_stopped_and_started_again_it_is_the_same(one_by_one, at_once, tmp_path, text_file, monkeypatch, mode):
    config, workdir = config_of(text_file, sweep__mode=mode), tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="members finished, the others saved") as stopped:
        stop_at(patch, 12, signal.SIGINT)
        sweep(config, MEMBERS, workdir)
    assert stopped.value.signum == signal.SIGINT
    statuses = {row["status"] for row in json.loads((workdir / "results.json").read_text())["members"]}
    assert "unfinished" in statuses
    whole, result = {"sequential": one_by_one, "vmap": at_once}[mode]
    again = sweep(config, MEMBERS, workdir)
    for name in FINISHED:
        assert_same_run(workdir / name, whole / name)
    for mine, theirs in zip(again["members"], result["members"], strict=True):
        assert [mine[part] for part in ("status", "valid", "test")] == [theirs[x] for x in ("status", "valid", "test")]


def test_members_that_were_saved_at_different_steps_meet_again(at_once, tmp_path, text_file, monkeypatch):
    """A kill between two saves: one is ahead, one has nothing yet, two have diverged, one lost its summary."""
    workdir = tmp_path / "killed"
    shutil.copytree(at_once[0], workdir)
    for name in FINISHED[:3]:
        (workdir / name / "summary.json").unlink()
    shutil.rmtree(workdir / FINISHED[1] / "checkpoints" / "30")
    shutil.rmtree(workdir / FINISHED[2])
    kept = (workdir / FINISHED[3] / "summary.json").stat().st_mtime_ns
    result = sweep(config_of(text_file, sweep__mode="vmap"), MEMBERS, workdir)
    assert kept == (workdir / FINISHED[3] / "summary.json").stat().st_mtime_ns
    for name in FINISHED:
        assert_same_run(workdir / name, at_once[0] / name)
    for mine, theirs in zip(result["members"], at_once[1]["members"], strict=True):
        assert mine["valid"] == (theirs["valid"] and pytest.approx(theirs["valid"], rel=1e-6))


def test_a_larger_group_takes_no_more_descriptors_and_threads(tmp_path, text_file):
    def taken(count):
        members = members_of(config_of(text_file), sweeps.seeds(count), tmp_path / str(count))
        with locked_members([member.workdir for member in members]), ExitStack() as opened:
            for member in members:
                run = Run(member.config, member.workdir, member.corpus, alone=False)
                state = run.open()
                opened.callback(run.close)
                run.log_sample(0, 5.0, "a sample")
                run.save(1, state)
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    taken(4)  # starts the threads that all share
    few, many = taken(2), taken(12)
    assert max(np.subtract(many, few)) < 5, (few, many)  # for ten members more: less than one each


def test_members_that_have_ended_stand_still(at_once, tmp_path, text_file):
    workdir = tmp_path / "one-goes-on"
    shutil.copytree(at_once[0], workdir)
    (workdir / FINISHED[0] / "summary.json").unlink()
    shutil.rmtree(workdir / FINISHED[0] / "checkpoints" / "30")
    members = members_of(config_of(text_file), MEMBERS, workdir)
    runs = [Run(member.config, member.workdir, member.corpus, alone=False) for member in members]
    with closing(Trainer(runs, batches_of(runs[0].program, members[0].corpus))) as trainer:
        assert trainer.first_step == 20 and trainer.state.finite.tolist() == [True] + 5 * [False]


def test_shards_in_any_order_fill_one_folder(one_by_one, tmp_path, text_file, monkeypatch):
    config, workdir = config_of(text_file), tmp_path / "shards"
    sweep(config, MEMBERS, workdir, shard=(2, 3))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 12)
        sweep(config, MEMBERS, workdir, shard=(0, 3))
    half = sweep(config, MEMBERS, workdir, shard=(1, 3))
    assert [row["status"] for row in half["members"]].count("unfinished") == 2
    result = sweep(config, MEMBERS, workdir, shard=(0, 3))
    whole, theirs = one_by_one
    for name in FINISHED:
        assert_same_run(workdir / name, whole / name)
    timing = {"workdir": None, "tokens_per_second": None, "wall_seconds": None}
    assert [row | timing for row in result["members"]] == [row | timing for row in theirs["members"]]
    assert result["settings"] == theirs["settings"]
    assert len(list((workdir / "ngrams").glob("*.npz"))) == 1


@pytest.mark.slow
def test_a_group_that_does_not_fit_into_memory_goes_in_parts(one_by_one, tmp_path, text_file, monkeypatch, caplog):
    config = config_of(text_file, sweep__mode="vmap", steps=10)
    needed = []
    original = memory._bytes_of
    monkeypatch.setattr(memory, "_bytes_of", lambda compiled: needed.append(original(compiled)) or needed[-1])
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed[0] * 2 // 3)
    jax.config.update("jax_log_compiles", True)
    try:
        sweep(config, MEMBERS[:4], tmp_path / "parts")
    finally:
        jax.config.update("jax_log_compiles", False)
    assert len(needed) == 2 and needed[1] < needed[0]  # all four, and then as many as that promises
    compiled = [text for text in caplog.messages if "ompiling jit(train_steps)" in text]
    assert len([text for text in compiled if text.startswith("Compiling")]) == 2, compiled  # and no other time
    lanes = [json.loads((tmp_path / "parts" / name / "summary.json").read_text())["lanes"] for name in FINISHED]
    assert lanes == [2, 2, 2, 2]
    for name in FINISHED:
        assert losses(tmp_path / "parts" / name)[0] == pytest.approx(losses(one_by_one[0] / name)[0], rel=1e-5)


def test_an_error_in_one_member_stops_and_saves_the_others(one_by_one, tmp_path, text_file):
    workdir = tmp_path / "damaged"
    shutil.copytree(one_by_one[0], workdir)
    (workdir / FINISHED[0] / "summary.json").unlink()
    for path in (workdir / FINISHED[0] / "checkpoints" / "30").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    shutil.rmtree(workdir / FINISHED[1])
    with pytest.raises(UserError, match="checkpoints/30: the checkpoint is damaged"):
        sweep(config_of(text_file), MEMBERS, workdir)
    assert (workdir / FINISHED[2] / "summary.json").exists()
    shutil.rmtree(workdir / FINISHED[0] / "checkpoints" / "30")
    result = sweep(config_of(text_file), MEMBERS, workdir)
    assert [row["valid"] for row in result["members"]] == [row["valid"] for row in one_by_one[1]["members"]]


def test_a_sweep_of_which_all_members_diverge_says_so(tmp_path, text_file):
    with pytest.raises(Diverged, match="all members of the sweep diverged"):
        sweep(config_of(text_file, steps=10), MEMBERS[4:], tmp_path / "sweep")
    with pytest.raises(Diverged):  # again, with nothing to train
        sweep(config_of(text_file, steps=10), MEMBERS[4:], tmp_path / "sweep")


def test_what_goes_together_and_when(tmp_path, text_file, monkeypatch):
    config = small_config(text_file, sweep__mode="vmap")
    cells = sweeps.product(sweeps.choice("model.cell", ["elman", "gru"]), sweeps.seeds(3))
    members = members_of(config, [*cells, {"model.cell": "gru", "model.dropout": 0.1}], tmp_path)
    sizes = lambda members, devices: [[m.name for m in job] for job in plan(members, devices)]  # noqa: E731
    names = [member.name for member in members]
    assert sizes(members, 1) == [names[:3], names[3:6], names[6:]]
    assert sizes(members, 2) == [names[:2], names[2:3], names[3:5], names[5:6], names[6:]]
    for member in members:
        member.config.sweep.mode = "sequential"
    assert sizes(members, 2) == [[name] for name in names]
    small, large = complete_config({}), complete_config({"model": {"num_hiddens": 2048, "cell": "lstm"}})
    assert not leaves_idle(small)  # a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert leaves_idle(small) and not leaves_idle(large)
