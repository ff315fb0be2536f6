"""Searches with the journal file, in this process and in several: every trial is accounted for, whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from optuna.trial import TrialState  # noqa: E402

from rnn_lm.config import load_search  # noqa: E402
from rnn_lm.errors import Diverged, UserError  # noqa: E402
from rnn_lm.files import read_json  # noqa: E402
from rnn_lm.interrupts import Stopped  # noqa: E402
from rnn_lm.runs.folder import Hashes, read_diverged  # noqa: E402
from rnn_lm.runs.origin import hashes_of  # noqa: E402
from rnn_lm.runs.record import read_metrics  # noqa: E402
from rnn_lm.sweeps.search import search  # noqa: E402
from rnn_lm.sweeps.storage import in_our_words  # noqa: E402
from rnn_lm.sweeps.study import SAMPLERS, Study, identity_of  # noqa: E402
from rnn_lm.sweeps.sweep import sweep  # noqa: E402
from tests.conftest import SEARCH_FILE, small_config  # noqa: E402
from tests.training.test_loop import assert_same_run, stop_at  # noqa: E402

ROOT = Path(__file__).parents[2]


def config_of(text_file, **changes):
    given = {"steps": 20, "eval_every": 5, "save_every": 5, "sweep__trials": 4, "sweep__pruner": "none"}
    return small_config(text_file, **given | {"optimizer__name": "sgd", "model__num_hiddens": 8} | changes)


def rate(trial):
    return {"optimizer.learning_rate": trial.suggest_float("rate", 1e-3, 1.0, log=True)}


def study_of(workdir):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(workdir / "study.log")))
    return optuna.load_study(study_name="search", storage=storage)


def workers_of(workdir):
    """Those that live, and those whose trials nobody has taken up."""
    return [path.name for path in (workdir / "workers").iterdir() if not path.name.startswith(".")]


def assert_accounted_for(workdir, trials):
    """Each trial is a row and has ended, both for the folder and for Optuna."""
    rows, told = read_json(workdir / "results.json")["members"], study_of(workdir).trials
    assert [row["trial"] for row in rows] == [*range(trials)] and len({row["name"] for row in rows}) == trials
    assert len(told) == trials
    for row, trial in zip(rows, told, strict=True):
        ended = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
        assert trial.state == ended[row["status"]], row
        if row["status"] == "finished":
            assert trial.value == row["valid"]["nll"]
        assert Path(row["workdir"]).is_dir() and trial.user_attrs["overrides"] == row["overrides"]
    assert not workers_of(workdir)
    return rows


@pytest.fixture(scope="module")
def searched(tmp_path_factory, text_file):
    """The folder of a finished search, and what it returned."""
    workdir = tmp_path_factory.mktemp("search") / "rates"
    return workdir, search(config_of(text_file), rate, workdir, command=["python", "run.py", "--config=x.py"])


def test_each_trial_is_a_run_and_a_row(searched, text_file, tmp_path):
    workdir, result = searched
    rows = assert_accounted_for(workdir, 4)
    assert result == read_json(workdir / "results.json") and {row["status"] for row in rows} == {"finished"}
    best = min(rows, key=lambda row: row["valid"]["nll"])
    assert result["best"]["name"] == best["name"] and best["name"].startswith(f"{best['trial']:04},learning_rate=")
    drawn = best["overrides"]["optimizer.learning_rate"]
    assert f"--config.optimizer.learning_rate={drawn!r}" in result["best"]["command"]
    sweep(config_of(text_file), [best["overrides"]], tmp_path / "sweep")
    [alone] = [path for path in (tmp_path / "sweep").iterdir() if path.name.startswith("learning_rate")]
    assert_same_run(Path(best["workdir"]), alone)
    history = result["search"]["history"]
    assert sorted(row["nll"] for row in history) == sorted(row["valid"]["nll"] for row in rows)
    assert [row["best"] for row in history] == [min(r["nll"] for r in history[: i + 1]) for i in range(4)]
    assert result["search"]["importances"] == {}  # too few trials


def test_a_search_goes_on_where_it_was_stopped_and_draws_the_same(searched, text_file, tmp_path, monkeypatch):
    workdir, whole = searched
    mine = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="run the same command to resume") as stopped:
        stop_at(patch, 12, signal.SIGTERM)
        search(config_of(text_file), rate, mine)
    assert stopped.value.signum == signal.SIGTERM
    left = study_of(mine).get_trials(states=[TrialState.RUNNING])
    assert left and read_json(mine / "results.json")["members"][left[0].number]["status"] == "unfinished"
    search(config_of(text_file, sweep__trials=2), rate, mine)
    search(config_of(text_file, log_every=7), rate, mine)  # with more trials, and with a field that may change
    rows = assert_accounted_for(mine, 4)
    for row, theirs in zip(rows, whole["members"], strict=True):
        for part in ("overrides", "valid", "test", "steps"):
            assert row[part] == theirs[part]
    before = read_json(mine / "results.json")
    assert search(config_of(text_file), rate, mine) == before  # there is nothing left to do


def test_a_repeated_draw_is_not_trained_again(text_file, tmp_path):
    def one_of_two(trial):
        return {"optimizer.learning_rate": trial.suggest_categorical("rate", [0.1, 0.2])}

    result = search(config_of(text_file, sweep__trials=6, sweep__sampler="random"), one_of_two, tmp_path / "few")
    rows = assert_accounted_for(tmp_path / "few", 6)
    own, again = ([row for row in rows if ("repeats" in row) is repeats] for repeats in (False, True))
    assert len(own) == 2 and len(again) == 4
    assert len([path for path in (tmp_path / "few").iterdir() if path.name.startswith("00")]) == 2
    named = {row["name"]: row for row in own}
    for row in again:
        original = named[row["repeats"]]
        assert {row[part] == original[part] for part in ("valid", "test", "workdir", "overrides")} == {True}
    assert [setting["members"] for setting in result["settings"]] == [1, 1]  # it tells nothing new of chance


def test_the_progress_counts_what_each_trial_is_trained_on(text_file, tmp_path, capsys):
    def rows(trial):
        return {"batch_size": 4 * (1 + trial.number % 2)}  # the third repeats the first

    config = config_of(text_file, sweep__trials=3, steps=5, batch_size=4)
    result = search(config, rows, tmp_path / "rows")
    trained = [5 * row["overrides"]["batch_size"] * config.segment_length for row in result["members"]]
    assert "repeats" in result["members"][2]
    assert f" finished  100% of {sum(trained):,} tokens" in capsys.readouterr().err


def test_a_grid_ends_when_it_has_been_searched(text_file, tmp_path):
    def grid(trial):
        cell = trial.suggest_categorical("cell", ["elman", "gru"])
        return {"model.cell": cell} | ({"seed": trial.suggest_int("seed", 0, 1)} if cell == "gru" else {})

    config = config_of(text_file, sweep__trials=9, sweep__sampler="grid", steps=5)
    assert len(search(config, grid, tmp_path / "grid")["members"]) == 3
    rows = assert_accounted_for(tmp_path / "grid", 3)
    assert len({json.dumps(row["overrides"]) for row in rows}) == 3
    assert len(search(config, grid, tmp_path / "grid")["members"]) == 3
    random = config_of(text_file, sweep__trials=4, sweep__sampler="random", steps=5)
    assert len(search(random, grid, tmp_path / "grid")["members"]) == 4


def test_a_grid_goes_on_after_combinations_with_equal_overrides(text_file, tmp_path):
    def grid(trial):
        chosen, unused = trial.suggest_categorical("chosen", [0, 1, 2]), trial.suggest_categorical("unused", [0, 1])
        return {"seed": chosen * unused}  # 0 for four of the six

    config = config_of(text_file, sweep__trials=9, sweep__sampler="grid", steps=5)
    search(config, grid, tmp_path / "grid")
    rows = assert_accounted_for(tmp_path / "grid", 6)
    assert {row["overrides"]["seed"] for row in rows} == {0, 1, 2}
    assert sum("repeats" in row for row in rows) == 3


@pytest.mark.parametrize("mode", ["sequential", pytest.param("vmap", marks=pytest.mark.slow)])
def test_trials_that_are_worse_are_pruned_and_the_others_go_on(text_file, tmp_path, monkeypatch, mode):
    """A pruner that gives up the even trials at step 10."""

    class Even(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number % 2 == 0 and trial.last_step >= 10

    monkeypatch.setitem(__import__("rnn_lm.sweeps.study", fromlist=["PRUNERS"]).PRUNERS, "median", lambda steps: Even())
    config = config_of(text_file, sweep__mode=mode, sweep__pruner="median", sweep__trials=4)
    lines = []
    result = search(config, rate, tmp_path / mode, on_line=lines.append)
    rows = assert_accounted_for(tmp_path / mode, 4)
    assert [row["status"] for row in rows] == ["pruned", "finished"] * 2
    for row, trial in zip(rows, study_of(tmp_path / mode).trials, strict=True):
        evaluated = {line["step"]: line["nll"] for line in read_metrics(Path(row["workdir"]), "valid")}
        assert [*evaluated] == ([5, 10] if row["status"] == "pruned" else [5, 10, 15, 20])
        assert trial.intermediate_values == {step: nll for step, nll in evaluated.items() if step < 20}
        assert {line["step"] for line in lines if line["member"] == row["name"]} >= {*evaluated}
        if row["status"] == "pruned":
            assert row["valid"] is None and row["pruned"] == {"step": 10, "nll": evaluated[10]}
            assert json.loads((Path(row["workdir"]) / "pruned.json").read_text())["step"] == 10
            assert (Path(row["workdir"]) / "checkpoints" / "10").is_dir()
    assert result["settings"][-1]["pruned"] == 1 and result["settings"][0]["pruned"] == 0


def test_trials_that_diverge_count_as_bad_ones(text_file, tmp_path):
    def some(trial):
        return {"optimizer.learning_rate": 1e9 if trial.number % 2 else trial.suggest_float("rate", 0.1, 0.2)}

    config = config_of(text_file, model__activation="identity", optimizer__clip_norm=0.0, sweep__trials=3)
    search(config, some, tmp_path / "some")
    rows = assert_accounted_for(tmp_path / "some", 3)
    assert [row["status"] for row in rows] == ["finished", "diverged", "finished"]
    assert read_diverged(Path(rows[1]["workdir"])) == rows[1]["diverged"]
    with pytest.raises(Diverged, match="all trials of the search diverged"):
        search(config, lambda trial: {"optimizer.learning_rate": 1e9, "seed": trial.number}, tmp_path / "all")


def test_what_a_worker_left_behind_is_taken_up(searched, text_file, tmp_path):
    """Workers that died after they had asked, before they had drawn, and before they told the result."""
    workdir = tmp_path / "left"
    shutil.copytree(searched[0], workdir)
    config = config_of(text_file, sweep__trials=8)
    study = study_of(workdir)
    study.ask()  # died at once
    died = study.ask()
    died.set_user_attr("worker", "gone")
    died.suggest_float("rate", 1e-3, 1.0, log=True)
    told = study.ask()  # a repeat whose original has ended
    told.set_user_attr("worker", "gone")
    told.suggest_float("rate", 1e-3, 1.0, log=True)
    told.set_user_attr("repeats", 1)
    told.set_user_attr("overrides", searched[1]["members"][1]["overrides"])
    untold = study.ask()
    untold.set_user_attr("worker", "gone")
    untold.set_user_attr("overrides", {"optimizer.learning_rate": 0.25})
    search(config, rate, workdir)
    rows = assert_accounted_for(workdir, 8)
    assert rows[5]["overrides"] == {"optimizer.learning_rate": died.params["rate"]}
    assert rows[6]["repeats"] == rows[1]["name"]
    assert rows[7]["overrides"] == {"optimizer.learning_rate": 0.25}
    done = study.ask()  # its run has ended
    done.set_user_attr("worker", "gone")
    done.set_user_attr("overrides", {"optimizer.learning_rate": 0.25, "seed": 0})
    shutil.copytree(rows[7]["workdir"], workdir / "0008,learning_rate=0.25,seed=0")
    search(config_of(text_file, sweep__trials=9), rate, workdir)
    assert assert_accounted_for(workdir, 9)[8]["valid"] == rows[7]["valid"]


def test_a_living_worker_keeps_its_trials(searched, text_file, tmp_path):
    workdir = tmp_path / "alive"
    shutil.copytree(searched[0], workdir)
    config = config_of(text_file, sweep__trials=7)
    from rnn_lm.runs.load import text_and_origin

    hashes = hashes_of(*text_and_origin(config))
    with in_our_words():
        first, second = (Study(workdir, config, hashes, "") for _ in range(2))
        assert first.ask(rate).number == 4 and second.ask(rate).number == 5 and first.ask(rate).number == 6
        assert second.ask(rate) is None
        assert not first.prune(4, 5, 3.0)
        first.close()
        assert [second.ask(rate).number, second.ask(rate).number, second.ask(rate)] == [4, 6, None]
        assert not second.prune(4, 5, 3.0)  # again, from the same checkpoint
        second.tell(4, "finished", 3.0)
        second.tell(4, "finished", 2.0)  # too late: another worker was faster
        assert [trial.ended for trial in second.trials()] == 5 * [True] + 2 * [False]
        second.close()


def test_a_repeat_waits_for_its_original(text_file, tmp_path):
    from rnn_lm.runs.load import text_and_origin

    config = config_of(text_file, sweep__trials=3)
    with in_our_words():
        first, second = (Study(tmp_path / "x", config, hashes_of(*text_and_origin(config)), "") for _ in range(2))
        one, same = first.ask(lambda trial: {"seed": 1}), second.ask(lambda trial: {"seed": 1})
        assert (one.repeats, same.repeats) == (None, 0) and not same.ended
        assert second.ask(lambda trial: {"seed": 2}).number == 2  # a repeat is no trial that was left
        first.tell(0, "finished", 3.0)
        assert [trial.ended for trial in second.trials()] == [True, True, False]
        assert {*first.values()} == {(0, 3.0), (1, 3.0)}
        first.close()
        second.close()


def wrong(**overrides):
    return lambda trial: overrides


@pytest.mark.parametrize(
    ("suggest", "changes", "message"),
    [
        (wrong(**{"optimizer.learning_rat": 0.1}), {}, "trial 0 of the search.*did you mean 'optimizer.learning_rate'"),
        (wrong(**{"workdir": "x"}), {}, "workdir cannot be overridden"),
        (wrong(**{"sweep.trials": 3}), {}, "sweep.trials cannot be overridden: it applies to the whole sweep"),
        (wrong(**{"seed": 0.5}), {}, "config.seed is 0.5; it takes a whole number"),
        (wrong(**{"batch_size": 99999}), {}, "the training text has"),
        (lambda trial: [{"seed": 0}], {}, "search.trial. returned .*; it must return a dict, field name → value"),
        (rate, {"batch_size": 0}, "^config.batch_size is 0"),
    ],
)
def test_a_mistake_leaves_nothing_behind(text_file, tmp_path, suggest, changes, message):
    with pytest.raises(UserError, match=message):
        search(config_of(text_file, **changes), suggest, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_storages_that_cannot_be_used(text_file, tmp_path):
    config = config_of(text_file)
    for url, message in [
        ("sqlite:///x.db", "SQLite is not made for many writers"),
        ("oracle://x", "oracle is not known"),
        ("secret", "--storage is not a URL such as postgresql"),
        ("postgresql+nodriver://u:secret@h/d", "--storage=postgresql.nodriver://h/d cannot be used"),
        (
            "postgresql+psycopg2://u:secret@127.0.0.1:9/d",
            "--storage=postgresql.psycopg2://127.0.0.1:9/d cannot be used",
        ),
    ]:
        with pytest.raises(UserError, match=message) as error:
            search(config, rate, tmp_path / "none", storage=url)
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "none").exists()


def test_folders_and_studies_of_others(searched, text_file, tmp_path):
    workdir = tmp_path / "mine"
    shutil.copytree(searched[0], workdir)
    kept = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for changes, message in [
        ({"steps": 30}, "has a search of another config: steps is 20 there, 30 here; give another folder"),
        ({"corpus__path": str(Path(__file__))}, "another config: text is"),
    ]:
        with pytest.raises(UserError, match=message):
            search(config_of(text_file, **changes), rate, workdir)
    with pytest.raises(UserError, match="belongs to another sweep"):
        sweep(config_of(text_file), [{"seed": 0}], workdir)
    (workdir / "study.log").rename(workdir / "elsewhere.log")
    with pytest.raises(UserError, match="a study which is not in this storage; give the --storage"):
        search(config_of(text_file), rate, workdir)
    (workdir / "elsewhere.log").rename(workdir / "study.log")
    assert kept == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    (workdir / "study.json").unlink()
    (workdir / "results.json").unlink()
    with pytest.raises(UserError, match="is not empty and not a search"):
        search(config_of(text_file), rate, workdir)
    with pytest.raises(UserError, match="belongs to a sweep that is not a search"):
        sweep(config_of(text_file, steps=5), [{"seed": 0}], tmp_path / "sweep")
        search(config_of(text_file, steps=5), rate, tmp_path / "sweep")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(workdir / "study.log", other)  # as a database that another folder uses
    with pytest.raises(UserError, match="a study search of another folder; workers of one search share their folder"):
        search(config_of(text_file), rate, other)
    for damaged in ("no journal\n" * 2, (workdir / "study.log").read_text() + "no line\n"):
        (other / "study.log").write_text(damaged)
        with pytest.raises(UserError, match="study.log is not the journal of a study, or is damaged"):
            search(config_of(text_file), rate, other)
        assert (other / "study.log").read_text() == damaged


def test_a_line_that_a_crash_cut_short_is_no_loss(searched, text_file, tmp_path):
    workdir = tmp_path / "torn"
    shutil.copytree(searched[0], workdir)
    with (workdir / "study.log").open("a") as file:
        file.write('{"op_code":4,"wor')
    search(config_of(text_file, sweep__trials=5), rate, workdir)
    assert_accounted_for(workdir, 5)


def test_a_line_that_another_worker_cut_short_is_no_loss(text_file, tmp_path):
    config = config_of(text_file)
    with in_our_words():
        first, second = (Study(tmp_path / "x", config, Hashes("a text"), "") for _ in range(2))
        first.ask(rate)
        second.ask(rate)
        with (tmp_path / "x" / "study.log").open("a") as file:  # its disk was full
            file.write('{"op_code":6,"wor')
        first.tell(0, "finished", 3.0)
        second.tell(1, "finished", 2.0)
        assert first.values() == second.values() == [(0, 3.0), (1, 2.0)]
        first.close()
        second.close()


def test_draws_depend_on_the_seed_and_the_number_alone():
    def drawn(sampler, seed):
        return optuna.create_study(sampler=SAMPLERS[sampler](seed)).ask().suggest_float("x", 0, 1, step=0.001)

    with in_our_words():
        for sampler in SAMPLERS:
            assert drawn(sampler, 1) == drawn(sampler, 1) != drawn(sampler, 2)


def test_importances_tell_which_field_matters(tmp_path, text_file):
    from rnn_lm.runs.load import text_and_origin

    config = config_of(text_file, sweep__trials=40, sweep__sampler="random")
    with in_our_words():
        study = Study(tmp_path / "study", config, hashes_of(*text_and_origin(config)), "")
        while drawn := study.ask(lambda trial: {name: trial.suggest_float(name, 0, 1) for name in ("much", "none")}):
            study.tell(drawn.number, "finished", drawn.overrides["much"])
        shares = study.importances()
        assert sum(shares.values()) == pytest.approx(1) and shares["much"] > 0.8
        numbers, values = zip(*study.values(), strict=True)
        assert numbers == (*range(40),) and values[0] == study.trials()[0].overrides["much"]
        study.close()


def test_the_identity_of_a_study_has_what_its_losses_depend_on(text_file):
    from rnn_lm.runs.folder import Hashes

    known = identity_of(config_of(text_file), Hashes("a", "b"))
    assert {"steps", "eval_every", "stop_patience", "text", "seed", "model.cell"} <= known.keys()
    assert not {"log_every", "save_every", "sweep.mode", "sweep.trials", "corpus.path"} & known.keys()


def started(path, workdir):
    command = [sys.executable, str(ROOT / "run.py"), "sweep", f"--config={path}", f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, worker):
    for _ in range(1200):
        if condition():
            return
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened")


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_trains_leaves_its_trials_to_another(tmp_path, text_file):
    path, workdir = tmp_path / "rates.py", tmp_path / "search"
    path.write_text(SEARCH_FILE.format(steps=3000, trials=5, path=str(text_file)))
    first = started(path, workdir)
    try:
        wait_until(lambda: [*workdir.glob("00*/checkpoints/*")], first)
        [worker] = workers_of(workdir)
        second = started(path, workdir)
        try:
            wait_until(lambda: len(workers_of(workdir)) == 2, second)
            os.kill(first.pid, signal.SIGKILL)
            first.communicate()
            running = study_of(workdir).get_trials(states=[TrialState.RUNNING])
            mine = [trial.number for trial in running if trial.user_attrs.get("worker") == worker]
            assert mine and (workdir / "workers" / worker).exists()
            out, err = second.communicate(timeout=300)
        finally:
            second.kill()
    finally:
        first.kill()
    assert second.returncode == 0, err
    assert "Traceback" not in err and "Warning" not in err and "optuna" not in err.lower()
    assert "5 members." in out and "not finished yet" not in out
    started(path, workdir).communicate()  # removes the dead worker's lock
    rows = assert_accounted_for(workdir, 5)
    trained = [trial.user_attrs["worker"] for trial in study_of(workdir).trials]
    assert {row["status"] for row in rows} == {"finished"} and not {worker} & {trained[number] for number in mine}
    for number in mine:  # went on from the checkpoint: no step is there twice
        steps = [line["step"] for line in read_metrics(Path(rows[number]["workdir"]), "valid")]
        assert steps == [*range(50, 3001, 50)]


def test_optuna_that_is_missing(tmp_path, text_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "rnn_lm.sweeps.storage")
    with pytest.raises(UserError, match=r"needs the package optuna: pip install 'rnn_lm\[search\]'"):
        search(config_of(text_file), rate, tmp_path / "search")


def test_a_file_has_its_search(tmp_path):
    assert load_search(str(ROOT / "experiments/sweeps/search.py")) is not None
    assert load_search("sweeps/learning_rate") is None
