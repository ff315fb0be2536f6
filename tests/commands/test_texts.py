"""Verbs on texts as people have them."""

import json
from pathlib import Path

import pytest

import rnn_lm
from rnn_lm.training.train import train
from tests.conftest import small_config

CASES = Path(__file__).parents[1] / "data" / "cases"
TINY = {"steps": 2, "eval_every": 0, "model__num_hiddens": 4}


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory):
    """A run of bytes on Cyrillic text without a line end: the most frequent byte is a half of a character."""
    workdir = tmp_path_factory.mktemp("runs") / "bytes"
    train(small_config(CASES / "cyr_byte.txt", corpus__tokens="byte", **TINY), workdir)
    return workdir


@pytest.fixture(scope="module")
def of_words(tmp_path_factory):
    """A run of words on a text in which rare words are `<unk>` already."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(6 * (CASES / "ptb_small.txt").read_text())
    train(small_config(folder / "text.txt", corpus__tokens="word", batch_size=2, **TINY), folder / "words")
    return folder / "words"


@pytest.mark.parametrize("mix", ["none", pytest.param("ngram", marks=pytest.mark.slow)])
def test_a_byte_model_needs_no_prompt(cli, of_bytes, mix):
    flags = [f"--workdir={of_bytes}", f"--mix={mix}", "--strict"]
    code, out, err = cli("generate", *flags, "--length=20")
    assert (code, err) == (0, "") and "<unk>" not in out
    code, out, err = cli("score", *flags, "--continuation=идёт")
    model, vocabulary = rnn_lm.load(of_bytes, mix=mix)
    expected = rnn_lm.score(model, vocabulary.prompt_of(None)[1], [vocabulary.encode("идёт")])[0].sum()
    assert (code, err) == (0, "") and json.loads(out)["log_prob"] == pytest.approx(-expected, rel=1e-6)


def test_bytes_in_messages_are_hexadecimal(cli, of_bytes):
    code, _, err = cli("score", f"--workdir={of_bytes}", "--continuation=é", "--strict")
    assert code == 2 and r"the vocabulary lacks: '\\xc3', '\\xa9'" in err


def test_the_word_unk_of_a_text_is_known(cli, of_words):
    flags = [f"--workdir={of_words}", "--strict"]
    assert cli("evaluate", *flags, f"--text={CASES / 'ptb_small.txt'}")[0] == 0
    assert cli("score", *flags, "--continuation=a <unk> the cat")[0] == 0
    code, _, err = cli("score", *flags, "--continuation=a <unk> the bird")
    assert code == 2 and "the vocabulary lacks: 'bird'" in err


def test_lines_end_at_line_feeds_only(cli, of_bytes):
    code, out, _ = cli("score", f"--workdir={of_bytes}", f"--text={CASES / 'linesep.txt'}")
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    assert code == 0 and {row["continuation"] for row in rows} == {
        "the cat sat\u2028on a mat.",
        "old dogs\x85run\x0cby sea.",
        "tea\x1cno one knew.",
    }


def test_a_line_of_blanks_is_no_line_for_words(cli, of_words, of_bytes):
    text = f"--text={CASES / 'blankline.txt'}"
    code, out, _ = cli("score", f"--workdir={of_words}", text)
    assert code == 0 and out.count("\n") == 2
    assert cli("score", f"--workdir={of_bytes}", text)[1].count("\n") == 3  # for bytes blanks are tokens


def test_evaluate_and_score_count_the_same_characters(cli, of_words, tmp_path):
    """A text of one line, once as a text and once as its first word and the rest."""
    (tmp_path / "line.txt").write_text("the cat on a mat")
    evaluated = json.loads(cli("evaluate", f"--workdir={of_words}", f"--text={tmp_path / 'line.txt'}")[1])
    scored = json.loads(cli("score", f"--workdir={of_words}", "--prompt=the", "--continuation=cat on a mat")[1])
    assert evaluated["bits_per_char"] == pytest.approx(scored["bits_per_char"], rel=1e-5)
    assert scored["bits_per_char"] == pytest.approx(scored["bits"] / len(" cat on a mat"))
    assert evaluated["comparable"] is scored["comparable"] is True


@pytest.mark.parametrize("text", ["  the cat\n\ton a mat", "the  cat", "the cat "])
def test_words_lose_blanks_and_say_so(cli, of_words, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    evaluated = json.loads(cli("evaluate", f"--workdir={of_words}", f"--text={tmp_path / 'text.txt'}")[1])
    scored = json.loads(cli("score", f"--workdir={of_words}", f"--continuation={text}")[1])
    assert evaluated["comparable"] is scored["comparable"] is False


def test_a_page_is_not_written_over_a_file(cli, of_bytes, tmp_path):
    page = tmp_path / "text.txt"
    page.write_text("my only copy")
    flags = [f"--workdir={of_bytes}", "--continuation=a", f"--html={page}"]
    code, out, err = cli("score", *flags)
    assert (code, out, err) == (2, "", f"error: {page} exists; --force replaces it\n")
    assert page.read_text() == "my only copy"
    assert cli("score", *flags, "--force")[0] == 0 and "<h2>" in page.read_text()
    code, _, err = cli("score", *flags[:-1], f"--html={tmp_path}")
    assert code == 2 and "exists and is not a file" in err
    code, _, err = cli("score", *flags[:-1], f"--html={tmp_path / 'none' / 'page.html'}")
    assert code == 2 and "none: no such folder" in err


@pytest.mark.slow
def test_the_tilde_is_the_home_folder_for_every_verb(cli, of_bytes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(of_bytes.parent))
    monkeypatch.chdir(tmp_path)
    run = f"--workdir=~/{of_bytes.name}"
    assert cli("generate", run, "--length=2")[0] == cli("evaluate", run)[0] == 0
    assert cli("score", run, "--continuation=a", f"--html=~/{tmp_path.name}.html")[0] == 0
    assert cli("compress", run, f"~/{tmp_path.name}.html", f"~/{tmp_path.name}.rnn")[0] == 0
    assert rnn_lm.load(f"~/{of_bytes.name}")[1].kind == "byte"
    assert rnn_lm.NGramLM.load(f"~/{of_bytes.name}/ngram.npz").order > 0
    train(small_config(CASES / "cyr_byte.txt", **TINY), f"~/{tmp_path.name}")
    assert (of_bytes.parent / tmp_path.name / "summary.json").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_may_lie_in_the_folder_of_its_text(cli, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text_file.read_text())
    config = small_config(".", **TINY)
    first = train(config, "runs/mine")
    assert (
        first["corpus"]["train_tokens"]
        == train(small_config(text_file, **TINY), tmp_path / "other")["corpus"]["train_tokens"]
    )
    config.steps = 4
    assert train(config, "runs/mine")["steps"] == 4  # resumed: the text is the same
    assert cli("evaluate", "--workdir=runs/mine")[0] == 0
    assert cli("evaluate", "--workdir=runs/mine", "--text=.")[0] == 0
    code, _, err = cli("evaluate", "--workdir=runs/mine", "--text=runs/mine")
    assert code == 2 and "runs/mine is the folder of a run" in err


def test_a_good_file_of_n_grams_opens_by_its_name(of_bytes, tmp_path):
    path = str(of_bytes / "ngram.npz")
    assert rnn_lm.NGramLM.load(path).vocab_size == len(rnn_lm.load(of_bytes)[1])
    (tmp_path / "other.npz").write_bytes(b"PK other")
    with pytest.raises(rnn_lm.errors.UserError, match="other.npz is damaged, or not an n-gram model: "):
        rnn_lm.NGramLM.load(tmp_path / "other.npz")
    with pytest.raises(rnn_lm.errors.UserError, match="none.npz cannot be read: No such file") as error:
        rnn_lm.NGramLM.load(str(tmp_path / "none.npz"))
    assert "delete" not in str(error.value)
