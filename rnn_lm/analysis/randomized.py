"""Randomized truncation: how far a single draw strays from the full gradient, exactly."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.analysis.gradients import Minibatch, gradient
from rnn_lm.nn.arrays import Carry, Tree, named_leaves, shifted
from rnn_lm.nn.models import RNNLM


def randomized_spread(
    model: RNNLM, batch: Minibatch, keep_probabilities: Sequence[float]
) -> dict[str, Float[np.ndarray, "P"]]:
    """The standard deviation √E ‖g − E g‖² of each parameter's gradient g under `RandomizedTruncation`, for each π.

    The loss is the mean over all steps. Let C_ut be what loss t adds to the full gradient through the use of the
    parameters at step u. A draw multiplies it by ξ_{u+1} ⋯ ξ_t. As E ξ = 1 and E ξ² = 1/π,

        E ‖g − E g‖² = Σ C_ut · C_u't' (π^−o − 1)   over all pairs; o: the number of steps in both (u, t] and (u', t']
                     = Σ_τ Σ_{v<τ} (π^−j − π^−(j−1)) D_v · (D_v + 2 Σ_{u<v} D_u),   j = τ − v,   D_u = Σ_{t≥τ} C_ut.

    D comes from one backward pass for each τ, of the losses from τ on: W²/2 steps. It is divided by the norm of the
    full gradient and multiplied by gain^j, gain = π^(−1/4) of the smallest π: so its squares and their weights stay
    within range.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    norm = np.sqrt(sum(np.square(part).sum() for part in gradient(model, batch).values()))
    unit = norm if np.isfinite(norm) and norm > 0 else 1.0
    gain = min(keep_probabilities) ** -0.25
    products = jax.device_get(_products(graphdef, params, batch, jnp.float32(1 / unit), jnp.float32(gain)))
    j = np.maximum(0.0, np.subtract.outer(np.arange(len(batch.inputs)), np.arange(len(batch.inputs))))
    weights = [np.where(j > 0, (1 - p) * (p * gain**2) ** -j, 0.0) for p in keep_probabilities]
    variances = {name: np.tensordot(weights, np.float64(of_name)) for name, of_name in products.items()}
    # Rounding can make a variance of 0 negative.
    return {name: unit * np.sqrt(np.maximum(variance, 0)) for name, variance in variances.items()}


@partial(jax.jit, static_argnames="graphdef")
def _products(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Minibatch, scale: Float[Array, ""], gain: Float[Array, ""]
) -> dict[str, Float[Array, "W W"]]:
    """D_v · (D_v + 2 Σ_{u<v} D_u) by parameter for each τ and v < τ, times scale² gain^2j; 0 elsewhere."""
    model = nnx.merge(graphdef, params)
    carries, _ = model.hidden(batch.carry, batch.inputs, return_carries=True)
    befores = jax.tree.map(partial(shifted, reverse=False), batch.carry, carries)
    steps = len(batch.inputs)

    def step(params: nnx.State, before: Carry, tokens: Int[Array, "N"]) -> Carry:
        model = nnx.merge(graphdef, params)
        return model.cell(before, tokens if model.embedding is None else model.embedding[tokens])[0]

    def loss(carry: Carry, labels: Int[Array, "N"]) -> Float[Array, ""]:
        return scale * model.nll(model.cell.output(carry), labels).sum() / batch.labels.size

    def of_losses_from(tau: Int[Array, ""]) -> dict[str, Float[Array, "W"]]:
        def back(adjoint: Carry, at: tuple) -> tuple[Carry, Carry]:
            t, before, after, tokens, own = at
            adjoint = jax.tree.map(lambda a, o: a + jnp.where(t >= tau, o, 0), adjoint, own)
            [earlier] = jax.vjp(lambda before: step(params, before, tokens), before)[1](adjoint)
            return jax.tree.map(lambda a: jnp.where(t <= tau, gain, 1) * a, earlier), adjoint

        xs = jnp.arange(steps), befores, carries, batch.inputs, own
        _, adjoints = jax.lax.scan(back, jax.tree.map(jnp.zeros_like, batch.carry), xs, reverse=True)

        def add(v: Int[Array, ""], state: tuple[Tree, dict]) -> tuple[Tree, dict]:
            sums, products = state
            before, tokens, adjoint = jax.tree.map(lambda x: x[v], (befores, batch.inputs, adjoints))
            [d] = jax.vjp(lambda params: step(params, before, tokens), params)[1](adjoint)
            found = named_leaves(jax.tree.map(lambda d, s: jnp.vdot(d, d + 2 * s), d, sums))
            products = {name: products[name].at[v].set(x) for name, x in found.items()}
            return jax.tree.map(lambda d, s: (s + d) / gain, d, sums), products

        nothing = jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros(steps) for name in named_leaves(params)}
        return jax.lax.fori_loop(0, tau, add, nothing)[1]

    own = jax.vmap(jax.grad(loss))(carries, batch.labels)
    return jax.lax.map(of_losses_from, jnp.arange(steps))
