"""Memory and time of one gradient against T: all states kept, most computed again (remat), or truncated at segments.

    python -m benchmarks.memory

Bytes are the compiled program's own account of its temporaries, `memory_analysis()`. For an LSTM (D 8, H 64, B 4): a
loss on the final carry, and a language model's loss on every step (V 65), whose outputs h and logits with their
cotangents are there in any case.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.common import machine, save, table
from rnn_lm import RNNLM, LSTMCell, unroll
from rnn_lm.analysis.cost import Loss, loss_of, measured, ways_back

LENGTHS = (100, 1_000, 10_000)
BLOCK, D, H, B, V = 100, 8, 64, 4, 65


def final_carry(graphdef: nnx.GraphDef, remat: int | None = None) -> Loss:
    """The sum of the last h."""

    def loss(params: Any, carry: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        carry, _ = unroll(nnx.merge(graphdef, params), carry, x, remat=remat)
        return carry.h.sum(), carry

    return loss


def measure(
    name: str, module: nnx.Module, carry: Any, loss_with: Any, inputs: Callable[[int], jax.Array]
) -> list[dict]:
    graphdef, params = nnx.split(module, nnx.Param)
    rows = []
    for steps in LENGTHS:
        row: dict[str, Any] = {"loss": name, "steps": steps, "ways": {}}
        gradients = {}
        for way, function in ways_back(partial(loss_with, graphdef), remat=BLOCK, segment=BLOCK).items():
            arguments = params, carry, inputs(steps)
            row["ways"][way] = measured(function, *arguments)
            gradients[way] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.jit(function)(*arguments))])
        cached, remat, _ = gradients.values()
        row["difference"] = float(np.abs(remat - cached).max() / np.abs(cached).max())
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/memory.json", help="where the numbers go")
    arguments = parser.parse_args()
    cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
    model = RNNLM(V, H, rngs=nnx.Rngs(0), cell="lstm", embed_dim=D)
    rows = measure(
        "final carry", cell, cell.initialize_carry((B, D)), final_carry,
        lambda steps: jax.random.normal(jax.random.key(0), (steps, B, D)),
    )  # fmt: skip
    rows += measure(
        "every step", model, model.initialize_carry(B), loss_of,
        lambda steps: jax.random.randint(jax.random.key(0), (steps, B), 0, V),
    )  # fmt: skip
    save(arguments.out, {"machine": machine(), "rows": rows})
    names = list(rows[0]["ways"])
    cells = [
        [row["loss"], f"{row['steps']:,}"]
        + [
            f"{row['ways'][n]['temporary_bytes'] / 1e6:,.2f} MB, {1e3 * row['ways'][n]['seconds']:,.1f} ms"
            for n in names
        ]
        + [
            f"{8 * row['steps'] * B * (H + V) / 1e6:,.2f} MB" if row["loss"] == "every step" else "",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    head = [
        "loss on",
        "T",
        *(f"{n} {BLOCK}" if n != "cached" else n for n in names),
        "outputs and cotangents",
        "remat's gradient differs by",
    ]
    print(table(head, cells))


if __name__ == "__main__":
    main()
