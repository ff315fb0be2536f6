import re
import sys

import pytest
from rich.cells import cell_len

from rnn_lm.commands import main


@pytest.fixture
def cli(capsys):
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()  # what came before is not of this command
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(params=[60, 80, 120])
def columns(request, monkeypatch, capsys):
    """A terminal of so many columns for stdout."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: stream is sys.stdout)  # pytest may replace it
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def plain(screen):
    """A screen without its colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", screen)


def assert_fits(screen, columns, *numbers):
    """No line is wider than the terminal, and each of the numbers stands there whole."""
    assert [line for line in plain(screen).splitlines() if cell_len(line) > columns] == []
    missing = [number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", screen)]
    assert missing == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    out = tmp_path_factory.mktemp("exported") / "out"
    assert main(["export", f"--workdir={run_folder}", str(out)]) == 0
    return out


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    return error
