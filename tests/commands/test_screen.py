"""What every screen is made of: it fits the terminal, whatever is written on it."""

import json
import math
import os
import pty
import shlex
import subprocess
import sys

import pytest

from rnn_lm.commands import main
from rnn_lm.commands.screen import Column, command, json_line, listing, paragraph, program, table, width
from rnn_lm.visible import visible
from tests.commands.conftest import assert_fits

COLUMNS = [
    Column("rank"),
    Column("learning_rate"),
    Column("validation nats"),
    Column("± s.e.", drop=1),
    Column("test perplexity"),
    Column("test bits/char"),
    Column("the error of that", drop=2),
]
ROW = ["1", "0.001", "2.3456", "0.1234", "1234567.891", "3.4567", "0.9876"]


def test_a_table_wraps_its_heads_and_leaves_columns_out_before_a_number_breaks(columns):
    screen = table(COLUMNS, [ROW, ["2", "1e+09", *5 * [""]]])
    assert_fits(screen, columns, *(cell for cell, column in zip(ROW, COLUMNS, strict=True) if not column.drop))
    assert [head for head in ("± s.e.", "error") if head not in screen] == (
        ["± s.e.", "error"] if columns == 60 else []
    )
    assert ("test perplexity" in screen) == (columns == 120) and "perplexity" in screen
    assert [line.split()[:2] for line in screen.splitlines()[-2:]] == [["1", "0.001"], ["2", "1e+09"]]
    assert screen.splitlines()[-2].index("1234567.891") + len("1234567.891") == max(
        line.index("perplexity") + len("perplexity") for line in screen.splitlines() if "perplexity" in line
    )


def test_a_number_is_not_broken_even_where_nothing_fits(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert set(ROW[:3]) <= set(table(COLUMNS, [ROW]).split())
    monkeypatch.setenv("COLUMNS", "68")
    screen = table(COLUMNS, [ROW])
    assert "0.1234" in screen and "0.9876" not in screen  # the one with the highest number goes first


def test_texts_are_wrapped_between_words_and_wide_characters_counted(columns):
    text = "日本語 " * 30 + "x" * 150
    screen = table([Column("nats"), Column("text", words=True)], [("1.25", text), ("2.50", "a\x1b[31m b")])
    assert_fits(screen, columns, "1.25", "2.50")
    assert screen.count("日本語") == 30 and screen.count("x") == 150 + 1 and "a␛[31m b" in screen


def test_paragraphs_and_commands_fit_and_a_path_stays_whole(columns):
    path = "/a/long-path/" + 30 * "x"
    text = paragraph(f"- {'some words ' * 20} {path}", "Advice: ")
    assert_fits(text, columns)
    assert path in text and text.startswith("Advice: - some")
    long = "/" + 130 * "x"
    assert long in paragraph(f"some words {long}")  # a path to copy
    words = ["sweep", f"--config={path}", "--prompt=it's here", "--config.optimizer.learning_rate=0.001", "--seed=3"]
    shown = command(*words)
    assert_fits(shown, columns)
    assert shlex.split(shown.replace("\\\n", "")) == ["python", "run.py", *words]
    assert ("\\\n" in shown) and len(command("evaluate", "--workdir=runs/char").splitlines()) == 1


def test_only_what_is_there_is_listed(tmp_path):
    (tmp_path / "a.json").touch()
    assert listing(tmp_path / "a.json", tmp_path / "b.png", "DIR/MEMBER/") == (
        f"Files: {tmp_path}/a.json\n       DIR/MEMBER/"
    )


def test_without_a_terminal_79_columns_are_filled(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert width() == 79 and max(map(len, paragraph("word " * 100).splitlines())) == 79


@pytest.mark.parametrize(
    "called, named",
    [
        ("/usr/bin/rnn-lm", "rnn-lm"),
        ("run.py", "python run.py"),
        ("/x/rnn_lm/__main__.py", "python -m rnn_lm"),
    ],
)
def test_the_program_is_named_as_it_was_called(monkeypatch, capsys, called, named):
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == named
    for arguments in (["--help"], ["score", "--help"], ["compress", "--help"]):
        assert main(arguments) == 0
        screen = capsys.readouterr().out
        assert f"{named} " in screen and ("python run.py" in screen) == (named == "python run.py")
    main(["compress", "--workdir=x"])
    assert f"IN is missing: {named} compress" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["train"], ["score"], ["sweep"]])
def test_help_fits(capsys, columns, verb):
    assert main([*verb, "--help"]) == 0
    assert_fits(capsys.readouterr().out, columns)


def test_help_fits_a_terminal_that_tells_its_own_width():
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "57"], stdin=theirs, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "run.py", "--help"], stdout=theirs, stdin=theirs, env=environment, cwd=os.getcwd()
    )
    os.close(theirs)
    screen = b""
    try:
        while chunk := os.read(ours, 4096):
            screen += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait() == 0
    lines = screen.decode().splitlines()
    assert 50 < max(map(len, lines)) <= 57


def test_numbers_in_json_have_as_many_digits_as_mean_something():
    nll = 4.123456789012345
    printed = json.loads(
        json_line({"nll": nll, "reset": {"perplexity": math.exp(nll)}, "bits": [["a", 1 / 3]], "n": 7})
    )
    assert (printed["nll"], printed["n"], printed["bits"]) == (4.1234568, 7, [["a", 0.33333333]])
    assert math.exp(printed["nll"]) == pytest.approx(printed["reset"]["perplexity"], rel=1e-6)
    assert json_line([math.inf, True]) == "[null, true]"


def test_what_a_terminal_would_obey_is_shown():
    assert visible("a\x1b[2J\n\t\r\x00\x7f\x9b\u202e\u200b é日") == "a␛[2J⏎⇥␍␀␡\\x9b\\u202e\\u200b é日"
    assert visible("a\n\x1b", keep="\n") == "a\n␛"
    for text in ("Bonjour\u00a0!", "全角\u3000", "می\u200cخواهم", "👩\u200d🔬"):  # spaces and joiners of other scripts
        assert visible(text) == text
