"""The command line: one verb, one module. A verb's module, and with it jax, is loaded only when the verb is called."""

import importlib
import os
import sys
from typing import NoReturn

from absl import logging

from rnn_lm.commands.flags import Help, parse
from rnn_lm.errors import Diverged, UserError, unknown_name
from rnn_lm.interrupts import Stopped, exit_on_signals

VERBS = {
    "train": "train a model (the verb may be left out)",
    "evaluate": "how well a trained model predicts a text",
    "generate": "new text from a trained model",
}
OVERVIEW = """\
Recurrent neural network language models.

  python run.py --config=experiments/char.py        train, or go on with, the model that a file describes
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 done, 2 the user's mistake, 3 diverged, 128 + n stopped by n."""
    exit_on_signals()
    _quiet_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except Help as help_text:
        print(help_text)
        return 0
    except UserError as error:
        return _fail(str(error), 2)
    except Diverged as error:
        return _fail(str(error), 3)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        _leave_quietly()
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        verb, arguments = arguments[0], arguments[1:]
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
    else:
        verb = "train"
        if arguments[:1] in (["--help"], ["-h"]):
            verbs = "\n".join(
                f"  python run.py {name} --help{'':<{12 - len(name)}} {text}" for name, text in VERBS.items()
            )
            raise Help(f"{OVERVIEW}\n{verbs}")
    module = importlib.import_module(f"rnn_lm.commands.{verb}")
    return module.run(parse(arguments, module)) or 0


def _quiet_libraries() -> None:
    """What is wrong is said in one line of ours; orbax would log more, and its threads leave tracebacks behind."""
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = lambda unraisable: None


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _leave_quietly() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it closes it
    sys.exit(0)
