"""The compiled part of training: the chapter's step, many times in one dispatch.

`tests/test_idea.py` is the same in twenty-five lines, without what the log, resuming and sweeps need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.data.batches import Batches
from rnn_lm.inference.evaluate import MAX_NLL
from rnn_lm.keys import named_key
from rnn_lm.members import ONE, Members
from rnn_lm.mesh import ONE_DEVICE, WHOLE, DataMesh, rows_at
from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, Truncation, WindowTruncation
from rnn_lm.program import Numbers, Program, model_of, new_model
from rnn_lm.training.optimizers import clip_limit, learning_rate, make_optimizer
from rnn_lm.training.tbptt import overlapping_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Means:
    """The next train line: means over the steps since the last one."""

    values: Mapping[str, Float[Array, ""]]
    steps: Int[Array, ""]

    @classmethod
    def none(cls) -> "Means":
        # The gradient's global norm before and after clipping, and the share of steps at which clipping acted.
        names = ("nll", "grad_norm", "clipped_norm", "clipped")
        return cls({name: jnp.zeros(()) for name in names}, jnp.int32(0))

    def add(self, values: Mapping[str, Float[Array, ""]]) -> "Means":
        """One step more. A running mean keeps its precision over any number of steps; a sum would not."""
        steps = self.steps + 1
        return Means({name: mean + (values[name] - mean) / steps for name, mean in self.values.items()}, steps)


Report: TypeAlias = Mapping[str, Any]  # what the log needs: step, means, finite, learning_rate


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes. Training resumes from it with the same bits."""

    params: nnx.State
    opt_state: optax.OptState
    carry: Carry  # the recurrent state at the end of the last window
    step: Int[Array, ""]  # completed updates; the position in the data too
    means: Means
    finite: Bool[Array, ""]  # False once a perplexity or a gradient was not


def new_state(program: Program, numbers: Numbers, start: Callable[[nnx.State], nnx.State] | None = None) -> TrainState:
    """The state before the first step. `start` makes its weights of random ones; None leaves them.

    It is not one compiled function: runs of one model, and equal layers, share the compilations of its parts.
    """
    numbers = jax.device_put(numbers)
    graphdef, params = nnx.split(new_model(program, numbers), nnx.Param)
    params = params if start is None else start(params)
    return _state_with(graphdef, program.optimizer or program.optimizer_name, program.batch_size, numbers, params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _state_with(
    graphdef: nnx.GraphDef, optimizer: Any, batch_size: int, numbers: Numbers, params: nnx.State
) -> TrainState:
    opt_state = make_optimizer(optimizer, numbers, jnp.float32(0)).init(params)
    carry = nnx.merge(graphdef, params).initialize_carry(batch_size)
    state = TrainState(params, opt_state, carry, jnp.int32(0), Means.none(), jnp.bool_(True))
    return jax.tree.map(jnp.copy, state)  # as a step donates each array, none may be there twice


def specs_of(members: Members) -> TrainState:
    """How the state of training is divided among devices: the rows of the carry; each has all else."""
    return TrainState(WHOLE, WHOLE, rows_at(members.axes), WHOLE, WHOLE, WHOLE)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("program", "members", "mesh"), donate_argnames="state")
def train_steps(
    state: TrainState,
    until: Int[Array, ""],
    batches: Batches,
    numbers: Numbers,
    *,
    program: Program,
    members: Members = ONE,
    mesh: DataMesh = ONE_DEVICE,
) -> tuple[TrainState, Report]:
    """Takes steps until number `until`, or until a perplexity or a gradient is not finite. Also reports for the log.

    Several members, each with its own state and numbers, stop independently. Each device of the mesh computes its rows
    of the minibatches; all of them take the same step, with the mean of their gradients.
    """

    def train(
        state: TrainState, numbers: Numbers, until: Int[Array, ""], batches: Batches
    ) -> tuple[TrainState, Report]:
        step = partial(one_step, replace(batches, seed=numbers.seed), numbers, program, mesh)
        state = jax.lax.while_loop(lambda s: (s.step < until) & s.finite, step, state)
        last_rate = learning_rate(program.optimizer_schedule, numbers, state.step - 1)
        report = {"step": state.step, "means": state.means, "finite": state.finite, "learning_rate": last_rate}
        return state, report

    def of_device(state: TrainState, numbers: Numbers, *shared: Any) -> tuple[TrainState, Report]:
        return members.map(lambda state, numbers: train(state, numbers, *shared))(state, numbers)

    specs = specs_of(members)
    return mesh.map(of_device, (specs, WHOLE, WHOLE, WHOLE), (specs, WHOLE))(state, numbers, until, batches)


