import pytest

from rnn_lm.commands import main


@pytest.fixture
def cli(capsys):
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()  # what came before is not of this command
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
