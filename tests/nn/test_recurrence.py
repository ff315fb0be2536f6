from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack, dropped
from rnn_lm.nn.truncation import SegmentTruncation

T, B, D, H = 6, 3, 4, 5
normal = nnx.initializers.normal(1.0)
CELLS = {
    "elman": ElmanCell,
    "relu": partial(ElmanCell, activation="relu"),
    "gru": GRUCell,
    "gru before": partial(GRUCell, reset_after=False),
    "lstm": LSTMCell,
    "lstm norm": partial(LSTMCell, layer_norm=True),
}
FUSED = ["elman", "gru", "lstm", "lstm norm"]
LENGTHS = jnp.array([6, 0, 4])
RESETS = jnp.zeros((T, B), bool).at[2, 0].set(True).at[3].set(True)
OPTIONS = {
    "nothing": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "truncation": {"truncation": SegmentTruncation(4)},
    "reverse": {"reverse": True},
    "all": {"reverse": True, "lengths": LENGTHS, "resets": RESETS, "truncation": SegmentTruncation(2)},
}


@pytest.fixture(autouse=True)
def _the_scan(strict_promotion, monkeypatch):
    """What is tested here is the compiled scan; test_cpu.py holds the machine code to it."""
    monkeypatch.setenv("RNN_LM_NATIVE", "0")


def make_cell(name, d=D, h=H, **options):
    cell = CELLS[name](d, h, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(0.5), **options)
    if getattr(cell, "b_hn", None) is not None:
        cell.b_hn[...] = jnp.linspace(-1, 1, h, dtype=cell.param_dtype)
    return cell


def make_carry(cell, batch=(B,), seed=7):
    return jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(seed), a.shape, a.dtype), cell.initialize_carry((*batch, 1))
    )


def make_inputs(t=T, b=B, d=D, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (t, b, d), dtype)


def where(mask, x, y):
    return jnp.where(mask.reshape(B, *(1,) * (x.ndim - 1)), x, y)


def loop(cell, carry, x, *, lengths=None, resets=None, reverse=False, truncation=None):
    """The same in a loop over t and, for the rules of masks, over the sequences."""
    initial = jax.tree.unflatten(jax.tree.structure(carry), jax.tree.leaves(cell.initialize_carry((B, 1))))
    outputs = [None] * len(x)
    for t in range(len(x))[::-1] if reverse else range(len(x)):
        entered, seam = carry, t + reverse
        if truncation is not None and seam % truncation.steps == 0 and 0 < seam < len(x):
            entered = jax.lax.stop_gradient(entered)
        if resets is not None:
            entered = jax.tree.map(lambda i, c, t=t: where(resets[t], i, c), initial, entered)
        new, y = cell(entered, x[t])
        real = jnp.full(B, True) if lengths is None else t < lengths
        carry = jax.tree.map(lambda n, c, real=real: where(real, n, c), new, carry)
        outputs[t] = jnp.where(real[:, None], y, 0.0)
    return carry, jnp.stack(outputs)


def loss_of(run, cell, t=T, b=B, h=H):
    """`(params, carry, x) → number` that looks at the last carry and at all outputs."""
    graphdef, _ = nnx.split(cell)
    weights = jax.random.normal(jax.random.key(3), (t, b, h), getattr(cell, "param_dtype", jnp.float32))

    def loss(params, carry, x):
        carry, y = run(nnx.merge(graphdef, params), carry, x)
        return sum((i + 1.0) * jnp.sum(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))) + jnp.sum(y * weights)

    return loss


def assert_same(a, b, tolerance=2e-5):
    for got, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


ALL_OF_ONE_AND_ONE_OF_ALL = [("gru", option) for option in OPTIONS] + [
    (name, option) for name in CELLS if name != "gru" for option in ("nothing", "all")
]


@pytest.mark.parametrize("name, options", ALL_OF_ONE_AND_ONE_OF_ALL)
def test_it_equals_a_loop_over_the_cell_in_values_and_gradients(name, options):
    cell, x, options = make_cell(name), make_inputs(), OPTIONS[options]
    args = nnx.state(cell), make_carry(cell), x
    results = [
        jax.jit(jax.value_and_grad(loss_of(partial(run, **options), cell), argnums=(0, 1, 2)))(*args)
        for run in (unroll, partial(unroll, backward="autodiff"), loop)
    ]
    assert_same(results[0], results[2])
    assert_same(results[1], results[2])