def one_step(batches: Batches, numbers: Numbers, program: Program, mesh: DataMesh, state: TrainState) -> TrainState:
    """One update: forward through a window of text, back through time, one step of the optimizer."""
    rows = mesh.rows(batches.batch_size)
    with jax.named_scope("batch"):
        inputs, labels, restart = batches(state.step, rows)
    # Where segments meet: the state is carried on (or reset with the epoch), the gradient stops.
    initial = model_of(program, state.params).initialize_carry(len(rows))
    carry = jax.tree.map(lambda new, h: jax.lax.stop_gradient(jnp.where(restart, new, h)), initial, state.carry)

    def loss(params: nnx.State) -> tuple[Float[Array, ""], Carry]:
        model, options = model_of(program, params, numbers.dropout), options_of(program, numbers, state.step, rows)
        if program.truncation_update_every:
            return overlapping_loss(model, carry, inputs, labels, program.truncation_update_every, **options)
        carried, h = model.hidden(carry, inputs, **options)
        return model.mean_nll(h, labels), carried

    (nll, carry), grads = jax.value_and_grad(loss, has_aux=True)(mesh.own(state.params))
    nll, grads = mesh.mean((nll, grads))
    with jax.named_scope("optimizer"):
        grad_norm, limit = optax.tree.norm(grads), clip_limit(numbers)
        rate = learning_rate(program.optimizer_schedule, numbers, state.step)
        optimizer = make_optimizer(program.optimizer or program.optimizer_name, numbers, rate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    means = state.means.add(
        {
            "nll": nll,
            "grad_norm": grad_norm,
            "clipped_norm": jnp.minimum(grad_norm, limit),
            "clipped": (grad_norm > limit).astype(jnp.float32),
        }
    )
    finite = (nll < MAX_NLL) & jnp.isfinite(grad_norm)
    return TrainState(params, opt_state, carry, state.step + 1, means, finite)


def options_of(program: Program, numbers: Numbers, step: Int[Array, ""], rows: Int[Array, " b"]) -> dict[str, Any]:
    """The optional arguments of `hidden`. Row number b of step s draws with the key of (s, b), on any device."""
    options: dict[str, Any] = {}
    if program.dropout:
        options["key"] = jax.vmap(partial(named_key, numbers.seed, "dropout", step))(rows)
    if program.remat:
        options["remat"] = program.remat
    if program.truncation_steps < program.segment_length:  # or no gradient inside the window is cut
        truncation = TRUNCATIONS[program.truncation_kind](program, numbers, step)
        options |= {} if truncation is None else {"truncation": truncation}
    return options


# The config's truncation.kind inside a window. The windows of tbptt overlap instead.
TRUNCATIONS: dict[str, Callable[[Program, Numbers, Int[Array, ""]], Truncation | None]] = {
    "none": lambda program, numbers, step: None,
    "segment": lambda program, numbers, step: SegmentTruncation(program.truncation_steps),
    "window": lambda program, numbers, step: WindowTruncation(program.truncation_steps),
    "randomized": lambda program, numbers, step: RandomizedTruncation(
        numbers.keep_probability, jax.random.fold_in(named_key(numbers.seed, "truncation"), step)
    ),
    "tbptt": lambda program, numbers, step: None,
}
