"""Randomized truncation: how far a single draw strays from the full gradient, exactly."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.analysis.gradients import Minibatch
from rnn_lm.nn.arrays import Carry, named_leaves, shifted
from rnn_lm.nn.cell import overrides
from rnn_lm.nn.cells import kind_of, takes_one_product
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import has_layers

MAX_NUMBERS = 2**24  # of each of the arrays that grow with the model or the window
ROWS = 128  # of a product; larger ones are not faster per row
OUTPUT = ("w_hq", "b_q")  # no step lies between a loss and these
ByName = dict[str, Array]  # of parameters, or of taps
# Gets a name, a product with weights, and its other factor by parameter; returns the product.
Tap = Callable[[str, Array, ByName], Array]


def randomized_spread(
    model: RNNLM, batch: Minibatch, keep_probabilities: Sequence[float]
) -> dict[str, Float[np.ndarray, "P"]]:
    """The standard deviation √E ‖g − E g‖² of each parameter's gradient g under `RandomizedTruncation`, for each π.

    The loss is the mean over all steps. Let C_ut be what loss t adds to the full gradient through the use of the
    parameters at step u. A draw multiplies it by ξ_{u+1} ⋯ ξ_t. As E ξ = 1 and E ξ² = 1/π,

        E ‖g − E g‖² = Σ C_ut · C_u't' (π^−o − 1)   over all pairs; o: the number of steps in both (u, t] and (u', t']
                     = Σ_τ Σ_{u,v<τ} (π^−j − π^−(j−1)) D_u · D_v,   j = τ − max(u, v),   D_u = Σ_{t≥τ} C_ut.

    D comes from one backward pass for each τ, of the losses from τ on: W²/2 steps. D_u · D_v of a matrix that was
    multiplied is the product of two dot products, of its inputs and of its outputs' adjoints.

    Reference for the last: Li, Tramèr, Liang, Hashimoto, Large language models can be strong differentially private
    learners, ICLR 2022 ("ghost clipping").
    """
    graphdef, params = nnx.split(model, nnx.Param)
    increments, scales = jax.device_get(_increments(graphdef, params, batch))
    steps = np.arange(len(batch.inputs))
    j = steps[:, None] - steps
    spread = {name: np.zeros(len(keep_probabilities)) for name in named_leaves(params)}
    for at, probability in enumerate(keep_probabilities):
        exponents = np.where(j > 0, 2.0 * scales - j * np.log2(probability), -np.inf)
        largest = exponents.max()  # π^−j and D · D may both be out of range
        weights = (1 - probability) * np.exp2(exponents - largest)
        for name, of_name in increments.items():
            variance = np.sum(weights * of_name, where=j > 0)
            spread[name][at] = np.sqrt(np.maximum(variance, 0)) * np.exp2(largest / 2)
    return spread


@partial(jax.jit, static_argnames="graphdef")
def _increments(graphdef: nnx.GraphDef, params: nnx.State, batch: Minibatch) -> tuple[ByName, Int[Array, "W W"]]:
    """D_v · (D_v + 2 Σ_{u<v} D_u) by parameter for each τ and v, [W, W], in units of 4 to the second result."""
    steps, rows = batch.inputs.shape
    model = nnx.merge(graphdef, params)
    carries, _ = model.hidden(batch.carry, batch.inputs, return_carries=True)
    befores = jax.tree.map(partial(shifted, reverse=False), batch.carry, carries)
    later = _adjoints_of_later_losses(model, befores, batch)
    contributions = _Contributions(graphdef, params, befores, batch.inputs)
    block = _divisor(steps, min(ROWS / rows, MAX_NUMBERS / max(leaf.size for leaf in jax.tree.leaves(params))))
    at_once = _divisor(steps, MAX_NUMBERS / sum(leaf.size for leaf in jax.tree.leaves(befores)))

    def of_some(taus: Int[Array, "n"]) -> tuple[ByName, Int[Array, "n W"]]:
        adjoints, exponents = _adjoints(model, befores, batch.inputs, later, taus)
        largest = jax.lax.cummax(exponents, axis=1)
        of_one = lambda given: _summed(contributions, block, *given)  # noqa: E731
        return jax.lax.map(of_one, (taus, adjoints, exponents, largest)), largest

    found = jax.lax.map(of_some, jnp.arange(steps).reshape(-1, at_once))
    return jax.tree.map(lambda x: x.reshape(-1, steps), found)


def _divisor(number: int, limit: float) -> int:
    """The largest divisor of `number` up to `limit`, at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, limit))


