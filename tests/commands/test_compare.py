"""`compare` as a user meets it: one small comparison that all tests read."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.commands.compare import NAMES, describe
from rnn_lm.data.corpus import load_corpus
from rnn_lm.files import read_json
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.ngram import NGramLM
from rnn_lm.plots.rivals import COMPARISON
from rnn_lm.runs.folder import read_config
from rnn_lm.sweeps import rivals as module
from tests.commands.conftest import assert_fits

pytestmark = pytest.mark.slow  # four networks are trained


@pytest.fixture(scope="module")
def flags(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.py").write_text(
        "def get_config():\n"
        "    return {'batch_size': 4, 'segment_length': 8, 'steps': 20, 'eval_every': 0, 'save_every': 0,\n"
        "            'model': {'num_hiddens': 8, 'context': 4, 'cell': 'gru'}, 'optimizer': {'learning_rate': 0.01},\n"
        f"            'corpus': {{'path': {str(text_file)!r}, 'valid_fraction': 0.1, 'test_fraction': 0.1}}}}\n"
    )
    return ["compare", f"--config={folder / 'small.py'}", f"--workdir={folder / 'compared'}"]


@pytest.fixture(scope="module")
def compared(flags):
    """The folder of a comparison that was stopped after two networks, and started again; and its result."""
    folder = Path(flags[2].removeprefix("--workdir="))
    original = module.train_members

    def train_two(members, counts, *, stop, devices):
        sent = []

        def two_are_over():
            if not sent and all((member.workdir / "summary.json").exists() for member in members[:2]):
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
                deadline = time.monotonic() + 60
                while not stop() and time.monotonic() < deadline:  # the main thread notes it
                    time.sleep(0.01)
            return stop()

        original(members, counts, stop=two_are_over, devices=devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_members", train_two)
        assert main(flags) == 143
    before = {path: path.stat().st_mtime_ns for path in (folder / "mlp").rglob("*")}
    assert (folder / "elman" / "summary.json").exists() and not (folder / "lstm").exists()
    assert before and not (folder / "compare.json").exists()
    (folder / ".compare.json.tmp").write_text("half of")  # as a kill may leave it
    assert main(flags) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "mlp").rglob("*")}
    return folder, json.loads((folder / "compare.json").read_text())


def test_all_rivals_are_scored_on_the_same_tokens_with_the_same_budget(compared):
    folder, result = compared
    config, _ = read_config(folder / "gru")
    corpus = load_corpus(**config.corpus)
    models = {row["name"]: row for row in result["models"]}
    assert list(models) == ["uniform", "unigram", "ngram", "mlp", "elman", "gru", "lstm"]
    assert (result["split"], result["tokens"], result["carry"]) == ("test", corpus.test.tokens, "one stream")
    assert result["corpus"]["sha256"] == corpus.sha256 and result["seed"] == 0 and result["unknown"] == 0
    for name in NAMES:
        model, _ = rnn_lm.load(folder / name)
        assert models[name]["nll"] == pytest.approx(evaluate(model, corpus.test.ids).nll, rel=1e-6)
        assert models[name]["num_params"] == model.num_params == result["num_params_by_order"][name][4]
        assert models[name]["train_tokens"] == result["train_tokens"] == 20 * 4 * 8
    assert models["mlp"]["context"] == 4 and "context" not in models["gru"]
    best = min(result["ngrams"], key=lambda row: row["valid_nll"])
    assert models["ngram"] == {"name": "ngram"} | best
    kept = [NGramLM.load(folder / name / "ngram.npz") for name in NAMES]
    assert {ngram.order for ngram in kept} == {min(result["ngrams"][:6], key=lambda row: row["valid_nll"])["order"]}
    ngram = NGramLM.fit(corpus.train.ids, order=best["order"], vocab_size=len(corpus.vocabulary))
    assert (best["nll"], best["num_params"]) == (ngram.nll(corpus.test.ids), ngram.num_counts)
    assert [row["order"] for row in result["ngrams"]] == list(range(1, 11))
    assert [row["num_possible"] for row in result["ngrams"]] == result["num_params_by_order"]["possible"]


def test_every_verb_takes_the_networks(compared, capsys):
    folder, _ = compared
    of_all = [(["generate", "--length=5"], name) for name in NAMES]
    for arguments, name in [*of_all, (["evaluate"], "mlp"), (["inspect", "--window=4"], "mlp")]:
        capsys.readouterr()
        assert main([*arguments, f"--workdir={folder / name}"]) == 0
        assert capsys.readouterr().out
    found = read_json(folder / "mlp" / "inspect.json")
    assert set(found) == {"text", "window", "clipping"}


def test_the_screen_and_the_pictures_say_it(compared, tmp_path):
    folder, result = compared
    screen = describe(result)
    for part in ("uniform", "10-gram", "MLP", "LSTM", "The n-gram model still beats MLP, Elman, GRU, LSTM"):
        assert part in screen
    assert "diverges" not in screen
    assert max(map(len, screen.splitlines())) <= 79
    models = [row | ({"runs_away": True, "nll": None, "perplexity": None} if row["name"] == "lstm" else {})
              for row in result["models"]]  # fmt: skip
    assert "the state diverges: LSTM." in describe(result | {"models": models})
    assert "<unk>" not in screen and "5% of the tokens are <unk>" in describe(result | {"unknown": 58})
    for name, draw in COMPARISON.items():
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        draw(tmp_path / f"{name}.png", result | {"ngrams": result["ngrams"][:1]}, NAMES, of="models")


def test_the_table_fits(compared, columns):
    _, result = compared
    screen = describe(result | {"corpus": result["corpus"] | {"source": "a/text.txt"}})
    assert_fits(screen, columns, *(f"{row['perplexity']:.2f}" for row in result["models"]))
    assert ("tokens/s" in screen) == (columns > 60) and "any" in screen


def test_mistakes_are_one_line(compared, flags, tmp_path, capsys):
    folder, _ = compared
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.json").write_text("{}")
    for arguments, message in [
        (["compare"], "--config is missing"),
        ([*flags, "--config.seed=1"], f"seed is 0 there, 1 here; give another folder, such as --workdir={folder}-2"),
        ([*flags[:2], f"--workdir={other}"], "is not empty and not a comparison (it has config.json); give another"),
        ([*flags[:2], f"--workdir={other / 'config.json'}"], "is a file; give another folder, such as"),
        ([*flags, "--config.steps=10"], "trains for 20 steps; set --config.steps to at least that, or"),
        ([*flags[:2], f"--workdir={tmp_path}/new", "--config.model.num_hiddens=300000"], "out of memory"),
        ([*flags[:2], f"--workdir={tmp_path}/new", "--config.batch_size=100000"], "give a longer text"),
        ([*flags[:2], f"--workdir={tmp_path}/new", "--config.model.context=0"], "config.model.context is 0"),
    ]:  # fmt: skip
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert message in printed.err.splitlines()[-1] and printed.out == ""
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not (tmp_path / "new").exists()
