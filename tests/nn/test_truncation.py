from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.data.corpus import recall
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.nn.cells import LSTMCell, LSTMState
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation
from tests.nn.test_recurrence import (
    LENGTHS,
    RESETS,
    B,
    D,
    H,
    T,
    assert_same,
    loss_of,
    make_carry,
    make_cell,
    make_inputs,
)


def gradient(truncation, cell, carry, x, **options):
    """Of a loss that looks at every output and at the last carry, with respect to parameters, carry and inputs."""
    loss = loss_of(partial(unroll, truncation=truncation, **options), cell)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(nnx.state(cell), carry, x)


def window_by_brute_force(steps, cell, carry, x, resets=None):
    """Each loss for itself, differentiated through its own `steps` steps and no further: the chapter's formula."""
    graphdef, params = nnx.split(cell)
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def step(cell, carry, x, t):
        if resets is not None:
            initial = cell.initialize_carry((B, D))
            carry = jax.tree.map(lambda i, c: jnp.where(resets[t][:, None], i, c), initial, carry)
        return cell(carry, x)

    befores = [carry]
    for t in range(T):
        befores.append(step(cell, befores[-1], x[t], t)[0])

    def loss_at(t, params, first, x):
        cell = nnx.merge(graphdef, params)
        start = max(t - steps + 1, 0)
        state = first if t - steps + 1 < 0 else jax.lax.stop_gradient(befores[start])
        for s in range(start, t + 1):
            state, y = step(cell, state, x[s], s)
        of_carry = sum((i + 1.0) * jnp.sum(leaf) for i, leaf in enumerate(jax.tree.leaves(state)))
        return jnp.sum(y * weights[t]) + (of_carry if t == T - 1 else 0.0)

    whole = jax.jit(lambda *args: [jax.grad(partial(loss_at, t), argnums=(0, 1, 2))(*args) for t in range(T)])
    return jax.tree.map(lambda *terms: sum(terms), *whole(params, carry, x))


@pytest.mark.parametrize(
    "name, steps",
    [("elman", 1), ("elman", 3), pytest.param("gru", 3, marks=pytest.mark.slow), ("lstm", 3), ("gru before", 2)],
)
def test_a_window_is_the_sum_of_separately_truncated_losses(name, steps):
    with jax.enable_x64():
        cell, x = make_cell(name, param_dtype=jnp.float64), make_inputs(dtype=jnp.float64)
        carry = make_carry(cell)
        expected = window_by_brute_force(steps, cell, carry, x)
        assert_same(gradient(WindowTruncation(steps), cell, carry, x), expected, tolerance=1e-9)


@pytest.mark.slow
def test_a_window_with_resets_and_one_over_a_stack():
    cell, x = make_cell("lstm"), make_inputs()
    carry = make_carry(cell)
    expected = window_by_brute_force(2, cell, carry, x, RESETS)
    assert_same(gradient(WindowTruncation(2), cell, carry, x, resets=RESETS), expected)
    stack = Stack([make_cell("gru"), LSTMCell(H, H, rngs=nnx.Rngs(2))])
    carry = make_carry(stack)
    expected = window_by_brute_force(2, stack, carry, x)
    assert_same(gradient(WindowTruncation(2), stack, carry, x), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_window_counts_no_padding(reverse):
    cell, x = make_cell("gru"), make_inputs()
    carry, lengths = make_carry(cell), LENGTHS
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def loss(params, row, x, lengths=None):
        cell_ = nnx.merge(nnx.graphdef(cell), params)
        last, y = unroll(cell_, carry[row], x, truncation=WindowTruncation(2), lengths=lengths, reverse=reverse)
        return jnp.sum(last) + jnp.sum(y * weights[: len(x), row])

    params = nnx.state(cell)
    padded = jax.grad(loss)(params, slice(None), x.at[4:, 2].set(jnp.nan), lengths)
    alone = [jax.grad(loss)(params, slice(b, b + 1), x[:n, b : b + 1]) for b, n in enumerate(lengths) if n]
    assert_same(padded, jax.tree.map(lambda *g: sum(g), *alone))


def test_a_window_with_dropout_has_the_masks_of_the_whole_gradient():
    stack, x, key = Stack([make_cell("elman"), make_cell("elman", H, H)], dropout=0.5), make_inputs(), jax.random.key(5)
    carry = make_carry(stack)
    long, whole = (gradient(t, stack, carry, x, key=key) for t in (WindowTruncation(T - 1), None))
    # Losses up to step T − 2 are differentiated in full: cut away the last one's and both agree.
    cut = lambda t: jax.grad(lambda x: jnp.sum(unroll(stack, carry, x, truncation=t, key=key)[1][: T - 1]))(x)  # noqa: E731
    assert_same(cut(WindowTruncation(T - 1)), cut(None))
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(long), jax.tree.leaves(whole), strict=True))


