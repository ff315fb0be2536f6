import json
import re

import numpy as np
import pytest

import rnn_lm
from rnn_lm.commands.surprise import in_terminal, shown


@pytest.fixture
def cli(cli):
    """Runs a command: exit code, rows of stdout, stderr."""

    def run(*arguments):
        code, out, err = cli(*arguments)
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_the_likelier_continuation_comes_first(cli, run_folder):
    """The book's example, in the words of the text that the small model learned."""
    given = ["iouwtkcm hwepoiut", "seen before", "banana tree"]
    flags = [f"--continuation={text}" for text in given]
    code, rows, err = cli("score", f"--workdir={run_folder}", "--prompt=a machine that no one there had ", *flags)
    assert code == 0 and [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["continuation"] for row in rows] == ["seen before", "banana tree", "iouwtkcm hwepoiut"]
    for row in rows:
        size = len(row["continuation"])
        assert row["bits"] == pytest.approx(-row["log_prob"] / np.log(2))
        assert row["bits_per_char"] == pytest.approx(row["bits"] / size)
        assert row["perplexity"] == pytest.approx(2 ** (row["bits"] / size))


def test_lines_of_a_file_are_continuations(cli, run_folder, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("the machine\n\nseen before ü\n")
    code, rows, err = cli("score", f"--workdir={run_folder}", f"--text={path}", "--continuation=smiled")
    assert code == 0 and {row["continuation"] for row in rows} == {"the machine", "seen before ü", "smiled"}
    assert "warning: the text has tokens that the vocabulary lacks: 'ü'" in err
    model, vocabulary = rnn_lm.load(run_folder)  # lines come after the end of a line
    expected = rnn_lm.score(model, vocabulary.encode("\n"), [vocabulary.encode("smiled")])[0].sum()
    assert next(row["log_prob"] for row in rows if row["continuation"] == "smiled") == pytest.approx(-expected)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--continuation is missing; for example"),
        (["--continuation="], "--continuation is empty"),
        (["--prompt=", "--continuation=a"], "--prompt is empty"),
        (["--continuation=ü", "--strict"], "the text has tokens that the vocabulary lacks: 'ü'"),
        (["--text=none.txt"], "none.txt: no such file"),
    ],
)
def test_mistakes_are_one_line(cli, run_folder, flags, message):
    code, rows, err = cli("score", f"--workdir={run_folder}", *flags)
    assert (code, rows, err.count("\n")) == (2, [], 1) and message in err


def test_a_file_of_empty_lines_has_nothing_to_score(cli, run_folder, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n\n")
    code, rows, err = cli("score", f"--workdir={run_folder}", f"--text={path}")
    assert (code, rows) == (2, []) and "has only empty lines" in err


def test_surprise_is_told_token_by_token(cli, run_folder, tmp_path):
    flags = [f"--workdir={run_folder}", "--continuation=seen <b>", "--continuation=machine"]
    code, rows, _ = cli("score", *flags, "--surprise", f"--html={tmp_path / 'page.html'}")
    assert code == 0
    for row in rows:
        assert "".join(token for token, _ in row["surprise"]) == row["continuation"]
        assert sum(bits for _, bits in row["surprise"]) == pytest.approx(row["bits"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 2 and "&lt;" in page and "<b>" not in page
    assert "http" not in page and "<script" not in page  # needs nothing from elsewhere
    code, plain, _ = cli("score", *flags)
    assert [{name: row[name] for name in row if name != "surprise"} for row in rows] == plain


def test_a_terminal_shows_tokens_above_their_bits():
    row = {"rank": 1, "bits": 12.5, "bits_per_char": 6.25}
    lines = re.sub(r"\x1b\[[\d;]*m", "", in_terminal([row], [[("a", 0.5), ("\n", 12.0)]])).splitlines()
    assert lines[0] == "1. 6.25 bits per character, 12.5 in all"
    assert lines[1].split() == ["a", "⏎"] and lines[2].split() == ["0.5", "12.0"]
    assert lines[1].index("a") == lines[2].index("5")  # the one above the other


def test_bytes_that_are_no_character_are_shown_all_the_same():
    assert [shown(token) for token in (65, 0xC3, "word")] == ["A", "\\xc3", "word"]


def test_a_mixture_scores_too(cli, run_folder):
    flags = [f"--workdir={run_folder}", "--prompt=the ", "--continuation=machine"]
    alone, mixed = (cli("score", *flags, mix)[1][0] for mix in ("--mix=none", "--mix=ngram"))
    assert mixed["bits"] != alone["bits"]
    model, vocabulary = rnn_lm.load(run_folder, mix="ngram")
    expected = rnn_lm.score(model, vocabulary.encode("the "), [vocabulary.encode("machine")])[0].sum()
    assert mixed["log_prob"] == pytest.approx(-expected)