@pytest.mark.parametrize("remat", [1, 4, 6, 100, "sqrt"])
@pytest.mark.parametrize("reverse", [False, True])
def test_remat_changes_nothing(remat, reverse):
    cell, x = make_cell("gru"), make_inputs()
    options = {"resets": RESETS, "lengths": LENGTHS, "reverse": reverse, "truncation": SegmentTruncation(4)}
    args = nnx.state(cell), make_carry(cell), x
    results = [
        jax.jit(jax.value_and_grad(loss_of(partial(unroll, remat=r, **options), cell), argnums=(0, 1, 2)))(*args)
        for r in (remat, None)
    ]
    assert_same(*results, tolerance=1e-6)


@pytest.mark.parametrize("name", ["elman", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "lstm"))])
def test_gradients_are_those_of_finite_differences_twice(name):
    with jax.enable_x64():
        cell = make_cell(name, 2, 2, param_dtype=jnp.float64)
        graphdef, params = nnx.split(cell)
        leaves, tree = jax.tree.flatten(params)
        run = partial(unroll, resets=jnp.zeros((3, 2), bool).at[1, 1].set(True), lengths=jnp.array([3, 2]))

        def loss(leaves, carry, x):
            leaves, carry, x = jax.tree.map(jnp.asarray, (leaves, carry, x))
            y = run(nnx.merge(graphdef, jax.tree.unflatten(tree, leaves)), carry, x)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(y))

        args = leaves, make_carry(cell, (2,)), make_inputs(3, 2, 2, jnp.float64)
        check_grads(loss, args, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # benchmarks.fuzz draws shapes too
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    st.sampled_from(FUSED), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans()
)
def test_any_shape_will_do(name, t, b, d, h, reverse):
    cell, x = make_cell(name, d, h), make_inputs(t, b, d)
    args = nnx.state(cell), make_carry(cell, (b,)), x
    fused, plain = (
        jax.value_and_grad(loss_of(partial(unroll, reverse=reverse, backward=way), cell, t, b, h), argnums=(0, 1, 2))
        for way in ("fused", "autodiff")
    )
    assert_same(jax.jit(fused)(*args), jax.jit(plain)(*args))


@pytest.mark.parametrize("name", ["gru", "lstm", "gru before"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_nothing_whatever_it_holds(name, reverse):
    cell, x, lengths = make_cell(name), make_inputs(), jnp.array([4, 1, 3])
    carry = make_carry(cell)

    def results(t, filling):
        padded = (
            jnp.full((t, B, D), filling)
            .at[:4]
            .set(jnp.where((jnp.arange(4)[:, None] < lengths)[..., None], x[:4], filling))
        )
        run = partial(unroll, lengths=lengths, reverse=reverse)

        def loss(params, carry, x):
            carry, y = run(nnx.merge(nnx.graphdef(cell), params), carry, x)
            return jnp.sum(y**2) + sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(carry)), (carry, y[:4], y[4:])

        (value, (last, y, beyond)), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            nnx.state(cell), carry, padded
        )
        assert not beyond.any()
        assert not grads[2][4:].any()
        return value, last, y, grads[0], grads[1], grads[2][:4]

    short = results(4, 0.0)
    assert_same(results(9, jnp.nan), short, tolerance=1e-6)


@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_token_ids_are_one_hot_vectors(name):
    cell, ids = make_cell(name), jax.random.randint(jax.random.key(0), (T, B), 0, D)
    args = nnx.state(cell), make_carry(cell)
    loss = loss_of(unroll, cell)
    of_ids, of_vectors = (
        jax.value_and_grad(lambda p, c, x=x: loss(p, c, x), argnums=(0, 1)) for x in (ids, jax.nn.one_hot(ids, D))
    )
    assert_same(of_ids(*args), of_vectors(*args))


