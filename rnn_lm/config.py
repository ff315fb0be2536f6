"""Configs: defaults, config files, setting a field, and checks. Does not import jax."""

import math
import runpy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rnn_lm.errors import UserError, place_of, reason_of, unknown_name
from rnn_lm.fields import FIELDS, MAX_FLOAT, MAX_INT, get_field, parent_of
from rnn_lm.files import path_of
from rnn_lm.nn.registry import CELLS, OPTIONAL, cell_class, takes
from rnn_lm.plugins import OPTIMIZERS

# In a wheel the experiments are in the package, in a clone beside it.
_PACKAGE = Path(__file__).parent
EXPERIMENTS = (_PACKAGE if (_PACKAGE / "experiments").is_dir() else _PACKAGE.parent) / "experiments"
EXAMPLE = "for example --config=char"

# Fields that an MLP does not have.
RECURRENT_ONLY = ("model.num_layers", "model.layer_norm", "model.reset_after", "remat", "truncation.kind")
# Fields whose values users may add.
REGISTERED: dict[str, dict[str, Any]] = {"model.cell": CELLS, "optimizer.name": OPTIMIZERS}


def default_config() -> Any:  # a ConfigDict, whose fields pyright does not know
    """A locked config with the default of every field of `FIELDS`."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        parent_of(config, name, create=True)[name.rpartition(".")[2]] = field.default
    return config.lock()


def load_config(path: str) -> ConfigDict:
    """The config that a file's `get_config()` returns, completed with the defaults."""
    given = _call(path, "get_config")
    if not isinstance(given, dict | ConfigDict):
        line = "from rnn_lm import default_config as get_config"
        raise UserError(f"--config={path} has no get_config() that returns a config; one line is enough: {line}")
    return complete_config(ConfigDict(given).to_dict())


def load_search(path: str) -> Callable[[Any], Any] | None:
    """A file's `search`, with the line of the file in its errors; None if the file has a `sweep` instead.

    Raises:
      UserError: the file has both.
    """
    names = _names(path)
    if not callable(suggest := names.get("search")):
        return None
    if "sweep" in names:
        raise UserError(f"--config={path} has both sweep() and search(trial); remove one of them")

    def search(trial: Any) -> Any:
        with _placing_errors(path):
            return suggest(trial)

    return search


def load_sweep(path: str) -> list[dict[str, Any]]:
    """The members that a file's `sweep()` returns: a list of overrides."""
    given = _call(path, "sweep")
    hint = 'add a line such as: def sweep(): return [{"seed": 0}, {"seed": 1}]'
    if not isinstance(given, list) or not all(_is_override(member) for member in given):
        what = "has no sweep() that returns a list of dicts, field name → value, and no search(trial)"
        raise UserError(f"--config={path} {what}; {hint}")
    if not given:
        raise UserError(f"--config={path}: sweep() returns no members; {hint}")
    return given


