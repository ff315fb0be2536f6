"""Cells of one's own: `unroll` is a loop over `cell(carry, x_t)`, whatever a class overrides."""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn.cell import Cell
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, sigmoid
from rnn_lm.nn.fused import is_fused
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import SegmentTruncation, WindowTruncation
from tests.nn.test_recurrence import LENGTHS, RESETS, B, D, H, T, assert_same, loop, loss_of, make_carry, make_inputs

pytestmark = pytest.mark.usefixtures("strict_promotion")


class Gated(Cell):
    """Only `gates`."""

    num_gates = 2

    def gates(self, carry, projected, recurrent):
        f, z = jnp.split(projected + recurrent, 2, axis=-1)
        f = sigmoid(f)
        return f * carry + (1 - f) * jnp.tanh(z)


class Pair(NamedTuple):
    h: jax.Array
    count: jax.Array


class Counting(ElmanCell):
    """A carry with a whole number in it."""

    def gates(self, carry, projected, recurrent):
        return Pair(super().gates(carry.h, projected, recurrent), carry.count + 1)

    def output(self, carry):
        return carry.h / (carry.count[..., None] + 1).astype(carry.h.dtype)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return Pair(super().initialize_carry(input_shape), jnp.zeros(input_shape[:-1], jnp.int32))


class Leaky(ElmanCell):
    def step(self, carry, projected):
        return 0.9 * carry + 0.1 * super().step(carry, projected)


class Masked(ElmanCell):
    def recur(self, carry):
        return self.product(carry, self.w_hh[...] * jnp.eye(self.hidden_features))


class ReadsItsWeights(ElmanCell):
    """Gates that read parameters which have their own ways through the fused scan."""

    def gates(self, carry, projected, recurrent):
        decay = jnp.mean(self.w_hh[...]) + jnp.mean(self.b_h[...])
        return super().gates(carry, projected, recurrent) + decay * carry


class Clipped(LSTMCell):
    def __call__(self, carry, inputs):
        carry, h = super().__call__(carry, inputs)
        return carry._replace(c=jnp.clip(carry.c, -0.1, 0.1)), 2 * h


class Zoneout(GRUCell):
    def __call__(self, carry, inputs):
        new, _ = super().__call__(carry, inputs)
        new = 0.5 * carry + 0.5 * new
        return new, new


class Scaled(GRUCell):
    """An output with a parameter."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.scale = nnx.Param(jnp.linspace(0.5, 1.5, sizes[1]))

    def output(self, carry):
        return carry * self.scale[...][None]


class Learned(GRUCell):
    """A learned initial state."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.h0 = nnx.Param(jnp.linspace(-1.0, 1.0, sizes[1]))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.broadcast_to(jnp.tanh(self.h0[...]), (*input_shape[:-1], self.hidden_features))


class Rescaled(ElmanCell):
    """A projection that looks at what else is there at its step."""

    def project(self, x):
        return super().project(x - x[:1])


class Rounded(ElmanCell):
    def product(self, x, w):
        return super().product(jnp.tanh(x), w)


