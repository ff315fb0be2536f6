"""The compiled part of training: many optimizer steps in one dispatch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from rnn_lm.data.batches import Batches
from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.models import LanguageModel
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, Truncation, WindowTruncation
from rnn_lm.training.optimizers import Numbers, clip_limit, learning_rate, make_optimizer

# What the config's truncation.kind is inside a window. Those of tbptt overlap instead.
TRUNCATIONS: dict[str, Callable[..., Truncation | None]] = {
    "none": lambda steps, numbers, keys: None,
    "segment": lambda steps, numbers, keys: SegmentTruncation(steps),
    "window": lambda steps, numbers, keys: WindowTruncation(steps),
    "randomized": lambda steps, numbers, keys: RandomizedTruncation(numbers["keep_probability"], keys["truncation"]),
    "tbptt": lambda steps, numbers, keys: None,
}


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes. Saved and restored, training goes on with the same bits."""

    params: Any
    opt_state: Any
    carry: Any  # the recurrent state at the end of the last window
    step: Int[Array, ""]  # completed updates; the position in the data too
    means: Means
    finite: Bool[Array, ""]  # False once a loss or a gradient was not

    @classmethod
    def create(cls, model: LanguageModel, optimizer: str, batch_size: int) -> "TrainState":
        params = nnx.state(model, nnx.Param)
        zeros = dict.fromkeys(("clip_norm", "weight_decay", "momentum"), jnp.float32(0))
        opt_state = make_optimizer(optimizer, zeros, jnp.float32(0)).init(params)
        return cls(params, opt_state, model.initialize_carry(batch_size), jnp.int32(0), Means.none(), jnp.bool_(True))


STATIC = ("graphdef", "optimizer", "schedule", "truncation", "truncation_steps", "remat")


@partial(jax.jit, static_argnames=STATIC, donate_argnames="state")
def train_steps(
    state: TrainState,
    until: Int[Array, ""],
    batches: Batches,
    numbers: Numbers,
    keys: Mapping[str, Key[Array, ""]],
    *,
    graphdef: nnx.GraphDef,
    optimizer: str,
    schedule: str,
    truncation: str = "none",
    truncation_steps: int = 0,
    remat: int = 0,
) -> tuple[TrainState, Mapping[str, Any]]:
    """Takes steps until number `until`, or until a loss is not finite. Also returns a copy of what the log needs.

    The keys are those of "dropout", which is off without one, and of randomized "truncation"; step number s draws by
    `fold_in(key, s)`. The rate of dropout is one of the numbers, whatever the graphdef says.
    """
    new = batches.stride  # tokens that no step before has trained on: the last ones of each window

    def loss_fn(params, carry, inputs, labels, keys):
        model = nnx.merge(graphdef, params)
        if "dropout" in keys:
            model.set_attributes(dropout=numbers["dropout"])
        # A window as long as all would but keep a loss from the carry, which is a constant here, at T times the cost.
        steps = truncation_steps if truncation_steps < len(inputs) else len(inputs) + 1
        options = {"truncation": TRUNCATIONS[truncation](steps, numbers, keys), "remat": remat or None}
        options = {name: option for name, option in options.items() if option is not None}  # an MLP has none
        carries, h = model.hidden(carry, inputs, key=keys.get("dropout"), return_carries=True, **options)
        # The next window starts where this one's new tokens did, so many steps further.
        carry = jax.tree.map(lambda c: c[new - 1], carries)
        with jax.named_scope("output_layer"):
            return cross_entropy(model.output(h[-new:]), labels[-new:]).mean(), carry

    initial = nnx.merge(graphdef, state.params).initialize_carry(batches.batch_size)

    def one_step(state: TrainState) -> TrainState:
        with jax.named_scope("batch"):
            inputs, labels, restart = batches(state.step)
        # Where segments meet: the state goes on (or starts anew with the epoch), the gradient stops.
        carry = jax.tree.map(lambda new, h: jax.lax.stop_gradient(jnp.where(restart, new, h)), initial, state.carry)
        step_keys = {name: jax.random.fold_in(key, state.step) for name, key in keys.items()}
        (nll, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, carry, inputs, labels, step_keys)
        with jax.named_scope("optimizer"):
            grad_norm, limit = optax.tree.norm(grads), clip_limit(numbers)
            rate = learning_rate(schedule, numbers, state.step)
            updates, opt_state = make_optimizer(optimizer, numbers, rate).update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return TrainState(
            params=params,
            opt_state=opt_state,
            carry=carry,
            step=state.step + 1,
            means=state.means.add(
                {
                    "nll": nll,
                    "grad_norm": grad_norm,
                    "clipped_norm": jnp.minimum(grad_norm, limit),
                    "clipped": (grad_norm > limit).astype(jnp.float32),
                }
            ),
            finite=jnp.isfinite(nll) & jnp.isfinite(grad_norm),
        )

    state = jax.lax.while_loop(lambda s: (s.step < until) & s.finite, one_step, state)
    last_rate = learning_rate(schedule, numbers, state.step - 1)
    report = {"step": state.step, "means": state.means, "finite": state.finite, "learning_rate": last_rate}
    return state, report


@partial(jax.jit, static_argnames=STATIC, donate_argnames="state")
def train_steps_side_by_side(
    state: TrainState,
    until: Int[Array, ""],
    batches: Batches,
    seeds: Int[Array, " M"],
    numbers: Mapping[str, Float[Array, " M"]],
    keys: Mapping[str, Key[Array, " M"]],
    **static: Any,
) -> tuple[TrainState, Mapping[str, Any]]:
    """`train_steps` of M runs as one program: states, numbers and keys have an axis in front, the runs.

    All read one text, each in the order of its seed. Each stops for itself, at a loss that is not finite or because it
    has been at `until` already.
    """

    def one(state: TrainState, seed: Int[Array, ""], numbers: Numbers, keys: Mapping[str, Key[Array, ""]]) -> Any:
        return train_steps(state, until, replace(batches, seed=seed), numbers, keys, **static)

    return jax.vmap(one)(state, seeds, numbers, keys)
