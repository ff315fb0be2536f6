"""A config as compiled code sees it: the program, its numbers, and its model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.data.batches import Batches
from rnn_lm.data.corpus import Corpus
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, Value, get_field
from rnn_lm.keys import named_key
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.initializers import scaled_orthogonal
from rnn_lm.nn.models import RNNLM, LanguageModel, ModelOptions
from rnn_lm.nn.registry import cell_class
from rnn_lm.plugins import OPTIMIZERS

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Scalar: TypeAlias = float | Float[Array, "*M"]


@dataclass(frozen=True)
class Program:
    """The static argument of compiled functions: all fields whose place is "program", and four more."""

    batch_size: int
    segment_length: int
    remat: int
    partition: str
    model_kind: str
    model_cell: str
    model_context: int
    model_num_hiddens: int
    model_num_layers: int
    model_embed_dim: int
    model_activation: str
    model_tie: bool
    model_layer_norm: bool
    model_reset_after: bool
    model_dtype: str
    truncation_kind: str
    truncation_steps: int
    truncation_update_every: int
    optimizer_name: str
    optimizer_schedule: str
    mesh_data: int
    vocab_size: int
    cell: type[nnx.RNNCellBase] | None  # the class that has the cell's name now; None: no cell
    optimizer: Callable[["Numbers"], Any] | None  # the registered function of its name now; None: the package's
    dropout: bool  # whether there is any: without it nothing is drawn


class Numbers(NamedTuple):
    """The numeric arguments of compiled functions: all fields whose place is "number", and two more.

    Leaves are scalars, or [M] if M members are trained at once. The cosine schedule reads `steps` too. The loop
    computes `plateau_factor`.
    """

    seed: int | Int[Array, "*M"]
    steps: Scalar
    initial_radius: Scalar
    dropout: Scalar
    keep_probability: Scalar
    learning_rate: Scalar
    momentum: Scalar
    warmup_steps: Scalar
    decay_factor: Scalar
    decay_every: Scalar
    weight_decay: Scalar
    clip_norm: Scalar
    plateau_factor: Scalar = 1.0

    def arrays(self) -> "Numbers":
        """As 32-bit NumPy scalars, the types that compiled functions take."""
        return Numbers(np.int32(self.seed), *map(np.float32, self[1:]))  # type: ignore[arg-type]


def program_of(config: "ConfigDict", vocab_size: int) -> tuple[Program, Numbers]:
    """The program that training compiles for a config, and the numbers that it passes to it."""
    shapes = {name.replace(".", "_"): value for name, value in _at(config, "program").items()}
    numbers = {name.rpartition(".")[2]: value for name, value in _at(config, "number").items()}
    cell = cell_class(shapes["model_cell"]) if shapes["model_kind"] == "rnn" else None
    optimizer = OPTIMIZERS.get(shapes["optimizer_name"])
    program = Program(**shapes, vocab_size=vocab_size, cell=cell, optimizer=optimizer, dropout=numbers["dropout"] > 0)
    return program, Numbers(**numbers, steps=config["steps"])


def cohort_of(config: "ConfigDict") -> tuple[Value, ...]:
    """Runs with equal cohorts can be trained at once: they differ in numbers only."""
    return *_at(config, "program", "host", "data").values(), bool(get_field(config, "model.dropout"))


def _at(config: "ConfigDict", *places: str) -> dict[str, Any]:
    """The fields in these places, by name."""
    return {name: get_field(config, name) for name, field in FIELDS.items() if field.place in places}


def batches_of(program: Program, corpus: Corpus) -> Batches:
    """The minibatches. Training replaces their seed by that of the numbers."""
    return Batches.of(
        corpus.train.ids,
        batch_size=program.batch_size,
        segment_length=program.segment_length,
        partition=program.partition,
        stride=program.truncation_update_every,
    )


def new_model(program: Program, numbers: Numbers) -> LanguageModel:
    """The model with its initial weights; the numbers may be traced. It has no dropout: `model_of` gives it the rate.

    Raises:
      UserError: where the cell keeps other state than parameters.
    """
    key = named_key(numbers.seed, "params")
    rngs = nnx.Rngs(params=key, default=key)
    shared: ModelOptions = {
        "embed_dim": program.model_embed_dim,
        "tie": program.model_tie,
        "dtype": program.model_dtype,
    }
    if program.cell is None:
        return MLPLM(
            program.vocab_size,
            program.model_num_hiddens,
            rngs=rngs,
            context=program.model_context,
            activation=program.model_activation,
            **shared,
        )
    model = RNNLM(
        program.vocab_size,
        program.model_num_hiddens,
        rngs=rngs,
        cell=program.cell,
        num_layers=program.model_num_layers,
        layer_norm=program.model_layer_norm,
        reset_after=program.model_reset_after,
        activation=program.model_activation,
        recurrent_init=scaled_orthogonal(numbers.initial_radius),
        **shared,
    )
    if others := nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param))):
        name = ".".join(map(str, others[0][0]))
        raise UserError(
            f"cell {program.model_cell!r} keeps state in {name}, which is no nnx.Param; training keeps only those "
            "from step to step (dropout between the layers is config.model.dropout)"
        )
    return model


@cache
def graphdef_of(program: Program) -> nnx.GraphDef:
    """The models of a program without their parameters."""
    numbers = Numbers(*len(Numbers._fields) * [0])  # any: the values are in the parameters alone
    return nnx.split(nnx.eval_shape(partial(new_model, program, numbers)), nnx.Param)[0]


def model_of(program: Program, params: nnx.State, dropout: float | Float[Array, ""] = 0.0) -> LanguageModel:
    """The model with these parameters and this rate of dropout; both may be traced."""
    model = nnx.merge(graphdef_of(program), params)
    if program.dropout:
        model.set_attributes(dropout=dropout)
    return model
