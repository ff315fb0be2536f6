"""`on_line`: a function of the user's own gets each line of metrics.jsonl."""

import functools
import threading
import time

import jax
import pytest

import rnn_lm
import rnn_lm.sweeps.sweep as module
from rnn_lm.runs.record import read_metrics
from rnn_lm.training.train import train
from tests.conftest import small_config


def test_it_gets_what_is_written(text_file, tmp_path):
    lines = []
    train(small_config(text_file), tmp_path / "run", on_line=lines.append)
    assert lines == read_metrics(tmp_path / "run") and {line["split"] for line in lines} == {"train", "valid"}
    more = []
    train(small_config(text_file, steps=80), tmp_path / "run", on_line=more.append)
    assert lines + more == read_metrics(tmp_path / "run")


@pytest.mark.slow
def test_members_of_a_sweep_say_their_names_one_at_a_time(text_file, tmp_path, monkeypatch):
    """Two members in two threads; a line takes long enough for the other to come."""
    lines, inside, together = [], threading.Lock(), threading.Barrier(2)
    device = jax.devices()[0]
    train_members = functools.partial(module.train_members, devices=[device, device])
    monkeypatch.setattr(module, "train_members", train_members)
    run = module.Trainer.run
    monkeypatch.setattr(module.Trainer, "run", lambda *arguments: (together.wait(60), run(*arguments)))

    def on_line(line):
        assert inside.acquire(blocking=False)
        time.sleep(0.2)
        lines.append(line)
        inside.release()

    config = small_config(text_file, steps=10, log_every=1)
    result = rnn_lm.sweep(config, [{"seed": 0}, {"seed": 1}], tmp_path / "sweep", on_line=on_line)
    for row in result["members"]:
        mine = [{k: v for k, v in line.items() if k != "member"} for line in lines if line["member"] == row["name"]]
        assert mine == read_metrics(tmp_path / "sweep" / row["name"]) != []


def test_its_own_error_ends_the_run_which_can_be_resumed(text_file, tmp_path):
    def on_line(line):
        if line["step"] == 40:
            raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        train(small_config(text_file), tmp_path / "run", on_line=on_line)
    assert train(small_config(text_file), tmp_path / "run")["steps"] == 60
