"""Initial weights.

Each initializer is one compiled function of a key, a shape (a tuple) and a dtype, so that equal gates and layers share
a compilation.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax.nnx import initializers
from flax.typing import Dtype, Initializer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

glorot = jax.jit(initializers.glorot_uniform(), static_argnums=(1, 2))
zeros = initializers.zeros_init()


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _orthogonal(
    scale: ArrayLike, key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32
) -> Float[Array, "..."]:
    return initializers.orthogonal(scale)(key, shape, dtype)


def scaled_orthogonal(scale: ArrayLike) -> Initializer:
    """Random orthogonal matrices times `scale`, the radius of all their eigenvalues."""
    return partial(_orthogonal, scale)


orthogonal = scaled_orthogonal(1.0)


def identity(key: jax.Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Float[Array, "H H"]:
    """The identity matrix: a start for `w_hh` of a relu cell (Le, Jaitly, Hinton 2015)."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Float[Array, "..."]:
    """Uniform in ±1/√H, PyTorch's start for all parameters of a recurrent layer."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
