"""`export` and `import-weights`: a run as a folder for others, and weights from elsewhere as a run."""

import json
import pickle
import re
import shutil
import struct
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.convert.safetensors import read_arrays
from rnn_lm.files import read_json
from tests.runs.test_save import MODELS, VOCABULARY, model_of, own_cell  # noqa: F401 — the last is a fixture for all

FILES = ["README.md", "index.html", "model.onnx", "model.safetensors", "rnn_lm.json", "vocabulary.json"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    out = tmp_path_factory.mktemp("exported") / "out"
    assert main(["export", f"--workdir={run_folder}", str(out)]) == 0
    return out


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    return error


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


def test_a_file_whose_header_begins_like_a_pickle_is_read(tmp_path):
    """The first eight bytes are the header's length: one in 32 is as 0x80."""
    firsts = set()
    for size in range(200):
        save_file({"w" * (size + 1): zeros(3)}, file := tmp_path / "model.safetensors")
        if (first := file.read_bytes()[0]) == 0x80:
            assert [*read_arrays(file)] == ["w" * (size + 1)]
        firsts.add(first)
    assert 0x80 in firsts


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def changed(**arrays):
    def change(file):
        old = load_file(file)
        save_file({name: array for name, array in (old | arrays).items() if array is not None}, file)

    return change


def edited(name, change):
    def edit(file):
        path = file.with_name(name)
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


listed, described = partial(edited, "vocabulary.json"), partial(edited, "rnn_lm.json")


def zeros(*shape):
    return np.zeros(shape, np.float32)


V = 21  # tokens of the run
DAMAGES = {
    "cut": (cut, "is no safetensors file, or is damaged"),
    "another format": (lambda file: file.write_text("epoch,loss\n1,2\n" * 9), "is no safetensors file, or is damaged"),
    "a header of 10 GB": (lambda file: file.write_bytes(struct.pack("<Q", 10**10) + b"{}"), "is no safetensors file"),
    "empty": (lambda file: file.write_bytes(b""), "is no safetensors file"),
    "gone": (lambda file: file.unlink(), "model.safetensors cannot be read: No such file"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({})), "is a pickle, which may run code and is not opened"),
    "a file of torch.save": (lambda file: file.write_bytes(b"PK\x03\x04" + bytes(99)), "is a pickle, which may run"),
    "nan": (changed(b_q=np.full(V, np.nan, np.float32)), "b_q has numbers that are not finite"),
    "another gate count": (changed(**{"cell.w_hh": zeros(16, 48)}), r"cell.w_hh is float32 \[16, 48\], it must be"),
    "an array is missing": (changed(**{"cell.w_hh": None}), "cell.w_hh is missing, it must be"),
    "an array too many": (changed(**{"cell.b_hn": zeros(16)}), "it has no cell.b_hn"),
    "other arrays": (lambda file: save_file({"a": zeros(3)}, file), "it has no a"),
    "an unknown kind": (listed(lambda v: v.update(kind="foo")), "unknown kind of the vocabulary"),
    "a token of another kind": (listed(lambda v: v["tokens"].append("abc")), "cannot have the token"),
    "a token twice": (listed(lambda v: v["tokens"].append(v["tokens"][1])), "twice"),
    "no <unk>": (listed(lambda v: v["tokens"].pop(0)), "the first token of a vocabulary is <unk>"),
    "float16": (changed(b_q=np.zeros(V, np.float16)), rf"b_q is float16 \[{V}\], it must be float32"),
    "another vocabulary": (listed(lambda v: v["tokens"].pop()), "20 tokens, the weights have 21"),
    "tied, of unequal sizes": (described(lambda v: v["model"].update(tie=True)), "config.model.tie needs"),
    "an unknown cell": (described(lambda v: v["model"].update(cell="mgu2")), "is not registered; give --import="),
    "an unknown field": (described(lambda v: v["model"].update(units=3)), "config.* 'model.units'"),
    "no model": (described(lambda v: v.pop("model")), "does not describe a model"),
    "a newer format": (described(lambda v: v.update(format=99)), "has format 99"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_weights_are_one_line_and_nothing_is_written(damage, exported, tmp_path, capsys):
    break_it, message = DAMAGES[damage]
    folder = tmp_path / "in"
    shutil.copytree(exported, folder)
    break_it(folder / "model.safetensors")
    capsys.readouterr()
    assert main(["import-weights", str(folder), f"--workdir={tmp_path / 'run'}"]) == 2
    error = one_line(capsys)
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_taken_by_force(exported, text_file, tmp_path, capsys):
    folder = tmp_path / "in"
    shutil.copytree(exported, folder)
    changed(b_q=np.full(V, np.nan, np.float32))(folder / "model.safetensors")
    assert main(["import-weights", str(folder), f"--workdir={tmp_path / 'run'}", "--force"]) == 0
    assert np.isnan(rnn_lm.load(tmp_path / "run")[0].b_q[...]).all()
    capsys.readouterr()
    assert main(["export", f"--workdir={tmp_path / 'run'}", str(tmp_path / "out")]) == 2
    assert "the model predicts nothing: b_q has numbers that are not finite" in one_line(capsys)
    flags = [f"--config.init_from={tmp_path / 'run'}", f"--workdir={tmp_path / 'tuned'}"]
    assert main(["--config=char", f"--config.corpus.path={text_file}", *flags]) == 2
    assert "the model predicts nothing" in one_line(capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "IN is missing: .* import-weights --workdir=DIR IN"),
        (["nowhere", "--workdir=run"], "nowhere: no such file or folder"),
        (["IN", "--workdir=run", "--map=w_hq"], "--map=w_hq is not OURS=THEIRS, such as --map=w_hq=decoder.weight"),
        (["IN", "--workdir=run", "--map=w_hq=w", "--map=w_hq=v"], "--map=w_hq=v: w_hq is w already; give it once"),
        (["IN", "--workdir=run", "--map=w_hq=w"], "says all about the weights; leave out --map and --activation"),
        (["IN"], "--workdir is missing"),
    ],
)
def test_mistakes(flags, message, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import-weights", *(str(exported) if flag == "IN" else flag for flag in flags)]) == 2
    error = one_line(capsys)
    assert re.search(message, error), error
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def theirs(tmp_path):
    """A PyTorch model's file and vocabulary, and the logits that it had."""
    with np.load("tests/references/exchange/pytorch_lstm.npz") as file:
        given = dict(file)
    tokens, logits = given.pop("tokens"), given.pop("logits")
    size = logits.shape[-1]
    (tmp_path / "in").mkdir()
    given = {name.removeprefix("weights "): array for name, array in given.items()}
    save_file(given, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "vocabulary.json").write_text(json.dumps([chr(ord("a") + i) for i in range(size)]))
    return tmp_path / "in", tokens, logits


def test_a_file_beside_an_exported_folder_is_read_itself(exported, theirs, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    shutil.copy(theirs[0] / "model.safetensors", folder / "theirs.safetensors")
    shutil.copy(theirs[0] / "vocabulary.json", folder / "vocabulary.json")
    assert main(["import-weights", str(folder / "theirs.safetensors"), f"--workdir={tmp_path / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["cell"] == "lstm"


def test_a_pytorch_model_becomes_a_run(theirs, tmp_path, capsys):
    folder, tokens, logits = theirs
    assert main(["import-weights", str(folder / "model.safetensors"), f"--workdir={tmp_path / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["num_layers"] == 2
    model, vocabulary = rnn_lm.load(tmp_path / "run")
    assert vocabulary.tokens[:3] == ["<unk>", "a", "b"]  # theirs has no <unk>
    ours = model(model.initialize_carry(tokens.shape[1]), jnp.asarray(tokens + 1))[1]
    np.testing.assert_allclose(ours[..., 1:], logits, rtol=0, atol=1e-5)
    assert main(["generate", f"--workdir={tmp_path / 'run'}", "--prompt=abc", "--length=20"]) == 0
    assert re.fullmatch(r"abc[a-z]{20}\n", capsys.readouterr().out)


def other_tokens(text):
    return lambda file: file.with_name("vocabulary.json").write_text(text)


NAN = np.full(32, np.nan, np.float32)
THEIR_DAMAGES = {
    "another gate count": (changed(**{"body.weight_hh_l1": zeros(24, 8)}), "body"),
    "nan": (changed(**{"body.bias_ih_l0": NAN}), "body.bias_ih_l0 has numbers that are NaN or infinite .*--force"),
    "another vocabulary": (other_tokens('["a", "b"]'), "the vocabulary has 2 tokens, head.weight has 12"),
    "no vocabulary": (lambda file: file.with_name("vocabulary.json").unlink(), "vocabulary.json cannot be read"),
    "a vocabulary that is none": (other_tokens('{"a": "b"}'), "not a vocabulary"),
    "a vocabulary that is no JSON": (other_tokens("abc"), "vocabulary.json cannot be read .Expecting value"),
    "two files": (lambda file: shutil.copy(file, file.with_name("a.safetensors")), "has 2 .safetensors files"),
    "an array too many": (changed(norm=zeros(8)), "norm"),
}  # fmt: skip


@pytest.mark.parametrize("damage", THEIR_DAMAGES)
def test_bad_weights_of_theirs_are_one_line_and_nothing_is_written(damage, theirs, tmp_path, capsys):
    break_it, message = THEIR_DAMAGES[damage]
    break_it(theirs[0] / "model.safetensors")
    assert main(["import-weights", str(theirs[0]), f"--workdir={tmp_path / 'run'}"]) == 2
    error = one_line(capsys)
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()
