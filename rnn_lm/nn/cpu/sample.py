"""Text from a recurrent language model, drawn by the function of `sample.cc`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rnn_lm.nn.arrays import Carry, is_sharded
from rnn_lm.nn.cell import Cell, overrides
from rnn_lm.nn.cells import GRUCell, kind_of, takes_one_product
from rnn_lm.nn.cpu.library import absent, call
from rnn_lm.nn.cpu.recurrence import NUMBERS
from rnn_lm.nn.stack import has_layers

TABLE = 256  # a vocabulary so small has all its embeddings multiplied by w_xh once, before the first step


def is_for(model: Any, logits: Float[Array, "B V"]) -> bool:
    """Whether the machine code draws from this `RNNLM`: plain cells of one kind, in float32. Nothing is sharded."""
    cells = _layers(model.cell)
    if not all(map(_is_plain, cells)) or len(set(map(kind_of, cells))) > 1:
        return False
    output = model.output_layer
    whole = cells[0].in_features == (logits.shape[-1] if model.embedding is None else model.embedding.shape[-1])
    arrays = [logits, output.w, output.b, *(part for cell in cells for part in _weights(cell))]
    arrays += [] if model.embedding is None else [model.embedding[...]]
    dtypes = {jnp.dtype(part.dtype or jnp.float32) for part in (model, *cells, *arrays)}
    whole = whole and all(cell.w_hh.size for cell in cells) and not any(map(is_sharded, arrays))
    return dtypes == {jnp.dtype(jnp.float32)} and whole


def draw(
    model: Any,
    carry: Carry,
    logits: Float[Array, "B V"],
    uniform: Float[Array, "steps B"],
    temperature: Float[Array, ""],
    *,
    top_k: int,
    top_p: float,
) -> tuple[Carry, Float[Array, "B V"], Int[Array, "steps B"]]:
    """The carry and the next logits after the last token, and the tokens."""
    cells, output = _layers(model.cell), model.output_layer
    kind, weights = kind_of(cells[0]), [_weights(cell) for cell in cells]
    embedding = absent() if model.embedding is None else model.embedding[...]
    if 0 < len(embedding) <= TABLE:
        weights[0][0], embedding = embedding @ weights[0][0], absent()
    settings = jnp.stack([temperature, jnp.asarray(top_p, temperature.dtype)])
    arguments = [uniform, settings, logits, embedding, output.w, output.b]
    results: list[Any] = [jax.ShapeDtypeStruct(uniform.shape, jnp.int32), logits.shape]
    states = carry if has_layers(model.cell) else (carry,)
    for of_cell, state in zip(weights, states, strict=True):
        c, h = state if kind == "lstm" else (absent(), state)
        arguments += [*of_cell, h, c]
        results += [h.shape, c.shape]
    tokens, logits, *made = call(
        "rnn_lm_sample", results, *arguments, cell=NUMBERS[str(kind)], tied=output.tied, top_k=int(top_k)
    )
    leaves = [x for h, c in zip(made[::2], made[1::2], strict=True) for x in ((c, h) if kind == "lstm" else (h,))]
    return jax.tree.unflatten(jax.tree.structure(carry), leaves), logits, tokens


def _layers(cell: Any) -> Sequence[Any]:
    return list(cell.cells) if has_layers(cell) else [cell]


def _is_plain(cell: Any) -> bool:
    """Whether a step is the equations of one of the three cells."""
    if not isinstance(cell, Cell) or not takes_one_product(cell) or overrides(cell, "project"):
        return False
    is_normalised = cell.scale_x is not None or getattr(cell, "scale_c", None) is not None
    return kind_of(cell) in NUMBERS and not is_normalised


def _weights(cell: Any) -> list[Array]:
    b_hn = cell.b_hn[...] if isinstance(cell, GRUCell) else absent()
    return [cell.w_xh[...], cell.b_h[...], cell.w_hh[...], b_hn]
