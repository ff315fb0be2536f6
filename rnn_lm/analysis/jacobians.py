"""Spectra of W_hh and Lyapunov exponents: how fast gradients grow or shrink."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rnn_lm.files import Json
from rnn_lm.keys import named_key
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.stack import Stack

GATES: dict[type, tuple[str, ...]] = {ElmanCell: ("h",), GRUCell: ("r", "z", "n"), LSTMCell: ("i", "f", "g", "o")}


def recurrent_spectra(model: RNNLM) -> list[Json]:
    """Eigenvalues, spectral radius and singular values of each gate's [H, H] block of W_hh, for each layer.

    In a linear Elman cell, gradients change by the eigenvalues' moduli per step in the long run, and by at most the
    largest singular value in one step. Cells without such a W_hh are left out.
    """
    layers: list[Any] = list(model.cell.cells) if isinstance(model.cell, Stack) else [model.cell]
    spectra = []
    for number, cell in enumerate(layers, start=1):
        w_hh = np.asarray(cell.w_hh[...] if hasattr(cell, "w_hh") else np.zeros((0, 0)), np.float64)
        gates, rest = divmod(w_hh.shape[1], w_hh.shape[0]) if w_hh.size else (0, 0)
        blocks = np.split(w_hh, gates, axis=1) if gates and not rest else []
        names = GATES.get(type(cell)) or [str(gate) for gate in range(1, gates + 1)]
        for gate, block in zip(names, blocks, strict=True):
            eigenvalues = np.linalg.eigvals(block)
            spectra.append(
                {
                    "layer": number,
                    "gate": gate,
                    "spectral_radius": float(np.abs(eigenvalues).max()),
                    "eigenvalues": [[float(x.real), float(x.imag)] for x in eigenvalues],
                    "singular_values": np.linalg.svd(block, compute_uv=False).tolist(),
                }
            )
    return spectra


def lyapunov_exponents(
    model: RNNLM, windows: Int[np.ndarray, "T N"], *, warm_up: int, count: int = 8
) -> tuple[Float[np.ndarray, "count"], Float[np.ndarray, "count"]]:
    """The largest Lyapunov exponents of the state while the model reads N texts, in nats per step, and standard errors.

    exp of the first is the mean growth per step of a small change to the state (all layers, h and c), and of a gradient
    going back. `count` directions are multiplied by the Jacobians and orthogonalised by QR at each step; the logarithms
    of R's diagonal are averaged after `warm_up` steps. The errors, over the texts, are nan for a single text.

    References: Benettin, Galgani, Giorgilli, Strelcyn, Meccanica 15, 1980; for recurrent networks: Vogt, Puelma
    Touzel, Shlizerman, Lajoie, Frontiers in Applied Mathematics and Statistics 8, 2022.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    logs = np.asarray(_stretching(graphdef, params, jnp.asarray(windows), count), np.float64)[warm_up:]
    by_text = logs.mean(0)
    with np.errstate(invalid="ignore"):  # −inf − −inf, of directions that vanish at once
        spread = by_text.std(0, ddof=1) if len(by_text) > 1 else np.full(by_text.shape[1], np.nan)
    return by_text.mean(0), spread / np.sqrt(len(by_text))


@partial(jax.jit, static_argnames=("graphdef", "count"))
def _stretching(
    graphdef: nnx.GraphDef, params: nnx.State, windows: Int[Array, "T N"], count: int
) -> Float[Array, "T N count"]:
    model = nnx.merge(graphdef, params)
    inputs = windows if model.embedding is None else model.embedding[windows]
    initial = model.initialize_carry(windows.shape[1])
    leaves, structure = jax.tree.leaves(initial), jax.tree.structure(initial)
    ends = np.cumsum([leaf.shape[1] for leaf in leaves])
    count = min(count, int(ends[-1]))

    def advance(state: Float[Array, "N S"], x: Array) -> Float[Array, "N S"]:
        carry, _ = model.cell(jax.tree.unflatten(structure, jnp.split(state, ends[:-1], axis=1)), x)
        return jnp.concatenate(jax.tree.leaves(carry), axis=1)

    def step(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        state, directions = carry
        push = lambda d: jax.jvp(lambda s: advance(s, x), (state,), (d,))  # noqa: E731
        new, pushed = jax.vmap(push, in_axes=2, out_axes=(None, 2))(directions)
        directions, stretched = jnp.linalg.qr(pushed)
        return (new, directions), jnp.log(jnp.abs(jnp.diagonal(stretched, axis1=1, axis2=2)))

    state = jnp.concatenate(leaves, axis=1)
    random = jax.random.normal(named_key(0, "lyapunov"), (*state.shape, count), state.dtype)
    return jax.lax.scan(step, (state, jnp.linalg.qr(random)[0]), inputs)[1]
