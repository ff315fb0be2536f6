"""Logits and labels → nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The softmax cross-entropy −ln P(label) of each prediction, in nats: one term of equation (8.4.7).

    Perplexity, equation (8.4.8), is `exp` of its mean: 1 for a perfect model, V for a uniform one.
    """
    of_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_label