def test_bfloat16_is_for_the_products_in_both_directions():
    cell = make_cell("lstm", dtype=jnp.bfloat16)
    args = nnx.state(cell), make_carry(cell), make_inputs()
    exact = make_cell("lstm")
    rounded, full = (jax.grad(loss_of(unroll, c))(*args) for c in (cell, exact))
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(full), strict=True):
        assert a.dtype == jnp.float32
        assert 0 < float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.03


def test_all_carries():
    cell, x = make_cell("lstm"), make_inputs()
    carry = make_carry(cell)
    for options in ({}, {"remat": 4}, {"backward": "autodiff"}, {"lengths": LENGTHS}):
        last, y = unroll(cell, carry, x, **options)
        carries, _ = unroll(cell, carry, x, return_carries=True, **options)
        assert_same(jax.tree.map(lambda c: c[-1], carries), last, tolerance=0)
        if "lengths" not in options:
            assert_same(carries.h, y, tolerance=0)
    first, _ = unroll(cell, carry, x[:2])
    assert_same(jax.tree.map(lambda c: c[1], unroll(cell, carry, x, return_carries=True)[0]), first, tolerance=1e-6)


def test_two_carried_windows_equal_one_long_window():
    cell, x = make_cell("lstm"), make_inputs()
    h0 = make_carry(cell)
    h, whole = unroll(cell, h0, x)
    h1, first = unroll(cell, h0, x[:2])
    h2, second = unroll(cell, h1, x[2:])
    assert_same((h2, jnp.concatenate([first, second])), (h, whole), tolerance=1e-6)


def test_an_output_depends_on_the_past_only():
    cell = make_cell("gru")
    gradient = jax.grad(lambda x: jnp.sum(unroll(cell, make_carry(cell), x)[1][3]))(make_inputs())
    assert (np.abs(gradient[:4]).max(axis=(1, 2)) > 0).all()
    assert not gradient[4:].any()


