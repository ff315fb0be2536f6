"""The output layer and its loss: hidden states → logits → nats."""

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.nn.arrays import along_last, product


def output_layer(
    h: Float[Array, "*batch H"], w_hq: Float[Array, "H V"], b_q: Float[Array, "V"], dtype: Dtype | None
) -> Float[Array, "*batch V"]:
    """Equations (8.4.4) and (8.4.6): O = H w_hq + b_q."""
    logits = product(h, w_hq, dtype)
    return logits + along_last(b_q, logits)


def cross_entropy(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The softmax cross-entropy −ln P(label) of each prediction, in nats: one term of equation (8.4.7).

    Perplexity, equation (8.4.8), is `exp` of its mean: 1 for a perfect model, V for a uniform one.
    """
    of_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_label


def masked_mean(nats: Float[Array, "*batch"], mask: Bool[Array, "*batch"] | None) -> Float[Array, ""]:
    """The mean where the mask is True (None: everywhere); 0 if it is nowhere."""
    if mask is None:
        return nats.mean()
    return jnp.sum(nats, where=mask) / jnp.maximum(mask.sum(), 1).astype(nats.dtype)
