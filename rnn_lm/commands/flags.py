"""Flags, by absl: one `FlagValues` a verb, so that a mistake is one line and `--help` is ours."""

import math
import textwrap
from types import ModuleType
from typing import Any

from absl import flags as absl_flags

from rnn_lm.config import check_config, load_config, set_field
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, Field

FlagValues = absl_flags.FlagValues


class Help(Exception):
    """Help was asked for; the message is the text."""


def parse(arguments: list[str], module: ModuleType) -> tuple[FlagValues, list[str]]:
    """The flags and the other arguments of a verb's module, from the command line.

    The module's docstring is the help text, and its `define_flags(flags)` adds the flags; `ARGUMENTS`, if it has that,
    names what comes without a flag. Where `config` is one of the flags, every config field is a flag too,
    `--config.x.y=v`, in any order; `config_of` puts them together.
    """
    flags = FlagValues()
    wanted = getattr(module, "ARGUMENTS", ())
    flags.set_gnu_getopt(True)  # flags may stand after them
    module.define_flags(flags)
    about = "a Python module or file to load first, such as one that registers a cell; may be given more than once"
    define(flags, "import", [], about)
    names = list(flags)
    with_config = "config" in names
    if with_config:
        for name, field in FIELDS.items():
            define(flags, f"config.{name}", field.default, field.help)
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        raise Help(_help(flags, names, module.__doc__ or "", with_config))
    try:
        rest = flags(["rnn-lm", *arguments])[1:]
    except absl_flags.Error as error:
        raise UserError(f"{error} (--help lists the flags)") from error
    if len(rest) > len(wanted):
        unexpected = rest[len(wanted)]
        raise UserError(f"unexpected argument {unexpected!r}; flags are written --name=value (--help lists them)")
    if len(rest) < len(wanted):
        verb = module.__name__.rpartition(".")[2]
        raise UserError(f"{wanted[len(rest)]} is missing: python run.py {verb} --workdir=DIR {' '.join(wanted)}")
    return flags, rest


def define(flags: FlagValues, name: str, default: Any, about: str) -> None:
    """A flag of the default's type. None is a string that may be missing, a list may be given more than once."""
    kinds: dict[type, Any] = {
        bool: absl_flags.DEFINE_bool,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        list: absl_flags.DEFINE_multi_string,
    }
    kinds.get(type(default), absl_flags.DEFINE_string)(name, default, about, flag_values=flags)


def define_text_flags(
    flags: FlagValues, about_text: str = "a UTF-8 file, folder or glob to read instead of the run's test split"
) -> None:
    """Of the verbs that read a text with a trained model."""
    define(flags, "workdir", None, "the folder of a trained run")
    define(flags, "text", [], f"{about_text}; may be given more than once")
    define(flags, "strict", False, "refuse a text with tokens that the vocabulary lacks")


def define_mix_flag(flags: FlagValues) -> None:
    about = "ngram: the run's n-gram model beside the network, each weighted by how well the n-grams know the context"
    absl_flags.DEFINE_enum("mix", "none", ["none", "ngram"], about, flag_values=flags)


def define_dynamic_flag(flags: FlagValues) -> None:
    about = "go on learning from the text while it is read (dynamic evaluation); the run stays as it is"
    define(flags, "dynamic", False, about)


def define_config_flags(flags: FlagValues, about_workdir: str) -> None:
    """Of the verbs that train; `config_of` reads the first."""
    define(flags, "config", None, "the experiment: a Python file with get_config() (and, for sweep, sweep())")
    about = f"{about_workdir} where it is not given, NAME being the config file's"
    define(flags, "workdir", None, about)


def required(flags: FlagValues, name: str, example: str) -> str:
    """A flag that has no default."""
    value = flags[name].value
    if not value:
        raise UserError(f"--{name} is missing; for example --{name}={example}")
    return value


def config_of(flags: FlagValues):
    """The config that `--config` names, with the fields changed that `--config.x.y=v` name, checked."""
    config = load_config(required(flags, "config", "experiments/char.py"))
    for name in FIELDS:
        if flags[f"config.{name}"].present:
            set_field(config, name, flags[f"config.{name}"].value)
    check_config(config)
    return config


def _help(flags: FlagValues, names: list[str], about: str, with_config: bool) -> str:
    lines = [about.strip(), "", "Flags:"]
    for name in names:
        default = flags[name].value
        lines += _entry(
            f"--{name}" + (f" (default {default})" if default not in (None, "", False, []) else ""), flags[name].help
        )
    if with_config:
        lines += ["", "Config fields, --config.FIELD=VALUE (each with the default that an experiment may change):"]
        for name, field in FIELDS.items():
            lines += _entry(f"{name} (default {field.default!r})", field.help + _values(field))
    return "\n".join(lines)


def _values(field: Field) -> str:
    """What a field may be."""
    if field.names:
        return f" [{' | '.join(field.names)}]"
    if isinstance(field.default, str | bool):
        return ""
    return f" [{field.low:g} to {field.high:g}]" if field.high < math.inf else f" [at least {field.low:g}]"


def _entry(title: str, text: str) -> list[str]:
    return [f"  {title}", *textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")]
