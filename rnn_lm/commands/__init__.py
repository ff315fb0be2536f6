"""The command line: one module per verb, imported only when the verb is called."""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from absl import logging

from rnn_lm.commands.flags import Help, parse
from rnn_lm.commands.screen import Column, paragraph, program, table
from rnn_lm.errors import Abandoned, Diverged, UserError, unknown_name
from rnn_lm.interrupts import Stopped
from rnn_lm.plugins import import_module_or_file
from rnn_lm.visible import visible

VERBS = {
    "train": "train a model (the verb may be omitted)",
    "evaluate": "measure how well a trained model predicts a text",
    "generate": "generate text with a trained model",
    "score": "rank continuations of a prompt by bits per character",
    "compress": "compress a file with a trained model",
    "decompress": "restore a file from an archive",
    "export": "write a trained model as safetensors, as ONNX and as a web page",
    "import-weights": "make a run of the weights of another program",
    "inspect": "analyse the gradients of a trained model",
    "compare": "compare n-grams, an MLP and recurrent networks on one text",
    "sweep": "train many models and rank them",
}
DEBUG = "RNN_LM_DEBUG"  # in the environment: 1 shows the traceback of an error


def main(arguments: list[str]) -> int:
    """Runs one command. Returns the exit code.

    0 done, 1 another process of a job ended, 2 user error, 3 diverged, 128 + n stopped by signal n: SIGPIPE, too, where
    the reader of the progress has gone before the command was done.
    """
    _set_up_streams()
    code = _code_of(arguments)
    if code and (job := sys.modules.get("rnn_lm.commands.job")):
        job.leave(code)
    return code


def _code_of(arguments: list[str]) -> int:
    try:
        if text := _run(arguments):  # empty in all processes of a job but one
            _print(text)
        return 0
    except UserError as error:
        return _fail(str(error), 2)
    except Diverged as error:
        return _fail(str(error), 3)
    except Abandoned as error:
        return _fail(str(error), 1)
    except Stopped as stopped:
        print(visible(str(stopped)), file=sys.stderr)
        return 128 + stopped.signum
    except BrokenPipeError:  # of the progress: `train … 2>&1 | head`
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _fail(_told(error), 2)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise
        return _fail("out of memory; try a smaller model, batch or length", 2)


def _run(arguments: list[str]) -> str:
    """Runs one command and returns the text to print."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"argument {argument!r} is not UTF-8") from error
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        return overview()
    if arguments and not arguments[0].startswith("-"):
        verb, arguments = arguments[0], arguments[1:]
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
    else:
        verb = "train"
    module = importlib.import_module(f"rnn_lm.commands.{verb.replace('-', '_')}")
    try:
        flags, rest = parse(arguments, module)
    except Help as text:
        return str(text)
    for name in flags["import"].value or ():
        import_module_or_file(name)
    return module.run(flags, *rest)


def overview() -> str:
    """The help on all verbs."""
    lines = [("--config=FILE", "train the model in a config file, or resume")]
    lines += [(f"{name} --help", text) for name, text in VERBS.items()]
    return "\n".join(
        [
            paragraph("Recurrent neural network language models."),
            "",
            table([Column("", words=True), Column("", words=True)], [(f"{program()} {a}", b) for a, b in lines]),
            "",
            paragraph(
                f"With {DEBUG}=1 in the environment, an error also shows its traceback. With RNN_LM_NATIVE=0, JAX does "
                "everything, without C++ kernels. Compiled kernels and programs are kept in ~/.cache/rnn_lm."
            ),
        ]
    )


def _set_up_streams() -> None:
    """Writes UTF-8 in every locale, and silences Orbax's log and its threads' complaints after a failed read.

    A stream that is closed (`>&-`) becomes the null device.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    logging.set_verbosity(logging.FATAL)

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def _print(text: str) -> None:
    """Prints to stdout; raises OSError if not all of it is written, unless its reader wants no more: `… | head`."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes again at exit
        if not isinstance(error, BrokenPipeError):
            raise


def _told(error: OSError) -> str:
    """What an error of the system says; where a folder cannot be written, that folder and not a temporary file."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        path = Path(error.filename).absolute()
        folder = next((folder for folder in path.parents if folder.exists()), path)
        if not os.access(folder, os.W_OK):
            return f"cannot write in {folder}: {error.strerror}; give another folder, or a copy of it"
    return f"{error.filename or 'cannot write'}: {error.strerror or error}"


def _fail(message: str, code: int) -> int:
    """Tells the error that is being handled in one line, after its traceback if `DEBUG` asks for it."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        print(visible(traceback.format_exc(), keep="\n"), end="", file=sys.stderr)
    print("error:", visible(" ".join(line.strip() for line in message.split("\n"))), file=sys.stderr)
    return code