def test_no_gradient_crosses_a_seam():
    cell, x = make_cell("gru"), make_inputs()
    truncation = SegmentTruncation(2)
    gradient = jax.grad(lambda x: jnp.sum(unroll(cell, make_carry(cell), x, truncation=truncation)[1][3]))(x)
    assert not gradient[:2].any()
    assert (np.abs(gradient[2:4]).max(axis=(1, 2)) > 0).all()
    assert_same(*(unroll(cell, make_carry(cell), x, truncation=t) for t in (truncation, None)), tolerance=0)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_vmap_over_models_and_jit_with_the_cell_closed_over(name):
    cell, x = make_cell(name), make_inputs()
    loss = loss_of(unroll, cell)
    carry = make_carry(cell)
    members = [jax.tree.map(lambda p, s=s: p * s, nnx.state(cell)) for s in (1.0, 0.7)]
    together = jax.vmap(jax.value_and_grad(loss), (0, None, None))(
        jax.tree.map(lambda *p: jnp.stack(p), *members), carry, x
    )
    for i, member in enumerate(members):
        assert_same(jax.tree.map(lambda a, i=i: a[i], together), jax.value_and_grad(loss)(member, carry, x))
    assert_same(jax.jit(lambda x: unroll(cell, carry, x))(x), unroll(cell, carry, x), tolerance=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_forward_mode_by_autodiff(name):
    cell, x = make_cell(name), make_inputs()
    run = lambda x, way: unroll(cell, make_carry(cell), x, backward=way)[1]  # noqa: E731
    _, forward = jax.jvp(partial(run, way="autodiff"), (x,), (jnp.ones_like(x),))
    jacobian = jax.jacrev(partial(run, way="fused"))(x)
    assert_same(forward, jacobian.reshape(*forward.shape, -1).sum(-1), tolerance=1e-4)


@pytest.mark.parametrize("options", [{}, {"remat": 4}, {"resets": RESETS}, {"backward": "autodiff"}])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_under_shard_map(name, options):
    """Weights are replicated, sequences divided: their kinds of array differ, also on a mesh of one device."""
    cell, x = make_cell(name), make_inputs()
    graphdef, params = nnx.split(cell)

    def loss(params, x):
        cell = nnx.merge(graphdef, params)
        return jnp.sum(unroll(cell, cell.initialize_carry((x.shape[1], D)), x, **options)[1] ** 2)

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    divided = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    assert_same(jax.jit(divided)(params, x), jax.grad(loss)(params, x))


def test_a_stack_is_unrolled_layer_by_layer():
    layers = [make_cell("gru"), LSTMCell(H, 2, rngs=nnx.Rngs(2))]
    stack, x = Stack(layers, dropout=0.5), make_inputs()
    carry = tuple(make_carry(cell) for cell in layers)
    options = {"lengths": LENGTHS, "resets": RESETS}
    (first, second), y = unroll(stack, carry, x, **options)
    last, between = unroll(layers[0], carry[0], x, **options)
    assert_same((first, (second, y)), (last, unroll(layers[1], carry[1], between, **options)), tolerance=0)
    _, plain = unroll(stack, carry, x)
    steps = carry
    for t in range(T):
        steps, y_t = stack(steps, x[t])
    assert_same(y_t, plain[-1], tolerance=1e-6)

    key = jax.random.key(5)
    _, with_dropout = unroll(stack, carry, x, key=key)
    between = dropped(unroll(layers[0], carry[0], x)[1], 0.5, jax.random.fold_in(key, 1))
    assert_same(with_dropout, unroll(layers[1], carry[1], between)[1], tolerance=0)


f32, i32 = jnp.float32, jnp.int32
BAD = [
    (
        {"inputs": jnp.zeros((T, B, D + 1))},
        ValueError,
        r"inputs: expected float32 \[T, B, 4\] .* got float32 \[6, 3, 5\]",
    ),
    (
        {"inputs": jnp.zeros((T, B, D), jnp.bfloat16)},
        TypeError,
        r"inputs: expected float32 .* got bfloat16 \[6, 3, 4\]",
    ),
    (
        {"inputs": jnp.zeros((0, B, D))},
        ValueError,
        r"inputs: expected at least one time step.* got float32 \[0, 3, 4\]",
    ),
    ({"inputs": jnp.full((T, B), D)}, ValueError, r"inputs: expected ids from 0 to 3; got 4 to 4"),
    ({"inputs": jnp.full((T, B), -1)}, ValueError, r"inputs: expected ids from 0 to 3; got -1 to -1"),
    (
        {"carry": jnp.zeros((B, H))},
        ValueError,
        r"carry: expected LSTMState\(c=float32 \[3, 5\], h=.* got float32 \[3, 5\]",
    ),
    ({"lengths": jnp.array([1, 2])}, ValueError, r"lengths: expected integers \[3\]; got int32 \[2\]"),
    ({"lengths": jnp.array([1, 2, 7])}, ValueError, r"lengths: expected 0 to 6, the time steps; got \[1, 2, 7\]"),
    ({"lengths": jnp.array([1, -2, 6])}, ValueError, r"lengths: expected 0 to 6"),
    ({"resets": jnp.zeros((B, T), bool)}, ValueError, r"resets: expected bool \[6, 3\]; got bool \[3, 6\]"),
    ({"remat": 0}, ValueError, r'remat: expected None, a number of steps ≥ 1, or "sqrt"; got 0'),
    ({"remat": True}, ValueError, r"remat: expected .* got True"),
    ({"backward": "forward"}, ValueError, r'backward: expected "fused" or "autodiff"; got \'forward\''),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[f"{next(iter(b[0]))}{i}" for i, b in enumerate(BAD)])
def test_arguments_that_do_not_fit_are_named(change, error, message):
    # Without the tests' run-time shape checks, as a user calls it.
    plain = getattr(unroll, "__wrapped__", unroll)
    cell = make_cell("lstm")
    arguments = {"cell": cell, "carry": make_carry(cell), "inputs": make_inputs()} | change
    with pytest.raises(error, match=message):
        plain(**arguments)


def test_a_stacks_carry_and_an_empty_segment_are_named_too():
    stack = Stack([make_cell("gru"), make_cell("gru", H)])
    with pytest.raises(ValueError, match=r"carry: expected a tuple of 2 carries, one a layer; got float32 \[3, 5\]"):
        unroll(stack, jnp.zeros((B, H)), make_inputs())
    with pytest.raises(ValueError, match="steps is 0; a segment has at least 1"):
        SegmentTruncation(0)
