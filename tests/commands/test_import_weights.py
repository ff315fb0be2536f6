"""`import-weights`: the weights of others as a run."""

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
from tests.commands.conftest import one_line


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
