"""Drawing text from a model, token by token in one compiled call: machine code where it can, else a scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.nn import native
from rnn_lm.nn.arrays import Carry
from rnn_lm.nn.cell import overrides
from rnn_lm.nn.choice import choice
from rnn_lm.nn.models import RNNLM, LanguageModel, NeuralLM


def draw(
    model: LanguageModel,
    carry: Carry,
    logits: Float[Array, "B V"],
    uniform: Float[Array, "steps B"],
    temperature: Float[Array, ""],
    *,
    top_k: int,
    top_p: float,
    wanted: bool,
) -> tuple[Carry, Float[Array, "B V"], Int[Array, "steps B"]]:
    """Draws `steps` tokens of B texts, each by a number from [0, 1) of its own.

    Token 0, `<unk>`, is drawn only where no other has a probability: where logits are not finite. Machine code gives
    the scan's tokens unless a number is at the edge of a token's share to rounding: one in a million for 65 tokens,
    three in ten thousand for 10,000, whose shares JAX adds up in float32.

    Args:
      model: predicts the next token.
      carry: the state of all texts.
      logits: of the first token to draw.
      uniform: the numbers.
      temperature: divides the logits; 0 always takes the likeliest token.
      top_k: draw from the k likeliest tokens; 0: from all.
      top_p: draw from the likeliest tokens whose total probability reaches `top_p`; 1: from all.
      wanted: whether machine code may be called, `native.is_wanted()`.

    Returns:
      The carry and the next logits after the last token, for another call, and the tokens.
    """
    graphdef, weights = nnx.split(model)

    def by(way: Callable) -> Callable:
        """A way to draw, as a function of arrays."""
        return lambda weights, *given: way(nnx.merge(graphdef, weights), *given, top_k=top_k, top_p=top_p)

    run = by(_scan)
    if wanted and _is_plain(model) and native.cpu.sample.is_for(model, logits):
        fast = by(native.cpu.sample.draw)
        one_by_one = lambda size: lambda *members: jax.lax.map(lambda member: fast(*member), members)  # noqa: E731
        run = choice(fast, run, what="sampling", platform="cpu", is_ready=native.is_available, many=one_by_one)
    return run(weights, carry, logits, uniform, temperature)


def keep_likeliest(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Sets logits to −∞ outside the `top_k` likeliest tokens (0: all) and outside the nucleus of probability `top_p`.

    The likeliest token always stays. Ties are broken in favour of smaller ids.

    Reference: Holtzman et al., The curious case of neural text degeneration, ICLR 2020.
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    rank = jnp.argsort(order, axis=-1)
    keep = rank < (top_k or logits.shape[-1])
    if top_p < 1:
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
        before = jnp.cumsum(probs, axis=-1) - probs  # total probability of likelier tokens
        keep &= (rank == 0) | jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def at_quantile(weights: Float[Array, "B V"], u: Float[Array, " B"]) -> Int[Array, " B"]:
    """Token v with probability ∝ its weight: the first whose cumulative share exceeds u ∈ [0, 1).

    Takes one random number per draw; the Gumbel-max trick takes V.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)  # rounding never selects a weight of 0
    return jnp.argmax(cumulative > u[:, None] * cumulative.max(axis=-1, keepdims=True), axis=-1)


def _scan(
    model: LanguageModel,
    carry: Carry,
    logits: Float[Array, "B V"],
    uniform: Float[Array, "steps B"],
    temperature: Float[Array, ""],
    *,
    top_k: int,
    top_p: float,
) -> tuple[Carry, Float[Array, "B V"], Int[Array, "steps B"]]:
    def step(state: tuple[Carry, Array], u: Array) -> tuple[tuple[Carry, Array], Array]:
        carry, logits = state
        logits = logits.at[:, 0].set(-jnp.inf)  # never <unk>
        logits -= jnp.max(logits, axis=-1, keepdims=True)  # no temperature can overflow then
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        if top_k or top_p < 1:
            scaled = keep_likeliest(scaled, top_k, top_p)
        tokens = jnp.where(temperature > 0, at_quantile(jnp.exp(scaled), u), jnp.argmax(logits, axis=-1))
        tokens = tokens.astype(jnp.int32)
        carry, logits = model(carry, tokens[None])
        return (carry, logits[0]), tokens

    (carry, logits), tokens = jax.lax.scan(step, (carry, logits), uniform)
    return carry, logits, tokens


def _is_plain(model: LanguageModel) -> bool:
    """Whether a step of the model is that of `RNNLM`."""
    plain = not overrides(model, "__call__", "hidden", "logits")
    return isinstance(model, RNNLM) and plain and type(model).output_layer is NeuralLM.output_layer
