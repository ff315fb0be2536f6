"""`export`: a run as a folder for others."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.files import read_json
from tests.commands.conftest import one_line
from tests.runs.test_save import MODELS, VOCABULARY, model_of, own_cell  # noqa: F401 — the last is a fixture for all

FILES = ["README.md", "index.html", "model.onnx", "model.safetensors", "rnn_lm.json", "vocabulary.json"]


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_gives_equal_bits(name, tmp_path, capsys):
    model = model_of(name)
    rnn_lm.save(tmp_path / "run", model, VOCABULARY)
    assert main(["export", f"--workdir={tmp_path / 'run'}", str(tmp_path / "out")]) == 0
    written = json.loads(capsys.readouterr().out)
    lacks = {"model.onnx", "index.html"} if name == "own" else set()
    assert set(written["files"]) == set(FILES) - lacks and set(written["left_out"]) == lacks
    assert main(["import-weights", str(tmp_path / "out"), f"--workdir={tmp_path / 'back'}"]) == 0
    for folder in ("out", "back"):
        again, vocabulary = rnn_lm.load(tmp_path / folder)
        assert again.fingerprint() == model.fingerprint() and vocabulary.tokens == VOCABULARY.tokens
    assert read_json(tmp_path / "back" / "config.json")["model"]["dtype"] == (
        "bfloat16" if name == "bfloat16" else "float32"
    )


def test_the_folder(exported, run_folder):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    model, _ = rnn_lm.load(run_folder)
    arrays = load_file(exported / "model.safetensors")
    assert sorted(arrays) == ["b_q", "cell.b_h", "cell.w_hh", "cell.w_xh", "w_hq"]
    np.testing.assert_array_equal(arrays["cell.w_hh"], model.cell.w_hh[...])
    assert read_json(exported / "rnn_lm.json")["model"]["num_hiddens"] == 16
    card, summary = (exported / "README.md").read_text(), read_json(run_folder / "summary.json")
    assert card.startswith("---\nlibrary_name: rnn_lm\n")
    assert f"| **this model** | {summary['test']['perplexity']:.2f} | {summary['test']['bits_per_char']:.3f} |" in card
    for name in set(FILES) - {"README.md"}:
        assert f"`{name}`" in card


def test_verbs_take_the_folder_and_a_run_starts_from_it(exported, run_folder, text_file, tmp_path, capsys):
    said = []
    for folder in (exported, run_folder):
        assert main(["evaluate", f"--workdir={folder}", f"--text={text_file}", "--reset_every=100"]) == 0
        said.append(json.loads(capsys.readouterr().out) | {"seed": 0})
    assert said[0] == said[1]
    assert main(["evaluate", f"--workdir={exported}"]) == 2
    assert "give --text=FILE" in one_line(capsys)
    again = tmp_path / "again"
    assert main(["export", f"--workdir={exported}", str(again)]) == 0
    for name in FILES:
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name
    flags = [f"--config.corpus.path={text_file}", "--config.steps=2", "--config.batch_size=2"]
    capsys.readouterr()
    assert main(["--config=char", f"--config.init_from={exported}", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert f"weights: from {exported}; no token is new to it" in capsys.readouterr().err


def test_what_is_there_stays(exported, run_folder, tmp_path, capsys, monkeypatch):
    flags = ["export", f"--workdir={run_folder}"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main([*flags, "--force", str(tmp_path / "mine")]) == 2
    assert "is a folder with other files; give another name" in one_line(capsys)
    assert main([*flags, str(tmp_path / "mine" / "thesis.txt")]) == 2
    assert "exists and is not a folder" in one_line(capsys)
    assert main([*flags, str(tmp_path / "no" / "out")]) == 2
    assert "no: no such folder" in one_line(capsys)
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    assert main([*flags, str(out)]) == 2
    assert "exists; --force replaces it" in one_line(capsys)
    (out / "mine.txt").touch()
    before = (out / "rnn_lm.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("rnn_lm.convert.folder.to_card", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*flags, "--force", str(out)])
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "mine.txt"])
    (out / "rnn_lm.json").write_text("{}")
    assert main([*flags, "--force", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "mine.txt"])
    assert (out / "rnn_lm.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_into_an_empty_folder_under_any_name(run_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", str(tmp_path / "link"), f"{tmp_path}/new/"):
        assert main(["export", f"--workdir={run_folder}", out]) == 0, capsys.readouterr().err
    for name in ("here", "there", "new"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == FILES
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert main(["import-weights", str(tmp_path / "new"), "--workdir=."]) == 0
    assert rnn_lm.load(".")[0].num_params == rnn_lm.load(run_folder)[0].num_params
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
