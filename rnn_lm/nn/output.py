"""The output layer and its loss: hidden states → logits → nats.

The logits of a large vocabulary are too many to keep, so hidden states come in blocks, and the training loss forms its
gradient while a block's logits are there: three products in place of four, and no logits [T, B, V]. On CPUs machine
code does it; elsewhere, and where what `nll` gives is differentiated, JAX.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from rnn_lm.nn import native
from rnn_lm.nn.arrays import Tree, alike, along_last, is_sharded, product
from rnn_lm.nn.choice import choice

BLOCK = 2**24  # logits that JAX has in memory at a time


@partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=["tied", "dtype"])
@dataclass(frozen=True)
class OutputLayer:
    """Equations (8.4.4) and (8.4.6): O = H w_hq + b_q.

    Attributes:
      w: w_hq [H, V]; with `tied`, its transpose, which is an embedding [V, H].
      b: b_q [V].
      dtype: of the factors of the product; None means that of w.
    """

    w: Tree  # JAX's transformations put other things in the places of arrays
    b: Tree
    tied: bool = False
    dtype: Dtype | None = None

    def logits(self, h: Float[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """Of the next token."""
        o = product(h, self.w.T if self.tied else self.w, self.dtype)
        return o + along_last(self.b, o)

    def nll(self, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """`cross_entropy(logits(h), labels)`."""
        if any(map(is_sharded, (self.w, self.b, h, labels))):
            return cross_entropy(self.logits(h), labels)
        return _nll(self, h, labels, native.is_wanted())

    def mean_nll(
        self, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
    ) -> Float[Array, ""]:
        """`masked_mean(nll(h, labels), mask)`.

        Its gradient is formed on the way forward, and is as large as w: inside a scan or `vmap` that is differentiated
        as a whole, take the mean of `nll`.
        """
        if any(map(is_sharded, jax.tree.leaves((self, h, labels, mask)))):
            return masked_mean(self.nll(h, labels), mask)
        return _mean_nll(self, h, labels, mask, native.is_wanted())


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


@partial(jax.jit, static_argnums=3)
def _nll(
    layer: OutputLayer, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"], wanted: bool
) -> Float[Array, "*batch"]:
    return _by_machine_code(wanted, "nats", _nats, layer, h, labels)(layer, h, labels)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _mean(
    layer: OutputLayer,
    h: Float[Array, "*batch H"],
    labels: Int[Array, "*batch"],
    mask: Bool[Array, "*batch"] | None,
    wanted: bool,
) -> Float[Array, ""]:
    return masked_mean(_nll(layer, h, labels, wanted), mask)


def _mean_jvp(wanted: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    dtype = jnp.result_type(primals[0].w, primals[0].b)
    (layer, h, labels, mask), zeros = alike((primals, jnp.zeros(primals[2].shape, dtype)))
    changes = jax.tree.leaves(tangents[:2])
    asked = tuple(not isinstance(change, SymbolicZero) for change in changes)
    weights = jax.grad(masked_mean)(zeros, mask)
    gradient = _by_machine_code(wanted, "gradient", _gradient, layer, h, labels, asked=asked)
    nats, gradients = gradient(layer, h, labels, weights)
    changes = [change for change, is_asked in zip(changes, asked, strict=True) if is_asked]
    terms = [jnp.vdot(d, change).astype(dtype) for d, change in zip(gradients, changes, strict=True)]
    return masked_mean(nats, mask), sum(terms, start=jnp.zeros((), dtype))


_mean.defjvp(_mean_jvp, symbolic_zeros=True)
_mean_nll = jax.jit(_mean, static_argnums=4)


def _by_machine_code(
    wanted: bool, name: str, reference: Any, layer: OutputLayer, h: Array, labels: Array, **options: Any
) -> Any:
    """The reference; on CPUs the function of that name in `cpu.output`, which takes the same arguments."""
    slow = partial(reference, **options)
    if not wanted or not native.cpu.output.is_for(layer, h, labels):
        return slow
    fast = partial(getattr(native.cpu.output, name), **options)
    return choice(fast, slow, what="output layer", platform="cpu", is_ready=native.is_available)


def _nats(layer: OutputLayer, h: Float[Array, "*batch H"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`cross_entropy` in blocks along the first axis; where it is differentiated, logits are computed again."""

    def of_steps(steps: tuple[Array, Array]) -> Array:
        return cross_entropy(layer.logits(steps[0]), steps[1])

    size = _steps_of_block(layer, labels)
    if size >= len(h):
        return of_steps((h, labels))
    return jax.lax.map(jax.checkpoint(of_steps), (h, labels), batch_size=size)


def _gradient(
    layer: OutputLayer,
    h: Float[Array, "*batch H"],
    labels: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
    *,
    asked: tuple[bool, bool, bool],
) -> tuple[Float[Array, "*batch"], tuple[Array, ...]]:
    """Nats, and the gradient of Σ weights · nats in w, b and h: of those that are asked for."""

    def of_steps(h: Array, labels: Array, weights: Array) -> tuple[Array, OutputLayer, Array]:
        nats, pullback = jax.vjp(lambda layer, h: cross_entropy(layer.logits(h), labels), layer, h)
        return nats, *pullback(weights)

    size = _steps_of_block(layer, labels)
    if size >= len(h):
        nats, d_layer, d_h = of_steps(h, labels, weights)
    else:
        count = -(-len(h) // size)
        missing = -len(h) % count
        padded = [jnp.pad(x, ((0, missing), *(x.ndim - 1) * ((0, 0),))) for x in (h, labels, weights)]
        blocks = [x.reshape(count, -1, *x.shape[1:]) for x in padded]

        def add(sums: OutputLayer, block: list[Array]) -> tuple[OutputLayer, tuple[Array, Array]]:
            nats, d_layer, d_h = of_steps(*block)
            return jax.tree.map(lambda x, d: x + d.astype(x.dtype), sums, d_layer), (nats, d_h)

        # Many terms: in float32 at least.
        zeros: Tree = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype if x.itemsize >= 4 else jnp.float32), layer)
        sums, made = jax.lax.scan(add, alike((zeros, blocks))[0], blocks)
        d_layer = jax.tree.map(lambda d, x: d.astype(x.dtype), sums, layer)
        nats, d_h = (x.reshape(-1, *x.shape[2:])[: len(h)] for x in made)
    gradients = d_layer.w, d_layer.b, d_h
    return nats, tuple(d for d, is_asked in zip(gradients, asked, strict=True) if is_asked)


def _steps_of_block(layer: OutputLayer, labels: Array) -> int:
    """Blocks are along the first axis: time. A batch that is divided among devices stays so."""
    logits_of_step = layer.b.size * max(1, math.prod(labels.shape[1:]))
    return max(1, BLOCK // logits_of_step)
