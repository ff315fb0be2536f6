import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_lm
from rnn_lm.training.train import train
from tests.conftest import make_text, small_config

ROOT = Path(rnn_lm.__file__).parents[1]


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text(make_text(lines=30, seed=3) + "Größe\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_one_process_packs_and_another_unpacks(run_folder, given, tmp_path):
    """Compiled twice, and as users compile it."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    archive, back = tmp_path / "packed", tmp_path / "back"
    for arguments in (["compress", given, archive, "--mix=ngram", "--dynamic"], ["decompress", archive, back]):
        command = [sys.executable, "-m", "rnn_lm", *map(str, arguments), f"--workdir={run_folder}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert back.read_bytes() == given.read_bytes()


@pytest.mark.parametrize("flags", [[], ["--mix=ngram", "--dynamic"]])
def test_a_file_goes_there_and_back(cli, run_folder, given, tmp_path, flags):
    code, out, _ = cli("compress", f"--workdir={run_folder}", given, tmp_path / "packed", *flags)
    report = json.loads(out)
    assert code == 0 and report["input_bytes"] == given.stat().st_size
    assert report["output_bytes"] == (tmp_path / "packed").stat().st_size
    characters = len(given.read_text(encoding="utf-8"))
    assert report["bits_per_char"] == pytest.approx(8 * report["output_bytes"] / characters)
    code, out, _ = cli("decompress", f"--workdir={run_folder}", tmp_path / "packed", tmp_path / "back")
    assert code == 0 and (tmp_path / "back").read_bytes() == given.read_bytes()
    back = json.loads(out)
    assert (back["input_bytes"], back["output_bytes"]) == (report["output_bytes"], report["input_bytes"])
    assert back["model_bits_per_char"] == pytest.approx(report["model_bits_per_char"])


def test_an_empty_file_has_no_bits_per_character(cli, run_folder, tmp_path):
    (tmp_path / "in").write_bytes(b"")
    code, out, _ = cli("compress", f"--workdir={run_folder}", tmp_path / "in", tmp_path / "packed", "--noverify")
    assert code == 0 and json.loads(out)["bits_per_char"] is None
    assert cli("decompress", f"--workdir={run_folder}", tmp_path / "packed", tmp_path / "back")[0] == 0
    assert (tmp_path / "back").read_bytes() == b""


def mistakes(given, tmp_path, run_folder):
    workdir = f"--workdir={run_folder}"
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / ".x.tmp").write_bytes(b"mine")  # the name under which x is written
    return {
        "IN is missing": ("compress", workdir),
        "OUT is missing": ("compress", workdir, given),
        "unexpected argument 'c'": ("compress", workdir, "a", "b", "c"),
        "--workdir is missing": ("compress", given, tmp_path / "out"),
        "holds no run": ("compress", f"--workdir={tmp_path}", given, tmp_path / "out"),
        "nowhere: no such file": ("compress", workdir, "nowhere", tmp_path / "out"),
        "not a file": ("compress", workdir, tmp_path, tmp_path / "out"),
        "taken exists; --force replaces it": ("compress", workdir, given, taken),
        "is IN and would be overwritten": ("compress", workdir, given, given, "--force"),
        "/dev/null exists and is not a file": ("compress", workdir, given, "/dev/null", "--force"),
        "link exists; --force replaces it": ("compress", workdir, given, tmp_path / "link"),
        ".x.tmp is IN and would be overwritten": ("compress", workdir, tmp_path / ".x.tmp", tmp_path / "x"),
        "absent: no such folder": ("compress", workdir, given, tmp_path / "absent" / "out"),
        "value should be one of": ("compress", workdir, given, tmp_path / "out", "--mix=gram"),
        "in.txt: not an archive": ("decompress", workdir, given, tmp_path / "out"),
        "taken exists": ("decompress", workdir, given, taken),
    }


def test_mistakes_are_one_line_and_leave_nothing(cli, run_folder, given, tmp_path):
    for message, arguments in mistakes(given, tmp_path, run_folder).items():
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, (arguments, err)
        assert sorted(os.listdir(tmp_path)) == [".x.tmp", "in.txt", "link", "taken"]
        assert (tmp_path / "taken").read_bytes() == (tmp_path / ".x.tmp").read_bytes() == b"mine"


def test_force_replaces_and_a_full_disk_does_not(cli, run_folder, given, tmp_path, monkeypatch):
    target = tmp_path / "taken"
    target.write_bytes(b"mine")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("os.fsync", "rnn_lm.compression.codec.write_block"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            code, out, err = cli("compress", f"--workdir={run_folder}", given, target, "--force", "--noverify")
        assert (code, out) == (2, "") and "No space left on device" in err
        assert sorted(os.listdir(tmp_path)) == ["in.txt", "taken"] and target.read_bytes() == b"mine"
    assert cli("compress", f"--workdir={run_folder}", given, target, "--force", "--noverify")[0] == 0
    assert target.read_bytes() != b"mine"


def test_a_signal_leaves_nothing(cli, run_folder, given, tmp_path, monkeypatch):
    from rnn_lm.compression import lanes

    original, calls = lanes._step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(lanes, "_step", step)
    code, out, err = cli("compress", f"--workdir={run_folder}", given, tmp_path / "out")
    assert (code, out) == (130, "") and "nothing was written" in err
    assert os.listdir(tmp_path) == ["in.txt"] and len(calls) < 110


def test_the_package_that_is_missing_is_named(cli, run_folder, given, tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_lm.commands.archives.find_spec", lambda name: None)
    code, out, err = cli("compress", f"--workdir={run_folder}", given, tmp_path / "out")
    assert (code, out) == (2, "") and "pip install 'rnn_lm[compression]'" in err and not (tmp_path / "out").exists()


def test_another_run_cannot_decompress(cli, run_folder, given, tmp_path, text_file):
    train(small_config(text_file, steps=1, seed=5), tmp_path / "other")
    assert cli("compress", f"--workdir={run_folder}", given, tmp_path / "packed", "--noverify")[0] == 0
    code, out, err = cli("decompress", f"--workdir={tmp_path / 'other'}", tmp_path / "packed", tmp_path / "back")
    assert (code, out) == (2, "") and "packed: the archive was made with another model" in err
    assert not (tmp_path / "back").exists()
