import json
import re

import numpy as np
import pytest
from rich.cells import cell_len

import rnn_lm
from rnn_lm.commands import main
from rnn_lm.commands.surprise import in_terminal
from tests.commands.conftest import assert_fits, plain


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


def test_what_is_not_shown_is_not_kept(cli, run_folder, monkeypatch):
    """A long text would take a hundred bytes of memory for each token."""
    shown = []
    monkeypatch.setattr("rnn_lm.data.vocabulary.readable", lambda token: shown.append(token) or str(token))
    flags = [f"--workdir={run_folder}", "--continuation=machine"]
    cli("score", *flags)
    assert not shown
    cli("score", *flags, "--surprise")
    assert shown == [*"machine"]


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


def test_a_mixture_scores_too(cli, run_folder):
    flags = [f"--workdir={run_folder}", "--prompt=the ", "--continuation=machine"]
    alone, mixed = (cli("score", *flags, mix)[1][0] for mix in ("--mix=none", "--mix=ngram"))
    assert mixed["bits"] != alone["bits"]
    model, vocabulary = rnn_lm.load(run_folder, mix="ngram")
    expected = rnn_lm.score(model, vocabulary.encode("the "), [vocabulary.encode("machine")])[0].sum()
    assert mixed["log_prob"] == pytest.approx(-expected)


def tokens_and_bits(screen):
    """The pairs of lines in the middle of the screen of one text."""
    lines = plain(screen).splitlines()[1:]
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_bits_stand_under_the_ends_of_their_tokens_whatever_those_are(columns):
    row = {"rank": 1, "bits": 12.5, "bits_per_char": 6.25}
    texts = [
        "the",
        "http://example.org/" + 130 * "x",
        "cat",
        "日本語です",
        "👍",
        "\x1b[31mred",
        "\u0301",
        "e\u0301a",
        "\u202e",
    ]
    costs = [1.1, 1126.9, 2.2, 3.3, 4.4, 5.5, 6.6, 7.7, 8.8]
    screen = in_terminal([row], [list(zip(texts, costs, strict=True))])
    assert_fits(screen, columns, *map(str, costs))
    assert "\x1b[31mred" not in screen and "␛[31mred" in screen and "\\u202e" in screen and "◌\u0301" in screen
    found = []
    for tokens, bits in tokens_and_bits(screen):
        ends = [cell_len(bits[: match.end()]) for match in re.finditer(r"[\d.]+", bits)]
        found += [tokens_until(tokens, end).split()[-1] for end in ends]
    assert [text[:18] for text in found[:4]] == ["the", "http://example.org", "cat", "日本語です"]
    assert found[4:] == ["👍", "␛[31mred", "◌\u0301", "e\u0301a", "\\u202e"]


def tokens_until(line, end):
    """The part of a line in the first `end` columns."""
    return next(line[:i] for i in reversed(range(len(line) + 1)) if cell_len(line[:i]) == end)


def test_a_ranking_fits_the_terminal(run_folder, capsys, columns, tmp_path):
    (tmp_path / "lines.txt").write_text("the machine\nthe cat sat " + 100 * "x" + " on a mat\n\x1b[31m\n")
    flags = [f"--workdir={run_folder}", f"--text={tmp_path / 'lines.txt'}", "--continuation=seen before"]
    assert main(["score", *flags]) == 0
    screen, err = capsys.readouterr()
    rows = [line.split() for line in screen.splitlines() if re.match(r" +\d ", line)]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"] and float(rows[0][1]) < float(rows[3][1])
    assert_fits(screen, columns, *rows[0][1:3], *rows[3][1:3])
    assert "\x1b" not in screen + err and "␛[31m" in screen and "seen before" in screen
    assert main(["score", *flags, "--surprise"]) == 0
    assert_fits(capsys.readouterr().out, columns)
