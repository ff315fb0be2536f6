"""`stop_patience`: the run ends with its best checkpoint, and what is resumed ends at the same step."""

import pytest

import rnn_lm
from rnn_lm.files import read_json
from rnn_lm.runs.record import read_metrics
from rnn_lm.training.train import train
from tests.conftest import small_config

# A rate that soon is too high: the loss is best at one of the first evaluations, and no step diverges.
OVERFITS = {"optimizer__learning_rate": 0.3, "eval_every": 5, "steps": 200, "log_every": 0, "save_every": 0}


def evaluations(workdir):
    return [(line["step"], line["nll"]) for line in read_metrics(workdir) if line["split"] == "valid"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, text_file):
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    train(small_config(text_file, stop_patience=3, **OVERFITS), workdir)
    return workdir


def test_it_ends_after_as_many_evaluations_without_a_new_best(stopped):
    summary, lines = read_json(stopped / "summary.json"), evaluations(stopped)
    best = min(lines, key=lambda line: line[1])[0]
    assert summary["best_step"] == best and summary["steps"] == lines[-1][0] == best + 3 * 5 < 200
    assert summary["stop_patience"] == 3
    assert summary["valid"]["tokens"] > 0  # the end of a run is as ever


def test_it_is_done_unless_one_has_more_patience(stopped, text_file, capsys, tmp_path):
    config = small_config(text_file, stop_patience=3, **OVERFITS)
    assert train(config, stopped)["steps"] == read_json(stopped / "summary.json")["steps"]
    assert "this run is done; --config.stop_patience=0 continues it" in capsys.readouterr().err
    before = evaluations(stopped)
    config.stop_patience, config.steps = 5, before[-1][0] + 10
    assert train(config, stopped)["steps"] > before[-1][0]
    assert evaluations(stopped)[: len(before)] == before


@pytest.mark.slow
def test_stopped_by_hand_and_resumed_it_ends_at_the_same_step(text_file, tmp_path, monkeypatch):
    """The count of evaluations goes on, and a run that was killed before its end was written ends at once."""
    config = small_config(text_file, stop_patience=3, **OVERFITS)
    train(config, tmp_path / "through")
    through = evaluations(tmp_path / "through")
    shorter = config.copy_and_resolve_references()
    shorter.steps = through[-1][0] - 5  # ends one evaluation before the patience does
    train(shorter, tmp_path / "resumed")
    assert train(config, tmp_path / "resumed")["steps"] == through[-1][0]
    assert evaluations(tmp_path / "resumed") == through
    (tmp_path / "resumed" / "summary.json").unlink()
    assert train(config, tmp_path / "resumed")["steps"] == through[-1][0]
    assert evaluations(tmp_path / "resumed") == through


@pytest.mark.parametrize("mode", ["sequential", pytest.param("vmap", marks=pytest.mark.slow)])
def test_members_of_a_sweep_stop_each_by_itself(text_file, tmp_path, mode):
    config = small_config(text_file, stop_patience=2, **OVERFITS | {"steps": 40})
    config.sweep.mode = mode
    rates = [{"optimizer.learning_rate": rate} for rate in (0.3, 0.01)]
    result = rnn_lm.sweep(config, rates, tmp_path / "sweep")
    assert [row["status"] for row in result["members"]] == ["finished", "finished"]
    assert result["members"][0]["steps"] < result["members"][1]["steps"] == 40
    assert rnn_lm.sweep(config, rates, tmp_path / "sweep") == result  # nothing is left to train
