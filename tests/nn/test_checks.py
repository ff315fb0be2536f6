"""What `unroll` refuses, and what it takes: shapes of parameters, lists, empty batches, JAX's strict modes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.mlp import MLPLM
from rnn_lm.nn import native
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack, dropped
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation
from tests.nn.test_recurrence import LENGTHS, RESETS, B, D, H, T, assert_same, loss_of, make_carry, make_inputs

CELLS = {
    "elman": ElmanCell,
    "gru": GRUCell,
    "lstm": LSTMCell,
    "gru before": partial(GRUCell, reset_after=False),
    "lstm norm": partial(LSTMCell, layer_norm=True),
}


def make(name, **options):
    return CELLS[name](D, H, rngs=nnx.Rngs(0), **options)


WRONG = [
    ("lstm", "w_hh", (4 * H, H)),  # PyTorch's layout
    ("lstm", "w_hh", (4 * H, 16 * H)),
    ("lstm", "w_hh", (H - 1, 4 * (H - 1))),
    ("gru", "b_hn", (1,)),
    ("gru", "b_h", (1,)),
    ("gru", "w_xh", (D, H)),
    ("elman", "w_hh", (H, H + 1)),
    ("lstm norm", "scale_c", (1,)),
    ("lstm norm", "scale_h", (H,)),
    ("gru before", "w_hh", (H, H)),
]


@pytest.mark.parametrize("name, parameter, shape", WRONG)
def test_a_parameter_of_another_shape_is_named_with_both(name, parameter, shape):
    cell = make(name)
    nnx.update(cell, {parameter: jnp.zeros(shape)})
    expected = rf"{parameter}: expected \[.*\] = \[.*\]; got {re.escape(str(list(shape)))}"
    for run in (
        lambda x: unroll(cell, make_carry(make(name)), x),
        jax.jit(lambda x: unroll(cell, make_carry(make(name)), x)),
    ):
        with pytest.raises(ValueError, match=expected):
            run(make_inputs())


@pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")
@pytest.mark.parametrize("target", ["rnn_lm_forward", "rnn_lm_backward"])
def test_the_machine_code_checks_its_dimensions_itself(target):
    h, states, gates = jnp.zeros((B, H)), jnp.zeros((T, B, H)), jnp.zeros((T, B, 4 * H))
    x, w_xh, w_hh = jnp.zeros((T, B, D)), jnp.zeros((D, 4 * H)), jnp.zeros((H, 4 * H))
    b_h, nothing, lengths, resets = w_hh[0], jnp.zeros(0), jnp.zeros((B,), jnp.int32), jnp.zeros((T, B), bool)
    layer = [x, w_xh, b_h, w_hh, nothing, h, h, h, h, lengths, resets]
    arguments, results = {
        "rnn_lm_forward": (layer, [states, states, gates, h, h]),
        "rnn_lm_backward": (
            [*layer, jnp.ones(T), states, states, gates, states, states, h, h],
            [x, w_xh, b_h, w_hh, nothing, h, h, h, h],
        ),
    }[target]
    kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in results]
    call = partial(jax.ffi.ffi_call(target, kinds), cell=4, inputs=0, reverse=False)
    call(*arguments)
    for place, argument in enumerate(arguments):
        wrong = [*arguments]
        wrong[place] = jnp.zeros((3, 2, 7), argument.dtype)
        with pytest.raises(Exception, match="rnn_lm: .*dimensions"):
            jax.block_until_ready(call(*wrong))


def test_lists_and_numpy_arrays_will_do():
    cell, x = make("gru"), make_inputs()
    carry = make_carry(cell)
    expected = unroll(cell, carry, x, lengths=LENGTHS, resets=RESETS)
    for as_given in (np.asarray, lambda a: np.asarray(a).tolist()):
        given = unroll(cell, carry, as_given(x), lengths=as_given(LENGTHS), resets=as_given(RESETS))
        assert_same(given, expected, tolerance=1e-6)
    ids = [[0, 1, 2], [3, 0, 1]]
    assert_same(unroll(cell, carry, ids), unroll(cell, carry, jnp.array(ids)), tolerance=0)


@pytest.mark.parametrize("ids", [np.full((T, B), -1, np.int8), np.full((T, B), 130, np.uint8)])
def test_ids_of_few_bits_are_compared_with_a_large_vocabulary(ids):
    cell = GRUCell(130 if ids[0, 0] > 0 else 1000, H, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="inputs: expected ids from 0 to"):
        unroll(cell, jnp.zeros((B, H)), ids)


def test_transposed_inputs_are_told_so():
    plain, cell = getattr(unroll, "__wrapped__", unroll), make("gru")
    with pytest.raises(
        ValueError, match=r"carry: expected float32 \[6, 5\].* got float32 \[3, 5\]; inputs are time-major"
    ):
        plain(cell, make_carry(cell), make_inputs().swapaxes(0, 1))
    with pytest.raises(ValueError, match="resets: .*time-major"):
        plain(cell, make_carry(cell), make_inputs(), resets=RESETS.T)


def test_an_unknown_cell_is_told_the_known_ones():
    with pytest.raises(ValueError, match="unknown cell 'gruu'; known: .*elman.*gru.*lstm"):
        RNNLM(7, 5, rngs=nnx.Rngs(0), cell="gruu")
    with pytest.raises(ValueError, match="GRUCell does not take activation"):
        RNNLM(7, 5, rngs=nnx.Rngs(0), cell="gru", activation="relu")


def test_what_is_no_truncation_is_refused():
    plain, cell = getattr(unroll, "__wrapped__", unroll), make("gru")
    with pytest.raises(TypeError, match="truncation: expected None, or one of rnn_lm's truncations; got 5"):
        plain(cell, make_carry(cell), make_inputs(), truncation=5)
    with pytest.raises(TypeError, match="inputs: expected vectors, or token ids"):
        plain(cell, make_carry(cell), jnp.float32(1), truncation=SegmentTruncation(2))


@pytest.mark.parametrize("rate", [-0.5, 1.5, float("nan")])
def test_a_dropout_that_is_no_part_of_the_whole_is_refused(rate):
    for make_it in (
        lambda: Stack([make("gru")], dropout=rate),
        lambda: RNNLM(7, 5, rngs=nnx.Rngs(0), dropout=rate),
        lambda: MLPLM(7, 5, rngs=nnx.Rngs(0), context=2, dropout=rate),
    ):
        with pytest.raises(ValueError, match="dropout is .*; it must be from 0 to 1"):
            make_it()


def test_a_dropout_of_everything_has_no_gradient():
    gradient = jax.grad(lambda x: dropped(x, 1.0, jax.random.key(0)).sum())(jnp.ones(9))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("remat", [1, 2, "sqrt"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_no_sequences_are_no_error_with_remat_either(name, remat):
    cell = make(name)
    assert unroll(cell, make_carry(cell, (0,)), make_inputs(b=0), remat=remat)[1].shape == (T, 0, H)


@pytest.mark.parametrize(
    "name", ["gru", *(pytest.param(n, marks=pytest.mark.slow) for n in ("elman", "lstm", "gru before", "lstm norm"))]
)
def test_jaxs_strict_modes(name):
    cell, x = make(name), make_inputs()
    carry, few = make_carry(cell), LENGTHS.astype(jnp.int8)
    ids = jnp.zeros((T, B), jnp.int8)
    options = [
        {"lengths": few},
        {"resets": RESETS, "reverse": True, "remat": 4},
        {"truncation": SegmentTruncation(2)},
        {"truncation": RandomizedTruncation(0.5, jax.random.key(0))},
        {"truncation": WindowTruncation(2), "lengths": few},
    ]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for number, chosen in enumerate(options):
            jax.grad(loss_of(partial(unroll, **chosen), cell))(nnx.state(cell), carry, ids if number % 2 else x)
        cell(carry, x[0])
        cell(carry, ids[0])


@pytest.mark.slow  # tests/training/test_strict_modes.py has quick ones
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_nothing_leaks_from_the_fused_way(name):
    cell, x = make(name), make_inputs()
    graphdef, state = nnx.split(cell)
    with jax.checking_leaks():
        gradient = jax.jit(jax.grad(lambda state, x: unroll(nnx.merge(graphdef, state), make_carry(cell), x)[1].sum()))
        gradient(state, x)
        nnx.jit(lambda cell, x: unroll(cell, make_carry(cell), x)[1])(cell, x)
