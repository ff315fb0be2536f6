"""What people rely on in `nnx.RNNCellBase`: flax's own tests of recurrent cells, written anew for these cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, LSTMState
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack
from tests.nn.test_recurrence import assert_same, loop

CELLS = [ElmanCell, GRUCell, LSTMCell]
T, B, D, H = 5, 3, 4, 6
RESETS = jnp.zeros((T, B), bool).at[2, 0].set(True)


def whole_vectors():
    return jax.random.randint(jax.random.key(0), (B, T, D), -2, 9)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}])
@pytest.mark.parametrize("cls", CELLS)
def test_whole_numbers_are_vectors_in_nnx_rnn(cls, options):
    cell, x = cls(D, H, rngs=nnx.Rngs(0)), whole_vectors()
    given, expected = (nnx.RNN(cell, **options)(x) for x in (x, x.astype(jnp.float32)))
    assert given.shape == (B, T, H)
    assert_same(given, expected, tolerance=1e-6)


@pytest.mark.parametrize("cls", CELLS)
def test_whole_numbers_are_vectors_beside_lengths(cls):
    cell, x, lengths = cls(D, H, rngs=nnx.Rngs(0)), whole_vectors(), jnp.array([5, 1, 3])
    carry, y = nnx.RNN(cell, return_carry=True)(x, seq_lengths=lengths)
    last, ours = unroll(cell, cell.initialize_carry((B, D)), x.swapaxes(0, 1), lengths=lengths)
    assert_same(carry, last)
    valid = (jnp.arange(T) < lengths[:, None])[..., None]
    assert_same(jnp.where(valid, y, 0), ours.swapaxes(0, 1))


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_ids_are_told_from_vectors_by_their_rank(cls, dtype):
    cell = cls(300, H, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(1.0))
    ids = jnp.array([[1, 2, 0], [100, 0, 127]], dtype)
    carry = cell.initialize_carry((3, 300))
    vectors = jax.nn.one_hot(ids.astype(jnp.int32), 300)
    assert_same(unroll(cell, carry, ids), unroll(cell, carry, vectors))
    assert_same(unroll(cell, carry, ids), loop(cell, carry, ids))
    assert_same(unroll(cell, carry, vectors.astype(dtype)), loop(cell, carry, vectors.astype(dtype)))
    assert_same(unroll(cell, carry, vectors.astype(dtype)), unroll(cell, carry, ids))
    one = jax.tree.map(lambda c: c[0], carry)  # no batch: ids [T], vectors [T, D]
    assert_same(unroll(cell, one, ids[:, 0])[1], unroll(cell, carry, ids)[1][:, 0])
    assert_same(unroll(cell, one, vectors.astype(dtype)[:, 0])[1], unroll(cell, carry, ids)[1][:, 0])


def test_ids_are_integers():
    cell = GRUCell(D, H, rngs=nnx.Rngs(0))
    for call in (lambda x: unroll(cell, jnp.zeros((B, H)), x), lambda x: cell(jnp.zeros((B, H)), x[0])):
        with pytest.raises(TypeError, match=r"inputs: expected vectors, or token ids that are integers; got float32"):
            call(jnp.zeros((T, B)))


@pytest.mark.parametrize("cls", CELLS)
def test_the_initial_carry_may_be_drawn(cls):
    cell = cls(D, H, rngs=nnx.Rngs(0))
    ones = cell.initialize_carry((B, D), nnx.Rngs(0), carry_init=nnx.initializers.ones)
    assert_same(ones, jax.tree.map(jnp.ones_like, cell.initialize_carry((B, D))), tolerance=0)
    drawn = jax.tree.leaves(cell.initialize_carry((B, D), nnx.Rngs(0), carry_init=nnx.initializers.normal()))
    assert all(np.std(leaf) > 0 for leaf in drawn)
    assert len(drawn) == 1 or not np.array_equal(*drawn)
    with pytest.raises(ValueError, match="rngs"):
        cell.initialize_carry((B, D), carry_init=nnx.initializers.ones)
    both = Stack([cell, GRUCell(H, 2, rngs=nnx.Rngs(0))]).initialize_carry(
        (B, D), nnx.Rngs(0), carry_init=nnx.initializers.ones
    )
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(both))


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("dtype", [jnp.float16, "bfloat16"])
def test_half_precision_weights_are_rounded_ones(cls, dtype):
    cell, exact = (cls(D, H, rngs=nnx.Rngs(0), dtype=t, param_dtype=t) for t in (dtype, jnp.float32))
    for half, full in zip(jax.tree.leaves(nnx.state(cell)), jax.tree.leaves(nnx.state(exact)), strict=True):
        np.testing.assert_array_equal(half, full.astype(dtype))
    x = jnp.ones((B, T, D), dtype)
    outputs = nnx.RNN(cell)(x)
    assert outputs.dtype == jnp.dtype(dtype)
    ours = unroll(cell, cell.initialize_carry((B, D)), x.swapaxes(0, 1))[1].swapaxes(0, 1)
    assert ours.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(ours.astype(jnp.float32), outputs.astype(jnp.float32), atol=0.02)


class Stateful(LSTMCell):
    """A cell that hands back a plain pair, as subclasses of flax's cells do."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return tuple(super().initialize_carry(input_shape, rngs, carry_init))


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [5, 1, 3]}, {"backward": "autodiff"}, {"remat": 2}, {"resets": RESETS}]
)
@pytest.mark.parametrize("cls", [LSTMCell, Stateful])
def test_an_lstms_carry_may_be_a_plain_pair(cls, options):
    cell, x = cls(D, H, rngs=nnx.Rngs(0)), whole_vectors().swapaxes(0, 1)
    pair = jax.random.normal(jax.random.key(0), (2, B, H))
    of_pair, of_state = (unroll(cell, carry, x, **options) for carry in (tuple(pair), LSTMState(*pair)))
    assert type(of_pair[0]) is tuple and type(of_state[0]) is LSTMState
    assert_same(of_pair, of_state, tolerance=1e-6)
    assert type(cell(tuple(pair), x[0])[0]) is tuple
    assert nnx.RNN(cell)(whole_vectors(), initial_carry=tuple(pair)).shape == (B, T, H)
    gradients = jax.grad(lambda pair: unroll(cell, tuple(pair), x, **options)[1].sum())(pair)
    assert_same(gradients, jax.grad(lambda pair: loop_sum(cell, tuple(pair), x, **options))(pair))


def loop_sum(cell, carry, x, lengths=None, resets=None, **_):
    lengths = None if lengths is None else jnp.array(lengths)
    return loop(cell, carry, x, lengths=lengths, resets=resets)[1].sum()


@pytest.mark.parametrize("cls", CELLS)
def test_initializers_may_name_axes_for_sharding(cls):
    init = nnx.with_partitioning(nnx.initializers.orthogonal(), (None, "model"))
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):  # flax wants one where axes are named
        cell = cls(D, H, rngs=nnx.Rngs(0), recurrent_init=init)
    names = cell.w_hh.get_metadata()
    assert (None, "model") in (names.get("out_sharding"), names.get("sharding_names"), names.get("sharding"))
    plain = cls(D, H, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(cell.w_hh[...], plain.w_hh[...])
    x = jnp.ones((T, B, D))
    assert_same(unroll(cell, cell.initialize_carry((B, D)), x), unroll(plain, plain.initialize_carry((B, D)), x))
