"""Flags, by absl: one `FlagValues` per verb, with our own `--help` and one-line errors."""

import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags as absl_flags

from rnn_lm.commands.screen import paragraph, program
from rnn_lm.config import EXAMPLE, KINDS, check_config, load_config, set_field
from rnn_lm.errors import UserError, nearest
from rnn_lm.fields import FIELDS, Field
from rnn_lm.files import path_of

FlagValues = absl_flags.FlagValues


class Help(Exception):
    """Raised by `--help`; the message is the help text."""


def parse(arguments: list[str], module: ModuleType) -> tuple[FlagValues, list[str]]:
    """Parses the command line of a verb's module: its flags and its positional arguments.

    The module's docstring is the help text, its `define_flags(flags)` adds the flags, and its optional `ARGUMENTS`
    names the positional arguments. A verb with the flag `config` also gets a flag `--config.x.y` for every config
    field; `config_of` combines them.
    """
    flags = FlagValues()
    wanted = getattr(module, "ARGUMENTS", ())
    flags.set_gnu_getopt(True)  # flags may follow positional arguments
    module.define_flags(flags)
    define(flags, "import", [], "Python module or file to import first, such as one that registers a cell")
    names = list(flags)
    if "config" in names:
        for name, field in FIELDS.items():
            define(flags, f"config.{name}", field.default, field.help)
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        raise Help(_help(flags, names, module.__doc__ or ""))
    try:
        rest = flags(["rnn-lm", *arguments])[1:]
    except absl_flags.Error as error:
        raise UserError(f"{_told(error, flags)} (--help lists the flags)") from error
    if len(rest) > len(wanted):
        unexpected = rest[len(wanted)]
        raise UserError(f"unexpected argument {unexpected!r}; flags are written --name=value (--help lists them)")
    if len(rest) < len(wanted):
        verb = module.__name__.rpartition(".")[2].replace("_", "-")
        raise UserError(f"{wanted[len(rest)]} is missing: {program()} {verb} --workdir=DIR {' '.join(wanted)}")
    return flags, rest


def _told(error: absl_flags.Error, flags: FlagValues) -> str:
    """What absl's error says, with the flag that was meant, or with the values that the flag takes."""
    prefix = "config."  # what all fields have in common would make each of them alike
    if isinstance(error, absl_flags.UnrecognizedFlagError):
        known = {name.removeprefix(prefix): name for name in flags}
        close = nearest(error.flagname.removeprefix(prefix), known)
        return f"unknown flag --{error.flagname}" + (f"; did you mean --{known[close]}?" if close else "")
    given = str(error).partition(": ")[0]
    name = given.removeprefix("flag --").partition("=")[0]
    kind = type(flags[name].default) if name in flags else str
    return f"{given.removeprefix('flag ')}: it takes {KINDS[kind]}" if kind in (bool, int, float) else str(error)


def define(flags: FlagValues, name: str, default: Any, about: str) -> None:
    """Defines a flag of the default's type: None is an optional string, a list a repeatable string."""
    kinds: dict[type, Any] = {
        bool: absl_flags.DEFINE_bool,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        list: absl_flags.DEFINE_multi_string,
    }
    kinds.get(type(default), absl_flags.DEFINE_string)(name, default, about, flag_values=flags)


def define_text_flags(flags: FlagValues, about: str = "to read instead of the run's test split") -> None:
    """Flags of the verbs that read a text with a trained model."""
    define(flags, "workdir", None, "the folder of a trained run")
    define(flags, "text", [], f"UTF-8 file, folder or glob {about}")
    define(flags, "strict", False, "refuse a text with tokens that the vocabulary lacks")


def define_mix_flag(flags: FlagValues) -> None:
    about = "none: the network alone; ngram: average its probabilities with the n-gram model's, weighted by context"
    absl_flags.DEFINE_enum("mix", "none", ["none", "ngram"], about, flag_values=flags)


def define_dynamic_flag(flags: FlagValues) -> None:
    define(flags, "dynamic", False, "keep training on the text while reading it; the run is not changed")


def define_config_flags(flags: FlagValues, about_workdir: str) -> None:
    """Flags of the verbs that train."""
    define(
        flags,
        "config",
        None,
        "Python file with get_config() (and sweep() or search(trial), for the verb sweep), or the name of one in the "
        "folder experiments",
    )
    define(flags, "workdir", None, about_workdir)


def required(flags: FlagValues, name: str, example: str) -> str:
    """The value of a flag that must be given."""
    value = flags[name].value
    if not value:
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def workdir_of(flags: FlagValues, default: Path | None = None) -> Path:
    """The folder `--workdir`; without a default it must be given."""
    if flags.workdir is None and default is not None:  # not where it is empty, such as --workdir=$UNSET
        return default
    return path_of(required(flags, "workdir", "runs/char"))


def check_output(target: Path, *, force: bool) -> None:
    """Raises UserError if a file that the user wants written cannot be, or exists and `force` is not given."""
    if target.exists() and not target.is_file():
        raise UserError(f"{target} exists and is not a file; give another name")
    if os.path.lexists(target) and not force:
        raise UserError(f"{target} exists; --force replaces it")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder")


def config_of(flags: FlagValues, *, starts: bool = True):
    """The config of the file `--config`, with the fields given as `--config.x.y=v`; checked.

    `starts`: whether the verb starts from the model of `init_from`.
    """
    if not flags.config:
        raise UserError(f"--config is missing; {EXAMPLE}")
    config = load_config(flags.config)
    for name in FIELDS:
        if flags[f"config.{name}"].present:
            set_field(config, name, flags[f"config.{name}"].value)
    if config.init_from and starts:
        from rnn_lm.runs.load import adopt

        config = adopt(config, [name for name in FIELDS if flags[f"config.{name}"].present])
    check_config(config)
    return config


def _help(flags: FlagValues, names: list[str], about: str) -> str:
    about = about.replace("python run.py", program())
    lines = ["\n\n".join(map(paragraph, about.strip().split("\n\n"))), "", "Flags:"]
    for name in names:
        default = flags[name].value
        shown = "" if default in (None, "", False, []) else f" (default {default})"
        lines += _entry(f"--{name}{shown}", flags[name].help)
    if "config" in names:
        lines += ["", paragraph("Config fields, --config.FIELD=VALUE (the config file may change a default):")]
        for name, field in FIELDS.items():
            lines += _entry(f"{name} (default {field.default!r})", field.help + _values(field))
    return "\n".join(lines)


def _values(field: Field) -> str:
    """A field's allowed values, for the help."""
    if field.names:
        return f" [{' | '.join(field.names)}]"
    if isinstance(field.default, str | bool):
        return ""
    return f" [{field.low} to {field.high}]" if field.high < math.inf else f" [at least {field.low}]"


def _entry(title: str, text: str) -> list[str]:
    return [paragraph(title, "  "), paragraph(" ".join(text.split()), "      ")]  # absl's own part has a line break