def test_a_window_longer_than_the_sequence_is_the_whole_gradient_and_one_as_long_but_for_the_carry():
    cell, x = make_cell("gru"), make_inputs()
    carry = make_carry(cell)
    whole = gradient(None, cell, carry, x)
    assert_same(gradient(WindowTruncation(T + 1), cell, carry, x), whole, tolerance=0)
    as_long = gradient(WindowTruncation(T), cell, carry, x)
    assert_same((as_long[0], as_long[2]), (whole[0], whole[2]))
    assert_same(as_long, window_by_brute_force(T, cell, carry, x))  # the loss of the last step ends at the first


def test_segments_equal_separately_differentiated_ones():
    cell, x = make_cell("lstm"), make_inputs()
    carry = make_carry(cell)
    weights = jax.random.normal(jax.random.key(3), (T, B, H))

    def loss(params):
        state, total = carry, 0.0
        for start in range(0, T, 4):
            state, y = unroll(nnx.merge(nnx.graphdef(cell), params), jax.lax.stop_gradient(state), x[start : start + 4])
            total += jnp.sum(y * weights[start : start + 4])
        return total + sum((i + 1.0) * jnp.sum(leaf) for i, leaf in enumerate(jax.tree.leaves(state)))

    assert_same(gradient(SegmentTruncation(4), cell, carry, x)[0], jax.grad(loss)(nnx.state(cell)))


@pytest.mark.parametrize("steps, learns", [(9, False), (10, True)])
def test_the_recall_task_takes_a_window_of_its_lag(steps, learns):
    """The loss on the last capital of a line reaches the input that was the first one, 10 steps back, or does not."""
    vocabulary = Vocabulary.of(recall(50), kind="char", normalize="none")
    ids = jnp.asarray(vocabulary.encode(recall(1)[:11]))[:, None]
    model = RNNLM(len(vocabulary), H, rngs=nnx.Rngs(0), cell="gru")

    def loss(model):
        _, h = model.hidden(model.initialize_carry(1), ids[:-1], truncation=WindowTruncation(steps))
        return model.nll(h[-1], ids[-1]).sum()

    of_capital = nnx.grad(loss)(model).cell.w_xh[...][ids[0, 0]]
    assert (np.abs(of_capital).max() > 1e-6) == learns and (np.abs(of_capital).max() == 0) != learns


ALL = [SegmentTruncation(2), WindowTruncation(2), RandomizedTruncation(0.5, jax.random.key(0))]


@pytest.mark.parametrize("truncation", ALL, ids=lambda t: type(t).__name__)
def test_values_stay_as_they_are(truncation):
    cell, x = make_cell("gru"), make_inputs()
    options = {"lengths": LENGTHS, "resets": RESETS}
    got, expected = (unroll(cell, make_carry(cell), x, truncation=t, **options) for t in (truncation, None))
    assert_same(got, expected, tolerance=0)


@pytest.mark.parametrize("truncation", ALL[::2], ids=lambda t: type(t).__name__)
def test_what_has_overflowed_stays_infinite(truncation):
    cell, c = make_cell("lstm"), jnp.full((B, H), jnp.inf)
    start = LSTMState(c, jnp.zeros_like(c))
    last, _ = unroll(cell, start, make_inputs(), truncation=truncation, backward="autodiff")
    np.testing.assert_array_equal(last.c, c)


class Biased(RandomizedTruncation):
    """Truncates as often, without making up for it."""

    def passed(self, num_steps, *, reverse=False):
        return jnp.sign(super().passed(num_steps, reverse=reverse))


