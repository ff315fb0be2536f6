import subprocess
import sys

import pytest

from rnn_lm.errors import UserError
from rnn_lm.runs.lock import LOCK, locked, locked_members


def test_a_member_of_a_sweep_is_locked_against_a_run_by_itself_and_the_other_way_round(tmp_path):
    members = [tmp_path / "sweep" / name for name in ("a", "b")]
    with locked(members[0]), pytest.raises(UserError, match=r"another process is training in --workdir=.*a; wait"):
        with locked_members(members):  # there was no lock file when `a` was locked
            pass
    with locked_members(members):
        for again in (locked(members[1]), locked_members(members[1:])):
            with pytest.raises(UserError, match=r"another process is training in --workdir=.*b; wait"), again:
                pass
        with locked(tmp_path / "sweep" / "c"), locked_members([tmp_path / "sweep" / "d"]):  # of another shard
            pass
    with locked(members[1]):
        assert members[1].is_dir()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [LOCK]


def test_a_link_to_a_member_is_locked_as_the_member(tmp_path):
    member, link = tmp_path / "sweep" / "a", tmp_path / "link"
    (member / "checkpoints").mkdir(parents=True)
    link.symlink_to(member, target_is_directory=True)
    with locked_members([member]), pytest.raises(UserError, match="another process is training"), locked(link):
        pass


def test_without_locks_of_bytes_each_folder_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    members = [tmp_path / "sweep" / name for name in ("a", "b")]
    with locked_members(members):
        for again in (locked(members[0]), locked_members(members[1:])):
            with pytest.raises(UserError, match="another process is training"), again:
                pass


def test_a_lock_file_that_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / LOCK).mkdir()
    with locked(tmp_path / "run"):
        pass
    with pytest.raises(UserError, match=f"{LOCK} cannot be opened: Is a directory"), locked_members([tmp_path / "a"]):
        pass


def test_a_killed_sweep_leaves_no_lock(tmp_path):
    code = (
        "import pathlib, sys, time; from rnn_lm.runs.lock import locked_members\n"
        "with locked_members([pathlib.Path(sys.argv[1])]): print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "sweep" / "a")], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another process is training"), locked(tmp_path / "sweep" / "a"):
            pass
    finally:
        child.kill()
        child.communicate()
    with locked(tmp_path / "sweep" / "a"):
        pass