class Buffered(ElmanCell):
    """Numbers that are no parameters: one is a float, one is not."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.shift = nnx.Variable(jnp.linspace(0.0, 0.3, sizes[1]))
        self.order = nnx.Variable(jnp.arange(sizes[1])[::-1])

    def gates(self, carry, projected, recurrent):
        return super().gates(carry, projected + self.shift[...][None], recurrent[..., self.order[...]])


FUSED = [Gated, ReadsItsWeights, Scaled, Learned, Rescaled, Buffered]
PLAIN = [Counting, Leaky, Masked, Clipped, Zoneout, Rounded]
OPTIONS = {
    "nothing": {},
    "resets": {"resets": RESETS, "lengths": LENGTHS},
    "reverse": {"resets": RESETS, "reverse": True, "truncation": SegmentTruncation(2)},
}


def make(cls):
    return cls(D, H, rngs=nnx.Rngs(0))


def gradient_of(run, cell):
    """Values and gradients, those by whole numbers left out."""
    graphdef, state = nnx.split(cell)
    leaves, tree = jax.tree.flatten(state)
    floating = {i: leaf for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def loss(floating, h, x, rest):
        cell = nnx.merge(graphdef, tree.unflatten([floating.get(i, leaf) for i, leaf in enumerate(leaves)]))
        carry = rest._replace(h=h) if isinstance(rest, Pair) else h
        carry, y = run(cell, carry, x)
        last = [leaf for leaf in jax.tree.leaves(carry) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum((i + 1.0) * jnp.sum(leaf) for i, leaf in enumerate(last)) + jnp.sum(y * weights)

    def of(x, carry):
        h = carry.h if isinstance(carry, Pair) else carry
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(floating, h, x, carry if isinstance(carry, Pair) else 0)

    return jax.jit(of)


def carry_of(cell):
    carry = cell.initialize_carry((B, D))
    return jax.tree.map(lambda a: a + jnp.linspace(-0.5, 0.5, H) if a.dtype == jnp.float32 else a, carry)


@pytest.mark.parametrize(
    "options", ["resets", *(pytest.param(o, marks=pytest.mark.slow) for o in ("nothing", "reverse"))]
)
@pytest.mark.parametrize("cls", FUSED + PLAIN)
def test_whatever_a_cell_overrides_unroll_is_the_loop(cls, options):
    cell, x, options = make(cls), make_inputs(), OPTIONS[options]
    carry = carry_of(cell)
    assert is_fused(cell, carry, x) == (cls in FUSED)
    ways = [partial(unroll, **options), partial(unroll, backward="autodiff", **options), partial(loop, **options)]
    fused, plain, looped = (gradient_of(way, cell)(x, carry) for way in ways)
    assert_same(fused, looped)
    assert_same(plain, looped)


@pytest.mark.parametrize("method", ["gates", "step", "output", "__call__"])
def test_a_method_that_an_instance_has_of_its_own_counts_too(method):
    cell, x = make(GRUCell), make_inputs()
    usual = getattr(cell, method)
    if method == "__call__":  # Python looks these up on the class
        cell.project = lambda x, project=cell.project: 0.5 * project(x)
    else:
        setattr(cell, method, lambda *args: jax.tree.map(lambda a: 0.5 * a, usual(*args)))
    carry = cell.initialize_carry((B, D))
    assert_same(unroll(cell, carry, x), loop(cell, carry, x))


def test_a_learned_initial_state_has_its_gradient_through_resets_in_windows_too():
    cell, x = make(Learned), make_inputs()
    for truncation in (None, WindowTruncation(T)):
        run = partial(unroll, truncation=truncation, resets=RESETS)
        by_window, whole = (
            jax.grad(loss_of(way, cell))(nnx.state(cell), jnp.zeros((B, H)), x).h0[...]
            for way in (run, partial(loop, resets=RESETS))
        )
        assert np.abs(whole).max() > 0.1
        np.testing.assert_allclose(by_window, whole, rtol=1e-4, atol=1e-5)


class Wrapped(ElmanCell):
    """A method under a borrowed name."""

    @functools.wraps(ElmanCell.step)
    def step(self, carry, projected):
        return 0.5 * carry + 0.5 * ElmanCell.step(self, carry, projected)


def test_functools_wraps_hides_nothing():
    cell, x = make(Wrapped), make_inputs()
    assert_same(unroll(cell, make_carry(cell), x), loop(cell, make_carry(cell), x))
    cell = make(GRUCell)
    cell.gates = functools.wraps(cell.gates)(lambda *args, gates=cell.gates: 0.5 * gates(*args))
    assert_same(unroll(cell, make_carry(cell), x), loop(cell, make_carry(cell), x))


def test_ids_beside_a_carry_of_arrays_of_several_ranks():
    cell, ids = make(Counting), jnp.zeros((T, B), jnp.int32)
    carry = cell.initialize_carry((B, D))
    assert_same(unroll(cell, carry, ids, resets=RESETS), loop(cell, carry, ids, resets=RESETS))


class Narrow(ElmanCell):
    """Shows fewer units than it has."""

    def output(self, carry):
        return carry[..., :2]

    def recur(self, carry):
        return self.product(carry, self.w_hh[...])


@pytest.mark.slow
def test_a_window_over_a_narrow_layer_has_the_dropout_masks_of_the_whole():
    stack, x = Stack([make(Narrow), GRUCell(2, H, rngs=nnx.Rngs(1))], dropout=0.5), make_inputs()
    carry = make_carry(stack)
    gradients = [
        jax.grad(loss_of(partial(unroll, truncation=truncation, key=jax.random.key(0)), stack))(
            nnx.state(stack), carry, x
        )
        for truncation in (WindowTruncation(T), None)
    ]
    assert_same(*gradients)


class Residual(Stack):
    """A stack with a way of its own to run its layers."""

    def __call__(self, carry, inputs):
        carries, x = [], inputs
        for cell, state in zip(self.cells, carry, strict=True):
            state, y = cell(state, x)
            carries.append(state)
            x = x + y
        return tuple(carries), x


def test_a_stack_of_ones_own_is_a_loop_too():
    stack, x = Residual([GRUCell(H, H, rngs=nnx.Rngs(0)), Gated(H, H, rngs=nnx.Rngs(1))]), make_inputs(d=H)
    args = nnx.state(stack), make_carry(stack), x
    ways = [unroll, loop, partial(unroll, truncation=WindowTruncation(T))]
    whole, looped, window = (jax.value_and_grad(loss_of(way, stack), argnums=(0, 2))(*args) for way in ways)
    assert_same(whole, looped)
    assert_same(window, looped)


class Quantising(ElmanCell):
    """A product whose scale is that of all that is multiplied at once."""

    def product(self, x, w):
        scale = jnp.abs(x).max()
        return super().product(jnp.round(x / scale * 7) * scale / 7, w)


class OwnWeights(ElmanCell):
    """Parameters of other shapes under the names that the package's methods read."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.w_xh = nnx.Param(jnp.ones((sum(sizes), sizes[1])) / 9)
        self.b_c = nnx.Param(jnp.ones(2))

    def __call__(self, carry, inputs):
        carry = jnp.tanh(jnp.concatenate([inputs, carry], axis=-1) @ self.w_xh[...])
        return carry, carry