def _adjoints_of_later_losses(model: RNNLM, befores: Carry, batch: Minibatch) -> Carry:
    """The adjoint of the carry after each step, of the losses of later steps."""

    def back(after: Carry, inputs: tuple[Carry, Array, Array]) -> tuple[Carry, Carry]:
        before, tokens, labels = inputs

        def step(before: Carry) -> tuple[Carry, Array]:
            carry, h = model.cell(before, _inputs_of(model, tokens))
            return carry, model.nll(h, labels).sum() / batch.labels.size

        (_, loss), pull = jax.vjp(step, before)
        return pull((after, jnp.ones_like(loss)))[0], after

    last = jax.tree.map(jnp.zeros_like, batch.carry)
    return jax.lax.scan(back, last, (befores, batch.inputs, batch.labels), reverse=True)[1]


def _adjoints(
    model: RNNLM, befores: Carry, tokens: Int[Array, "W N"], later: Carry, taus: Int[Array, "n"]
) -> tuple[Carry, Int[Array, "n W"]]:
    """The adjoint of the carry after each step of the losses from τ on, for each τ, in units of a power of two.

    It is 0 from step τ on. The power keeps it from leaving float32's range.
    """

    def back(state: tuple[Carry, Array], inputs: tuple) -> tuple[tuple[Carry, Array], tuple[Carry, Array]]:
        step, before, tokens, starting = inputs
        starts = taus == step + 1
        adjoint = jax.tree.map(lambda a, s: jnp.where(_along(starts, a), s, a), state[0], starting)
        adjoint, exponent = _scaled(adjoint, jnp.where(starts, 0, state[1]))
        _, pull = jax.vjp(lambda before: model.cell(before, _inputs_of(model, tokens))[0], before)
        return (jax.vmap(pull)(adjoint)[0], exponent), (adjoint, exponent)

    nothing = jax.tree.map(lambda x: jnp.zeros((len(taus), *x.shape[1:]), x.dtype), later)
    xs = jnp.arange(len(tokens)), befores, tokens, later
    _, found = jax.lax.scan(back, (nothing, jnp.zeros_like(taus)), xs, reverse=True)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def _scaled(adjoint: Carry, exponent: Int[Array, "n"]) -> tuple[Carry, Int[Array, "n"]]:
    """The same with numbers of at most 1 and another power of two."""
    largest = [jnp.abs(leaf).reshape(len(exponent), -1).max(1) for leaf in jax.tree.leaves(adjoint)]
    _, power = jnp.frexp(jnp.stack(largest).max(0))
    return jax.tree.map(lambda x: jnp.ldexp(x, -_along(power, x)), adjoint), exponent + power


def _along(x: Array, like: Array) -> Array:
    return x.reshape(-1, *(like.ndim - 1) * [1])


class _Contributions:
    """What each step adds to the gradient: for each parameter two factors, x and p [b, N, …]; D = Σ_n x_n ⊗ p_n.

    For a matrix that was multiplied, x is its input and p its output's adjoint. Token ids stand for one-hot rows. Other
    parameters have x = 1 and p = D.
    """

    def __init__(self, graphdef: nnx.GraphDef, params: nnx.State, befores: Carry, tokens: Int[Array, "W N"]):
        self.graphdef, self.params = graphdef, params
        self.tap_of: dict[str, str] = {}  # by parameter
        zeros, inputs = jax.vmap(self._taps)(befores, tokens)
        _, places = jnp.unique(tokens, return_inverse=True, size=tokens.size)  # of the few ids of a large vocabulary
        self.inputs = {name: places if x.ndim == 2 else x for name, x in inputs.items()}
        self.at = befores, tokens, zeros

    def _taps(self, before: Carry, tokens: Int[Array, "N"]) -> tuple[ByName, ByName]:
        """At one step: a zero for each tap, and the inputs of the products."""
        zeros, inputs = {}, {}

        def tap(name: str, product: Array, factors: ByName) -> Array:
            zeros[name] = jnp.zeros_like(product)
            inputs.update(factors)
            self.tap_of.update(dict.fromkeys(factors, name))
            return product

        _step(nnx.merge(self.graphdef, self.params), before, tokens, tap)
        return zeros, inputs

    def __call__(self, steps: Int[Array, "b"], adjoints: Carry) -> dict[str, tuple[Array, Array]]:
        """The factors at some steps, given the adjoints of the carries after them."""
        befores, tokens, zeros = jax.tree.map(lambda x: x[steps], self.at)
        products, others = jax.vmap(self._pulled)(befores, tokens, zeros, adjoints)
        found = {name: (self.inputs[name][steps], products[tap]) for name, tap in self.tap_of.items()}
        return found | {name: (jnp.ones((*d.shape[:2], 1), d.dtype), d) for name, d in others.items()}

    def _pulled(self, before: Carry, tokens: Array, zeros: ByName, adjoint: Carry) -> tuple[ByName, ByName]:
        """At one step: the adjoints of the products, and D of the parameters that have no tap."""

        def step(params: nnx.State, added: ByName) -> Carry:
            model = nnx.merge(self.graphdef, params)
            return _step(model, before, tokens, lambda name, product, _: product + added[name])

        of_params, of_products = jax.vjp(step, self.params, zeros)[1](adjoint)
        others = {name: d for name, d in named_leaves(of_params).items() if name not in (*self.tap_of, *OUTPUT)}
        return of_products, {name: d.reshape(1, -1) for name, d in others.items()}