def _is_override(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _call(path: str, function: str) -> Any:
    """Calls a function of a config file; returns None if the file has none of that name."""
    names = _names(path)
    with _placing_errors(path):
        return names[function]() if function in names else None


def _names(path: str) -> dict[str, Any]:
    """Runs a config file. Returns what it defines."""
    file = str(_file_of(path))
    if not Path(file).is_file():
        what = "a folder, not a file" if Path(file).is_dir() else "no such file"
        raise UserError(f"--config={file}: {what}; {EXAMPLE}")
    with _placing_errors(path):
        return runpy.run_path(file)


@contextmanager
def _placing_errors(path: str) -> Iterator[None]:
    """Turns errors of a config file into one that has the line."""
    path = str(_file_of(path))
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(f"{place_of(error, path) or f'--config={path}'}: {_reason(error, path)}") from error


def _file_of(name: str) -> Path:
    """A config file by its path, or one of the package's experiments by its name."""
    path, own = path_of(name), EXPERIMENTS / f"{name}.py"
    return own if not path.is_file() and own.is_file() else path


def _reason(error: BaseException, path: str) -> str:
    """What an error says; that of a field which a config does not have, or which has another type, in our words."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        values = frame.f_locals
        owner, name = values.get("self"), values.get("attribute", values.get("key"))
        if isinstance(owner, ConfigDict) and isinstance(name, str):  # a method of ml_collections
            try:
                set_field(default_config(), f"{_section_of(owner)}{name}", values.get("value"))
            except UserError as ours:
                return str(ours)
            break
    return reason_of(error, path)


def _section_of(config: ConfigDict) -> str:
    """`model.` for the section of that name."""
    sections = {name.rpartition(".")[0] for name in FIELDS} - {""}
    return next((f"{name}." for name in sections if set(default_config()[name]) == set(config)), "")


def complete_config(given: dict[str, Any]) -> ConfigDict:
    """The defaults, overridden by a nested dict with any of the fields."""
    config = default_config()
    for name, value in _flatten(given):
        set_field(config, name, value)
    return config


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its dotted name. Accepts NumPy scalars, and an integer for a float."""
    if name not in FIELDS:
        raise unknown_name("config field", name, FIELDS)
    kind = type(FIELDS[name].default)
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{name} is {value!r}; it takes {KINDS[kind]}")
    parent_of(config, name)[name.rpartition(".")[2]] = value


def check_config(config: ConfigDict) -> None:
    """Raises UserError if a value is out of range or two values conflict."""
    for name, field in FIELDS.items():
        value = get_field(config, name)
        known = dict.fromkeys([*field.names, *REGISTERED.get(name, ())])
        if known and value not in known:
            hint = " (--import=MODULE_OR_FILE may register others)" if name in REGISTERED else ""
            raise UserError(f"{unknown_name(f'config.{name}', str(value), known)}{hint}")
        if isinstance(value, str | bool):
            continue
        high = min(field.high, MAX_INT if isinstance(value, int) else MAX_FLOAT)
        if not field.low <= value <= high:  # false for nan too
            only_low = field.high == math.inf and value < high
            allowed = f"at least {field.low}" if only_low else f"from {field.low} to {high}"
            raise UserError(f"config.{name} is {value}; it must be {allowed}")
    if config.optimizer.momentum and config.optimizer.name in ("adam", "adamw"):
        raise UserError(f"config.optimizer.momentum is for sgd only; set it to 0 for {config.optimizer.name}")
    model = config.model
    if model.kind == "mlp":
        for name in RECURRENT_ONLY:
            if get_field(config, name) != FIELDS[name].default:
                raise UserError(f"config.{name} is for recurrent layers only; leave it out for model.kind mlp")
        if config.partition == "random" and model.context > config.segment_length:
            limit = f"with partition random it must be at most segment_length = {config.segment_length}"
            raise UserError(f"config.model.context is {model.context}; {limit}")
    else:
        _check_cell(config)
    if model.tie and model.embed_dim != model.num_hiddens:
        needed = f"config.model.embed_dim = num_hiddens = {model.num_hiddens}"
        raise UserError(f"config.model.tie needs {needed}; it is {model.embed_dim}")
    _check_truncation(config)
    if config.batch_size % config.mesh.data:
        uneven = f"which does not divide config.batch_size = {config.batch_size}"
        raise UserError(f"config.mesh.data is {config.mesh.data}, {uneven}: each device takes as many rows")
    if config.stop_patience and not config.eval_every:
        raise UserError("config.stop_patience counts evaluations; set config.eval_every to the steps between them")
    if config.corpus.max_vocab == 1:
        raise UserError("config.corpus.max_vocab is 1, which leaves only <unk>; it must be 0 (all) or at least 2")


def _check_cell(config: ConfigDict) -> None:
    for option in OPTIONAL:
        if get_field(config, f"model.{option}") != FIELDS[f"model.{option}"].default:
            import rnn_lm.nn.cells  # noqa: F401 — imports jax: only if needed

            if not takes(cell_class(config.model.cell), option):
                raise UserError(f"the {config.model.cell} cell has no option {option}; leave out config.model.{option}")
    if config.model.layer_norm and not config.model.reset_after:
        raise UserError("config.model.layer_norm needs the reset after the product; leave out config.model.reset_after")


def _check_truncation(config: ConfigDict) -> None:
    given = config.truncation
    readers = {
        "steps": ("segment", "window", "tbptt"),
        "update_every": ("tbptt",),
        "keep_probability": ("randomized",),
    }
    for name, kinds in readers.items():
        if bool(given[name]) != (given.kind in kinds):
            must = (
                f"with truncation.kind {given.kind} it must be {'more than 0' if given.kind in kinds else 'left out'}"
            )
            raise UserError(f"config.truncation.{name} is {given[name]}; {must}")
    if given.kind == "window" and config.remat:
        raise UserError("config.remat cannot be used with truncation.kind window; set it to 0")
    if given.kind == "tbptt":
        if given.steps != config.segment_length or given.update_every > given.steps:
            found = f"{given.update_every}, {given.steps} and {config.segment_length}"
            raise UserError(
                f"tbptt needs truncation.update_every ≤ truncation.steps = segment_length; they are {found}"
            )
        if config.partition != "sequential":
            raise UserError("tbptt carries the state between updates; set config.partition to sequential")


def tokens_per_step(config: ConfigDict) -> int:
    """Tokens in the loss of one update."""
    return config.batch_size * (config.truncation.update_every or config.segment_length)


def tokens_of(config: ConfigDict) -> int:
    """Tokens that a run is trained on."""
    return config.steps * tokens_per_step(config)


NAMES = {"mlp": "MLP", "elman": "Elman", "gru": "GRU", "lstm": "LSTM"}  # as people write them


def model_name(config: ConfigDict) -> str:
    """The model in words, such as `GRU of 256 units` or `LSTM of 2 × 128 units`."""
    model = config.model
    name = model.kind if model.kind == "mlp" else model.cell
    return f"{NAMES.get(name, name)} of {f'{model.num_layers} × ' * (model.num_layers > 1)}{model.num_hiddens} units"


def text_name(config: ConfigDict) -> str:
    """The text that a run trains on, as it was given."""
    return config.corpus.path or config.corpus.source


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in FIELDS:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value