class Matrix(nnx.RNNCellBase):
    """Linear attention: the state is a matrix."""

    num_feature_axes = 1
    hidden_features = H

    def __init__(self, *sizes, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (sizes[0], H)))

    def __call__(self, carry, inputs):
        h = inputs @ self.w[...]
        carry = 0.9 * carry + h[..., :, None] * h[..., None, :]
        return carry, (carry @ h[..., None])[..., 0]

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], H, H))


@pytest.mark.parametrize("cls", [Quantising, OwnWeights, Matrix])
def test_other_cells_that_are_loops_too(cls):
    cell, x = make(cls), make_inputs()
    carry = cell.initialize_carry((B, D)) + 0.1
    assert_same(unroll(cell, carry, x), loop(cell, carry, x))
    if cls is Matrix:
        options = {"lengths": LENGTHS, "resets": RESETS}
        assert_same(unroll(cell, carry, x, **options), loop(cell, carry, x, **options))


class Dropping(nnx.RNNCellBase):
    """Draws anew at each step, and counts steps."""

    def __init__(self, *sizes, rngs):
        self.cell = GRUCell(*sizes, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.steps = nnx.Variable(jnp.int32(0))
        self.hidden_features = sizes[1]

    def __call__(self, carry, inputs):
        self.steps[...] += 1
        return self.cell(carry, self.drop(inputs))

    def initialize_carry(self, *args, **options):
        return self.cell.initialize_carry(*args, **options)

    @property
    def num_feature_axes(self):
        return 1


class DroppingGates(GRUCell):
    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def gates(self, carry, projected, recurrent):
        return super().gates(carry, self.drop(projected), recurrent)


@pytest.mark.parametrize("cls", [Dropping, DroppingGates])
def test_what_steps_change_of_the_cell_goes_on_as_in_a_loop(cls):
    x = make_inputs()
    one, other = make(cls), make(cls)
    under_flax = nnx.RNN(make(cls), time_major=True)
    for _ in range(2):  # the second call draws anew
        carry = one.initialize_carry((B, D))
        made, expected = unroll(one, carry, x), loop(other, carry, x)
        assert_same(made, expected, tolerance=1e-6)
        assert_same(under_flax(x, initial_carry=carry), made[1], tolerance=1e-6)
    kinds = nnx.Not(nnx.RngKey)  # which NumPy cannot show, and which never change
    assert_same(nnx.state(one, kinds), nnx.state(other, kinds), tolerance=0)
    assert_same(nnx.state(one, kinds), nnx.state(under_flax.cell, kinds), tolerance=0)
    stack = Stack([make(cls), Gated(H, H, rngs=nnx.Rngs(1))])
    unroll(stack, stack.initialize_carry((B, D)), x)
    assert_same(nnx.state(stack.cells[0], nnx.RngCount)["drop"], nnx.state(one, nnx.RngCount)["drop"], tolerance=T)
    assert nnx.state(stack, nnx.RngCount)["cells"][0]["drop"]["rngs"]["count"][...] == T


@pytest.mark.parametrize("options", [{"remat": 2}, {"truncation": WindowTruncation(2)}])
def test_where_a_changing_cell_cannot_be_unrolled_one_line_says_so(options):
    cell = make(Dropping)
    with pytest.raises(ValueError, match="(remat|truncation): .*own state at each step"):
        unroll(cell, cell.initialize_carry((B, D)), make_inputs(), **options)


def test_a_cell_without_gates_is_told_what_is_missing():
    class Bare(Cell):
        num_gates = 1

    cell = make(Bare)
    with pytest.raises(TypeError, match="Bare has no gates"):
        unroll(cell, cell.initialize_carry((B, D)), make_inputs())
