"""`unroll`: a cell run over time by one compiled scan."""

import jax
from jaxtyping import Array, Float, Int

from rnn_lm.nn.cells import ElmanCell


def unroll(
    cell: ElmanCell,
    carry: Float[Array, "B H"],
    inputs: Float[Array, "T B D"] | Int[Array, "T B"],
) -> tuple[Float[Array, "B H"], Float[Array, "T B H"]]:
    """Runs `cell` over time-major `inputs` from the state `carry`: the state after the last step, and every output.

    Gradients are full backpropagation through time within the window. To truncate it between windows, apply
    `jax.lax.stop_gradient` to the carry that goes from one to the next.
    """
    projected = cell.project(inputs)  # needs no state: one product over T·B rows instead of T small ones

    def step(h, projected_t):
        h = cell.gates(h, projected_t, cell.recur(h))
        return h, h

    return jax.lax.scan(step, carry, projected)