def _summed(
    contributions: _Contributions,
    block: int,
    tau: Int[Array, ""],
    adjoints: Carry,
    exponents: Int[Array, "W"],
    largest: Int[Array, "W"],
) -> ByName:
    """D_v · (D_v + 2 Σ_{u<v} D_u), [W], in units of 4^largest, summed block by block up to step τ."""

    def add(number: Array, state: tuple[ByName, ByName]) -> tuple[ByName, ByName]:
        steps = number * block + jnp.arange(block)
        power, unit = exponents[steps], largest[steps]
        before, after = largest[jnp.maximum(steps[0] - 1, 0)], unit[-1]
        times = jnp.triu(jnp.full((block, block), 2.0), 1) + jnp.eye(block)
        times = jnp.ldexp(times, jnp.where(times > 0, power[:, None] + power - 2 * unit, 0))
        sums, dots = dict(state[0]), dict(state[1])
        for name, (x, p) in contributions(steps, jax.tree.map(lambda a: a[steps], adjoints)).items():
            with_sum = (_product(x, sums[name]) * p).sum((1, 2))
            with_block = (times * (_dots(x, x) * _dots(p, p)).sum((1, 3))).sum(0)
            dots[name] = dots[name].at[number].set(2 * jnp.ldexp(with_sum, power + before - 2 * unit) + with_block)
            scaled = jnp.ldexp(p, (power - after)[:, None, None])
            sums[name] = _add_product(sums[name] * jnp.ldexp(1.0, before - after), x, scaled)
        return sums, dots

    factors = jax.eval_shape(contributions, jnp.arange(block), jax.tree.map(lambda a: a[:block], adjoints))
    sizes = {
        name: (len(exponents) * x.shape[1] if x.ndim == 2 else x.shape[2], p.shape[2])
        for name, (x, p) in factors.items()
    }
    sums = {name: jnp.zeros(size) for name, size in sizes.items()}
    dots = {name: jnp.zeros((len(exponents) // block, block)) for name in factors}
    _, dots = jax.lax.fori_loop(0, (tau + block - 1) // block, add, (sums, dots))
    return {name: of_blocks.reshape(-1) for name, of_blocks in dots.items()}


def _dots(x: Array, y: Array) -> Float[Array, "b N b N"]:
    """The dot product of each row with each."""
    return (x[:, :, None, None] == y).astype(jnp.float32) if x.ndim == 2 else jnp.einsum("unk,vmk->unvm", x, y)


def _product(x: Array, matrix: Float[Array, "K G"]) -> Float[Array, "b N G"]:
    return matrix[x] if x.ndim == 2 else x @ matrix


def _add_product(matrix: Float[Array, "K G"], x: Array, p: Float[Array, "b N G"]) -> Float[Array, "K G"]:
    """The matrix plus the sum of all x ⊗ p."""
    return matrix.at[x].add(p) if x.ndim == 2 else matrix + jnp.einsum("bnk,bng->kg", x, p)


def _inputs_of(model: RNNLM, tokens: Int[Array, "*batch"]) -> Array:
    return tokens if model.embedding is None else model.embedding[tokens]


def _step(model: RNNLM, before: Carry, tokens: Int[Array, "N"], tap: Tap) -> Carry:
    """One step of all layers. `tap` gets the products of our own cells."""
    x = _inputs_of(model, tokens)
    if model.embedding is not None:
        x = tap("embedding", x, {"embedding": tokens})
    if not has_layers(model.cell):
        return _layer(model.cell, "cell", before, x, tap)[0]
    news = []
    for number, (cell, state) in enumerate(zip(model.cell.cells, before, strict=True)):
        new, x = _layer(cell, f"cell.cells.{number}", state, x, tap)
        news.append(new)
    return tuple(news)


def _layer(cell: Any, path: str, state: Carry, x: Array, tap: Tap) -> tuple[Carry, Array]:
    if not takes_one_product(cell) or overrides(cell, "project") or not kind_of(cell):
        return cell(state, x)
    one = jnp.ones((*x.shape[:1], 1))
    projected = tap(f"{path}.projected", cell.project(x), {f"{path}.w_xh": x, f"{path}.b_h": one})
    recurrent = tap(f"{path}.recurrent", cell.recur(state), {f"{path}.w_hh": cell.output(state)})
    new = cell.gates(state, projected, recurrent)
    return new, cell.output(new)
