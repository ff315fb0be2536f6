import jax
import numpy as np
from flax import nnx

from rnn_lm.analysis import cost
from rnn_lm.analysis.cost import gradient_in_segments, loss_of, step_costs
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.truncation import SegmentTruncation

V, H, T, B = 7, 5, 12, 3
MODEL = RNNLM(V, H, rngs=nnx.Rngs(0), cell="lstm")
TOKENS = jax.random.randint(jax.random.key(0), (T, B), 0, V)


def test_each_way_has_the_gradient_that_it_says():
    graphdef, params = nnx.split(MODEL, nnx.Param)
    carry = MODEL.initialize_carry(B)

    def segmented(params, carry, tokens):
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, tokens, truncation=SegmentTruncation(4))
        return model.nll(h, tokens).sum(), carry

    def grad(loss):
        return jax.grad(loss, has_aux=True)(params, carry, TOKENS)[0]

    pairs = [
        (grad(loss_of(graphdef, remat=5)), grad(loss_of(graphdef))),
        (gradient_in_segments(loss_of(graphdef), 4, params, carry, TOKENS), grad(segmented)),
    ]
    for got, expected in pairs:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_what_truncation_keeps_does_not_grow_with_time():
    rows = step_costs(MODEL, batch_size=4, segment=16, lengths=[16, 256])
    size = {(row["way"], row["steps"]): row["temporary_bytes"] for row in rows}
    assert size["cached", 256] > 10 * size["cached", 16]
    assert size["remat", 256] < 0.6 * size["cached", 256]
    assert size["truncated", 256] < 2 * size["truncated", 16]
    assert all(row["seconds"] > 0 for row in rows)


def test_what_needs_too_much_memory_is_compiled_but_not_run(monkeypatch):
    monkeypatch.setattr(cost, "MAX_BYTES", 10)
    rows = cost.step_costs(MODEL, batch_size=4, segment=4, lengths=[4])
    assert all(row["seconds"] is None and row["temporary_bytes"] > 10 for row in rows)
