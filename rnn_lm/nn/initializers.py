"""Initial weights."""

import jax
import jax.numpy as jnp
from flax.nnx import initializers
from flax.typing import Dtype
from jaxtyping import Array, Float

glorot, orthogonal, zeros = initializers.glorot_uniform(), initializers.orthogonal(), initializers.zeros_init()


def identity(key: jax.Array, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Float[Array, "H H"]:
    """The identity matrix: a start for `w_hh` of a relu cell (Le, Jaitly, Hinton 2015)."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Float[Array, "..."]:
    """Uniform in ±1/√H, PyTorch's start for all parameters of a recurrent layer."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
