"""What pins a program: products in its loops, gathers, memory, and how often it is compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.truncation import SegmentTruncation
from tests.nn.test_own_cells import Gated, make
from tests.nn.test_recurrence import LENGTHS, RESETS, B, D, H, T, loss_of, make_carry, make_cell, make_inputs
from tests.test_platforms import needs_compiler


def scans(jaxpr):
    """The scans of a jaxpr, and of what it calls, in order; of a choice between platforms those of the last."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        elif equation.primitive.name == "cond":
            yield from scans(equation.params["branches"][-1].jaxpr)
        elif "jaxpr" in equation.params:
            yield from scans(getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"]))


def dots_in_scans(jaxpr, inside=False):
    """Products inside the scans of a jaxpr, and outside of them; of a choice between platforms those of one."""
    count = np.zeros(2, int)
    for equation in jaxpr.eqns:
        count[0 if inside else 1] += equation.primitive.name == "dot_general"
        if equation.primitive.name == "cond":
            count += dots_in_scans(equation.params["branches"][-1].jaxpr, inside)
            continue
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                count += dots_in_scans(inner, inside or equation.primitive.name == "scan")
    return count


@pytest.mark.parametrize("name, adjoints", [("elman", 1), ("gru", 2), ("lstm", 1)])
def test_each_direction_has_one_product_in_its_loop(name, adjoints):
    cell, ids = make_cell(name), jnp.zeros((T, B), jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(loss_of(unroll, cell)))(nnx.state(cell), make_carry(cell), ids)
    assert list(dots_in_scans(jaxpr.jaxpr)) == [2, 1]  # forward and backward; dW_hh after the loop
    *_, back = scans(jaxpr.jaxpr)
    stacked = [v.aval.shape for v in back.outvars if v.aval.shape == (T, B, cell.num_gates * H)]
    assert len(stacked) == adjoints  # cells that add the two products stack one


@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_token_ids_are_gathered_and_no_one_hot_vector_is_made(name):
    cell, ids = make_cell(name), jnp.zeros((T, B), jnp.int32)
    gradient = jax.grad(loss_of(unroll, cell))
    text = str(jax.make_jaxpr(gradient)(nnx.state(cell), make_carry(cell), ids))
    assert text.count("scatter-add") == 1
    assert f"{T},{B},{D}]" not in text


def test_products_in_bfloat16_are_summed_in_float32():
    cell = make_cell("lstm", dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(jax.grad(loss_of(unroll, cell)))(nnx.state(cell), make_carry(cell), make_inputs()))
    dots = [line for line in text.split("\n") if "= dot_general" in line]
    assert dots and all(":f32[" in line for line in dots)
    assert text.count("preferred_element_type=float32") == len(dots)


def test_remat_keeps_a_long_window_small():
    cell = LSTMCell(8, 64, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell)

    def temporaries(remat):
        def loss(params, x):
            cell = nnx.merge(graphdef, params)
            return jnp.sum(unroll(cell, cell.initialize_carry((4, 8)), x, remat=remat)[0].h)

        compiled = jax.jit(jax.grad(loss)).lower(params, jnp.zeros((10_000, 4, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(100) < temporaries(None) / 10


def test_many_calls_outside_jit_compile_once(caplog):
    cell, x = make(Gated), make_inputs()
    carry, resets, lengths = make_carry(cell), RESETS, LENGTHS
    options = [{}, {"lengths": lengths}, {"resets": resets}, {"lengths": lengths, "truncation": SegmentTruncation(2)}]
    calls = [partial(unroll, cell, carry, x, **chosen) for chosen in options] + [partial(unroll, cell, carry, x[:1])]
    calls.append(lambda: jax.grad(lambda carry: unroll(cell, carry, x, lengths=lengths)[1].sum())(carry))

    def compilations():
        caplog.clear()
        with jax.log_compiles():
            for call in calls:
                call()
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    unroll(cell, carry, x[:2])  # the check's own small arrays
    assert compilations() >= len(calls)
    assert compilations() == 0


def calls_machine_code(function, *args):
    return "rnn_lm_forward" in jax.jit(function).lower(*args).as_text()


@needs_compiler
def test_machine_code_is_for_plain_float32_sequences():
    def used(t=6, **options):
        cell = LSTMCell(4, 5, rngs=nnx.Rngs(0), **options)
        x = jnp.zeros((t, 3, 4), options.get("param_dtype", jnp.float32))
        return calls_machine_code(lambda x: unroll(cell, make_carry(cell), x), x)

    assert used()
    assert not used(t=1)
    assert not used(dtype=jnp.bfloat16)
    assert not used(layer_norm=True)
    with jax.enable_x64():
        assert not used(param_dtype=jnp.float64)


@needs_compiler
@pytest.mark.parametrize("make_cell", [ElmanCell, GRUCell, LSTMCell])
def test_many_at_once_are_one_scan(make_cell):
    """One call after the other, each packing w_hh for itself, would be slower than the batched scan."""
    cell = make_cell(D, H, rngs=nnx.Rngs(0))
    gradient = jax.grad(loss_of(unroll, cell), argnums=(0, 2))
    args = nnx.state(cell), make_carry(cell), make_inputs()
    assert calls_machine_code(gradient, *args)
    assert not calls_machine_code(jax.vmap(gradient, (None, None, 0)), *args[:2], jnp.stack(2 * [args[2]]))
