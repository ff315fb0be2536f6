"""The machine code against the compiled scan, which test_recurrence.py holds to loops and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.recurrence import unroll
from tests.nn.test_recurrence import assert_same, loss_of, make_carry

cpu = pytest.importorskip("rnn_lm.nn.cpu")  # the folder may be left out
CELLS = {
    "elman": ElmanCell,
    "relu": partial(ElmanCell, activation="relu"),
    "identity": partial(ElmanCell, activation="identity"),
    "gru": GRUCell,
    "lstm": LSTMCell,
}
needs_compiler = pytest.mark.skipif(not cpu.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")


def make(name, t=6, b=3, d=4, h=5):
    cell = CELLS[name](d, h, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(0.5))
    if name == "gru":
        cell.b_hn[...] = jnp.linspace(-1, 1, h)
    return cell, make_carry(cell, (b,)), jax.random.normal(jax.random.key(1), (t, b, d))


def both_ways(f, *args):
    """`f(*args)` by the machine code and by the scan, each compiled anew."""
    assert "rnn_lm_forward" in jax.jit(lambda *args: f(*args)).lower(*args).as_text()
    fast = jax.jit(lambda *args: f(*args))(*args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNN_LM_NATIVE", "0")
        return fast, jax.jit(lambda *args: f(*args))(*args)


@needs_compiler
@pytest.mark.parametrize("t, b, h, reverse", [(2, 1, 1, False), (5, 3, 5, True), (3, 13, 16, True), (4, 40, 70, False)])
@pytest.mark.parametrize("name", CELLS)
def test_it_equals_the_scan_in_values_and_gradients(name, t, b, h, reverse):
    cell, carry, x = make(name, t, b, 4, h)
    loss = loss_of(partial(unroll, reverse=reverse), cell, t, b, h)
    assert_same(*both_ways(jax.value_and_grad(loss, argnums=(0, 1, 2)), nnx.state(cell), carry, x))


@needs_compiler
@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_gradients_equal_the_scans(name):
    cell, carry, x = make(name)
    gradient = jax.grad(loss_of(unroll, cell), argnums=(0, 1, 2))
    bend = lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradient(*args)))  # noqa: E731
    assert_same(*both_ways(jax.grad(bend, argnums=(0, 1, 2)), nnx.state(cell), carry, x), tolerance=1e-4)


@needs_compiler
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_forward_mode_over_the_gradient_equals_the_scans(name):
    cell, carry, x = make(name)
    gradient = jax.grad(lambda x: loss_of(unroll, cell)(nnx.state(cell), carry, x))
    assert_same(*both_ways(lambda x: jax.jvp(gradient, (x,), (jnp.cos(x),)), x), tolerance=1e-4)


@needs_compiler
@pytest.mark.parametrize("name", CELLS)
def test_what_is_not_finite_goes_the_scans_way(name):
    cell, carry, x = make(name)
    cell.w_xh[...] = jnp.ones_like(cell.w_xh[...])
    x = jnp.zeros_like(x).at[1, 0].set(1e4).at[2, 0].set(-jnp.inf).at[3, 1].set(jnp.inf).at[4, 2].set(jnp.nan)
    fast, slow = both_ways(partial(unroll, cell, carry), x)
    assert_same(fast, slow)
    assert not np.isfinite(fast[1][4:, 2]).any()


@needs_compiler
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_under_remat_and_shard_map(name):
    cell, carry, x = make(name)
    graphdef, params = nnx.split(cell)
    gradient = jax.grad(loss_of(partial(unroll, remat=2), cell), argnums=(0, 2))
    assert_same(*both_ways(gradient, params, carry, x))

    def loss(params, carry, x):
        return jnp.sum(unroll(nnx.merge(graphdef, params), carry, x)[1] ** 2)

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    specs = P(), P("data"), P(None, "data")
    assert_same(*both_ways(jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=specs, out_specs=P()), params, carry, x))


@needs_compiler
def test_many_at_once_are_as_one_by_one():
    cell, carry, x = make("gru")
    gradient = jax.vmap(jax.grad(loss_of(unroll, cell), argnums=(0, 2)), (None, None, 0))
    many = nnx.state(cell), carry, jnp.stack([x, 2 * x])
    one_by_one = [jax.grad(loss_of(unroll, cell), argnums=(0, 2))(*many[:2], x) for x in many[2]]
    assert_same(gradient(*many), jax.tree.map(lambda *g: jnp.stack(g), *one_by_one))


@needs_compiler
def test_no_sequences_are_no_error():
    cell, carry, x = make("lstm", b=0)
    assert unroll(cell, carry, x)[1].shape == (6, 0, 5)


@needs_compiler
def test_a_cell_whose_parameters_were_cast_runs():
    graphdef, params = nnx.split(make("gru")[0])
    cast = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    assert unroll(cast, jnp.zeros((3, 5)), jnp.zeros((6, 3, 4)))[1].shape == (6, 3, 5)


@needs_compiler
def test_it_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cpu.build()
    written = path.stat().st_mtime_ns
    assert list((tmp_path / "rnn_lm").iterdir()) == [path]
    assert cpu.build() == path and path.stat().st_mtime_ns == written


@pytest.mark.parametrize("name, value", [("CXX", "no-such-compiler"), ("CXX", "false"), ("RNN_LM_NATIVE", "0")])
def test_without_a_compiler_there_is_none_and_nothing_is_left(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert cpu.build() is None
    assert not list(tmp_path.glob("rnn_lm/*"))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpu.build() is None