def draws(keep_probability, count, kind=RandomizedTruncation):
    """The mean of `count` draws' gradients, its standard error, and the whole gradient."""
    cell, x = make_cell("elman"), make_inputs()
    carry = make_carry(cell)
    loss = lambda truncation: lambda params: loss_of(partial(unroll, truncation=truncation), cell)(params, carry, x)  # noqa: E731

    def one(key):
        grads = jax.grad(loss(kind(keep_probability, key)))(nnx.state(cell))
        return jax.flatten_util.ravel_pytree(grads)[0]

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))
    whole = jax.flatten_util.ravel_pytree(jax.grad(loss(None))(nnx.state(cell)))[0]
    return samples.mean(0), samples.std(0) / np.sqrt(count), whole


@pytest.mark.parametrize("keep_probability", [0.5, jnp.array([1.0, 0.9, 0.5, 0.3, 0.8, 0.6])])
def test_randomized_truncation_is_unbiased(keep_probability):
    mean, error, whole = draws(keep_probability, 4000)
    close = np.abs(mean - whole) <= 5.5 * error + 1e-5 * np.abs(whole) + 1e-6
    assert close.all()
    assert (error > 1e-3 * np.abs(whole)).any()  # it does truncate


def test_the_test_sees_a_bias():
    mean, error, whole = draws(0.5, 4000, Biased)
    assert (np.abs(mean - whole) > 5.5 * error + 1e-6).any()


def test_never_truncated_is_the_whole_gradient():
    cell, x = make_cell("lstm"), make_inputs()
    carry = make_carry(cell)
    never = RandomizedTruncation(1.0, jax.random.key(0))
    assert_same(gradient(never, cell, carry, x), gradient(None, cell, carry, x), tolerance=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SegmentTruncation(0), "steps is 0; a segment has at least 1"),
        (lambda: WindowTruncation(0), "steps is 0; a window has at least 1"),
        (lambda: RandomizedTruncation(0.0, jax.random.key(0)), "must be above 0 and at most 1"),
        (lambda: RandomizedTruncation(1.5, jax.random.key(0)), "must be above 0 and at most 1"),
        (lambda: RandomizedTruncation(float("nan"), jax.random.key(0)), "must be above 0 and at most 1"),
        (lambda: gradient(WindowTruncation(2), *simple(), remat=2), "leave out remat and backward"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def simple():
    cell = make_cell("elman")
    return cell, make_carry(cell), make_inputs()


@pytest.mark.parametrize("reverse", [False, True])
def test_no_xi_scales_the_gradient_of_the_initial_state(reverse):
    """No step is before the first: of a window of one step the gradient is the full one, whatever is drawn."""
    cell, x = make_cell("elman"), make_inputs()[:1]
    loss = lambda carry, truncation: unroll(cell, carry, x, truncation=truncation, reverse=reverse)[1].sum()  # noqa: E731
    full = jax.grad(loss)(make_carry(cell), None)
    for seed in range(4):
        truncation = RandomizedTruncation(0.5, jax.random.key(seed))
        np.testing.assert_allclose(jax.grad(loss)(make_carry(cell), truncation), full, rtol=1e-6)


@pytest.mark.parametrize("name", ["elman", "lstm"])
@pytest.mark.parametrize(
    "truncation", [SegmentTruncation(3), RandomizedTruncation(1e-6, jax.random.key(0))], ids=lambda t: type(t).__name__
)
def test_the_first_step_of_a_padded_sequence_that_is_read_backwards_is_its_last(name, truncation):
    """Its gradient is that of the sequence alone: all of it reaches the initial state where no seam is inside."""
    cell, x, steps = make_cell(name), make_inputs(), 3 if isinstance(truncation, SegmentTruncation) else 1
    options = {"truncation": truncation, "reverse": True}

    def gradient(x, **more):
        return jax.grad(lambda carry: unroll(cell, carry, x, **more, **options)[1].sum())(make_carry(cell))

    assert_same(gradient(x, lengths=[steps] * B), gradient(x[:steps]), tolerance=1e-5)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(gradient(x[:steps])))
