"""The optimizers, from optax, with every number an argument of the compiled step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rnn_lm.program import Numbers

# From a clipped gradient to a direction. Weight decay is added to the gradient (L2) before sgd and adam, and to the
# finished step after adamw.
OPTIMIZERS = {
    "sgd": lambda n: optax.chain(optax.add_decayed_weights(n.weight_decay), optax.trace(n.momentum)),
    "adam": lambda n: optax.chain(optax.add_decayed_weights(n.weight_decay), optax.scale_by_adam()),
    "adamw": lambda n: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(n.weight_decay)),
}

# The learning rate's factor after the warm-up, from the numbers and the step. The training loop finds the plateau's
# factor, since it sees the validation loss.
SCHEDULES = {
    "constant": lambda n, step: jnp.float32(1),
    "cosine": lambda n, step: 0.5 * (1 + jnp.cos(jnp.pi * _progress(n, step))),
    "step": lambda n, step: n.decay_factor ** jnp.floor(step / n.decay_every),
    "plateau": lambda n, step: n.plateau_factor,
}


Make = Callable[[Numbers], optax.GradientTransformation]


def make_optimizer(
    optimizer: str | Make, numbers: Numbers, learning_rate: Float[Array, ""]
) -> optax.GradientTransformation:
    """Global-norm clipping (`clip_norm` 0 is off), then the optimizer: a name, or a registered function.

    Built anew inside each compiled step.
    """
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    return optax.chain(
        optax.clip_by_global_norm(clip_limit(numbers)),
        make(numbers),
        optax.scale_by_learning_rate(learning_rate),
    )


def clip_limit(numbers: Numbers) -> Float[Array, ""]:
    """The largest norm that a gradient keeps."""
    return jnp.where(numbers.clip_norm > 0, numbers.clip_norm, jnp.inf)


def learning_rate(schedule: str, numbers: Numbers, step: Int[Array, ""]) -> Float[Array, ""]:
    """The learning rate of update number `step` (from 0): a linear warm-up, then the schedule."""
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(numbers.warmup_steps, 1))
    return numbers.learning_rate * warmup * SCHEDULES[schedule](numbers, step)


def _progress(numbers: Numbers, step: Int[Array, ""]) -> Float[Array, ""]:
    start = numbers.warmup_steps
    return jnp.clip((step - start) / jnp.maximum(numbers.steps - start, 1), 0.0, 1.0)
