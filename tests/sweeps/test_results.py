"""The results of a sweep on the disk: how often they are written, and from what."""

import json
from types import SimpleNamespace

import pytest

from rnn_lm.errors import UserError
from rnn_lm.files import write_json
from rnn_lm.runs.folder import DIVERGED
from rnn_lm.runs.lock import LOCK
from rnn_lm.sweeps import results as module
from rnn_lm.sweeps.members import Member
from rnn_lm.sweeps.results import Results, check_sweep_folder, outcome_of, row_of
from tests.conftest import small_config

COUNT = 100


@pytest.fixture
def members(tmp_path, text_file):
    config = small_config(text_file)
    names = [f"seed={seed}" for seed in range(COUNT)]
    return [Member(name, {"seed": i}, config, tmp_path / name, None) for i, name in enumerate(names)]


def diverge(member):
    write_json(member.workdir / DIVERGED, {"step": 3, "what": "a parameter"})
    return row_of(member)


def statuses(tmp_path):
    return [row["status"] for row in json.loads((tmp_path / "results.json").read_text())["members"]]


def test_writing_takes_at_most_a_twentieth_of_the_time(tmp_path, members, monkeypatch):
    """Whatever a writing takes: here 2 s, while a member ends each second."""
    now, writings, written = [100.0], [], module.write_json

    def write(path, value):
        writings.append(now[0])
        now[0] += 2.0
        written(path, value)

    monkeypatch.setattr(module, "write_json", write)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    results = Results(tmp_path, members, [])
    for member in members:
        results.add(diverge(member))
        now[0] += 1.0
    assert writings == [100.0, 142.0, 184.0]  # 40 s after a writing has ended
    assert statuses(tmp_path).count("unfinished") > 0
    results.write()
    assert statuses(tmp_path) == COUNT * ["diverged"]
    assert (tmp_path / "results.csv").read_text().count("diverged") == COUNT


def test_members_that_have_ended_are_read_once_and_those_of_other_shards_are_found(tmp_path, members, monkeypatch):
    read, original = [], module.row_of
    monkeypatch.setattr(module, "row_of", lambda member: read.append(member.name) or original(member))
    results = Results(tmp_path, members[:3], [])
    results.add(diverge(members[0]))
    assert read == ["seed=1", "seed=2"] and statuses(tmp_path) == ["diverged", "unfinished", "unfinished"]
    diverge(members[1])  # by another process
    results.write()
    results.write()
    assert read == 2 * ["seed=1", "seed=2"] + ["seed=2"]
    assert statuses(tmp_path) == ["diverged", "diverged", "unfinished"]


@pytest.mark.parametrize(
    "files, status",
    [
        ({}, "unfinished"),
        ({"summary.json": {}}, "finished"),
        ({"summary.json": {"steps": 59}}, "unfinished"),
        ({"summary.json": {}, "diverged.json": {"step": 3, "what": "a parameter"}}, "diverged"),
        # older versions took a run as finished whose mean loss was finite and whose perplexity was not
        ({"summary.json": {"valid": {"nll": 800.0, "perplexity": None, "bits_per_char": 1154.0}}}, "diverged"),
        ({"summary.json": {"test": {"nll": None, "perplexity": None, "bits_per_char": None}}}, "diverged"),
    ],
)
def test_the_status_of_a_member_is_that_of_its_files(tmp_path, members, run_folder, files, status):
    summary = json.loads((run_folder / "summary.json").read_text())
    for name, content in files.items():
        write_json(members[0].workdir / name, (summary if name == "summary.json" else {}) | content)
    row = row_of(members[0])
    assert row["status"] == status and members[0].ended == (status != "unfinished")
    assert (row["valid"] is not None) == (status == "finished") and ("diverged" in row) == (status == "diverged")
    if status == "diverged":
        step = row["diverged"]["step"]
        assert f"is not finite at step {step}" in outcome_of(row) and step in (3, summary["best_step"])
    Results(tmp_path, members[:1], []).write()
    assert statuses(tmp_path) == [status]


def test_the_folder_of_a_sweep_that_was_killed_before_its_first_results(tmp_path, members):
    (tmp_path / "ngrams").mkdir()
    (tmp_path / "seed=3").mkdir()
    (tmp_path / LOCK).touch()
    check_sweep_folder(tmp_path, members)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is not empty and not this sweep"):
        check_sweep_folder(tmp_path, members)
