"""The command line: one verb, one module. A verb's module, and with it jax, is loaded only when the verb is called."""

import importlib
import os
import sys

from absl import logging

from rnn_lm.commands.flags import Help, parse
from rnn_lm.errors import Diverged, UserError, unknown_name
from rnn_lm.interrupts import Stopped
from rnn_lm.plugins import import_module_or_file

VERBS = {
    "train": "train a model (the verb may be left out)",
    "evaluate": "how well a trained model predicts a text",
    "generate": "new text from a trained model",
    "score": "which continuation of a text a trained model finds likeliest",
    "compress": "a file in fewer bytes, by a trained model",
    "decompress": "the file that `compress` made an archive of",
    "inspect": "what gradients do in a trained model",
    "compare": "n-grams, an MLP and three recurrent networks on one text",
    "sweep": "many models from one file, and which of them is the best",
}
OVERVIEW = """\
Recurrent neural network language models.

  python run.py --config=experiments/char.py        train, or go on with, the model that a file describes
"""


def main(arguments: list[str]) -> int:
    """Runs one command. Returns its exit code: 0 done, 2 the user's mistake, 3 diverged, 128 + n stopped by n."""
    _set_up_streams()
    try:
        _print(_run(arguments))
        return 0
    except UserError as error:
        return _fail(str(error), 2)
    except Diverged as error:
        return _fail(str(error), 3)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'cannot write'}: {error.strerror or error}", 2)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise
        return _fail("out of memory; try a smaller model, batch or length", 2)


def _run(arguments: list[str]) -> str:
    """What the command prints."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"argument {argument!r} is not UTF-8") from error
    if arguments and not arguments[0].startswith("-"):
        verb, arguments = arguments[0], arguments[1:]
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
    else:
        verb = "train"
        if arguments[:1] in (["--help"], ["-h"]):
            verbs = [f"  python run.py {name} --help{'':<{12 - len(name)}} {text}" for name, text in VERBS.items()]
            return "\n".join([OVERVIEW, *verbs])
    module = importlib.import_module(f"rnn_lm.commands.{verb}")
    try:
        flags, rest = parse(arguments, module)
    except Help as text:
        return str(text)
    for name in flags["import"].value or ():
        import_module_or_file(name)
    return module.run(flags, *rest)


def _set_up_streams() -> None:
    """Text is UTF-8 whatever the locale, and what is wrong is said in one line of ours.

    Orbax would log more; and where it cannot read one array it abandons the others, whose threads then complain.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    logging.set_verbosity(logging.FATAL)

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def _print(text: str) -> None:
    """Prints to stdout and sees to it that all of it arrives."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again when it closes
        raise


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code
