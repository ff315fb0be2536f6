"""The machine code against the compiled scan, which test_recurrence.py holds to loops and finite differences."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, LSTMState
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation
from tests.nn.test_output import layer_of
from tests.nn.test_recurrence import assert_same, loss_of, make_carry

cpu = pytest.importorskip("rnn_lm.nn.cpu")  # the folder may be left out
compiler, library = pytest.importorskip("rnn_lm.nn.cpu.compiler"), pytest.importorskip("rnn_lm.nn.cpu.library")
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


def assert_close(a, b, tolerance=2e-5):
    """To so much of the largest number, as sums are in another order."""
    for got, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        largest = np.abs(expected).max(initial=1.0)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * largest)


def both_ways(f, *args, call="rnn_lm_forward"):
    """`f(*args)` by the machine code and by JAX, each compiled anew."""
    assert call in jax.jit(lambda *args: f(*args)).lower(*args).as_text()
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
    assert_close(*both_ways(jax.value_and_grad(loss, argnums=(0, 1, 2)), nnx.state(cell), carry, x))


LENGTHS = jnp.array([6, 0, 3, 1, 6, 2, 5, 4, 1])
RESETS = jax.random.bernoulli(jax.random.key(4), 0.3, (6, 9))
MASKS = {
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "segments": {"truncation": SegmentTruncation(4)},
    "random truncation": {"truncation": RandomizedTruncation(0.5, jax.random.key(5))},
}
MASKS["all"] = {name: option for options in MASKS.values() for name, option in options.items()}


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "name, masks", [*((name, "all") for name in CELLS), *(("lstm", masks) for masks in MASKS), ("gru", "lengths")]
)
def test_masks_equal_the_scans_and_padding_is_never_looked_at(name, masks, reverse):
    cell, carry, x = make(name, b=9)
    options = dict(MASKS[masks])
    if "lengths" in options and reverse:
        options.pop("truncation", None)  # its factor differs between the sequences: the scan does that
    if "lengths" in options:
        x = jnp.where((jnp.arange(6)[:, None] < LENGTHS)[..., None], x, jnp.nan)
    loss = loss_of(partial(unroll, reverse=reverse, **options), cell, 6, 9)
    fast, slow = both_ways(jax.value_and_grad(loss, argnums=(0, 1, 2)), nnx.state(cell), carry, x)
    assert_close(fast, slow)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fast))


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True])
def test_all_states_of_sequences_that_end_equal_the_scans(reverse):
    cell, carry, x = make("lstm", b=9)

    def loss(x):
        carries, y = unroll(cell, carry, x, lengths=LENGTHS, reverse=reverse, return_carries=True)
        return sum(jnp.sum(jnp.sin(leaf) * (i + 1)) for i, leaf in enumerate(jax.tree.leaves((carries, y))))

    assert_close(*both_ways(jax.value_and_grad(loss), x))


class Learned(LSTMCell):
    """A learned initial state."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.h_start = nnx.Param(jnp.linspace(-1, 1, sizes[1]))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        c, h = super().initialize_carry(input_shape, rngs, carry_init)
        return LSTMState(c + self.h_start[...] ** 2, h + self.h_start[...])


class Centred(GRUCell):
    """Projects inputs in a way of its own."""

    def project(self, x):
        return super().project(x - x.mean(-1, keepdims=True))


class Normed(ElmanCell):
    """Normalises the recurrent product."""

    def _normalized(self, z, scale):
        return z / (1.0 + jnp.square(z).mean(-1, keepdims=True))


@needs_compiler
def test_a_cell_that_normalises_in_its_own_way_is_left_to_the_scan():
    cell = Normed(4, 5, rngs=nnx.Rngs(0))
    _, carry, x = make("elman")
    run = jax.jit(lambda x: unroll(cell, carry, x)[1])
    assert "rnn_lm_forward" not in run.lower(x).as_text()
    h, outputs = carry, []
    for x_t in x:
        h, y = cell(h, x_t)
        outputs.append(y)
    assert_close(run(x), jnp.stack(outputs))


@needs_compiler
@pytest.mark.parametrize("cls", [Learned, Centred])
def test_cells_with_other_starts_or_projections_run_as_machine_code_too(cls):
    cell = cls(4, 5, rngs=nnx.Rngs(0))
    _, _, x = make("gru", b=9)
    loss = loss_of(partial(unroll, lengths=LENGTHS, resets=RESETS), cell, 6, 9)
    carry = cell.initialize_carry((9, 4))
    assert_close(*both_ways(jax.value_and_grad(loss, argnums=(0, 1, 2)), nnx.state(cell), carry, x))


@needs_compiler
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_ids_select_rows_as_jax_selects_them(name):
    cell, carry, _ = make(name, b=9)
    ids = jax.random.randint(jax.random.key(6), (6, 9), -4, 4)  # of 4: negative ones count from the end
    for options in ({}, {"lengths": LENGTHS}):
        gradient = jax.value_and_grad(loss_of(partial(unroll, **options), cell, 6, 9), argnums=(0, 1))
        assert_close(*both_ways(gradient, nnx.state(cell), carry, ids))
    assert_close(*both_ways(lambda ids: unroll(cell, carry, ids)[1], 3 * ids))  # some out of range


@pytest.mark.slow
@needs_compiler
def test_second_derivatives_and_vmap_with_masks_equal_the_scans():
    cell, carry, x = make("gru", b=9)
    x = jnp.where((jnp.arange(6)[:, None] < LENGTHS)[..., None], x, jnp.nan)
    run = partial(unroll, lengths=LENGTHS, resets=RESETS)
    gradient = jax.grad(loss_of(run, cell, 6, 9), argnums=(0, 2))
    bend = lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradient(*args)))  # noqa: E731
    assert_close(*both_ways(jax.grad(bend, argnums=(0, 2)), nnx.state(cell), carry, x), tolerance=1e-4)
    many = jax.vmap(gradient, (None, None, 0))(nnx.state(cell), carry, jnp.stack([x, 2 * x]))
    one_by_one = [gradient(nnx.state(cell), carry, scale * x) for scale in (1, 2)]
    assert_close(many, jax.tree.map(lambda *g: jnp.stack(g), *one_by_one))


CUTS = """
import hashlib, jax, jax.numpy as jnp
from flax import nnx
from rnn_lm.nn import native
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.output import OutputLayer
from rnn_lm.nn.recurrence import unroll
from rnn_lm.inference.sampling import draw

assert native.is_available()
digest = hashlib.sha256()
for cls, batch, hidden in [(GRUCell, 30, 40), (LSTMCell, 3, 260)]:
    graphdef, params = nnx.split(cls(7, hidden, rngs=nnx.Rngs(0)))
    x, lengths = jax.random.normal(jax.random.key(1), (5, batch, 7)), jnp.arange(batch) % 6
    carry = nnx.merge(graphdef, params).initialize_carry((batch, 7))
    loss = lambda p, x: jnp.sum(unroll(nnx.merge(graphdef, p), carry, x, lengths=lengths)[1] ** 2)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)):
        digest.update(jax.device_get(leaf).tobytes())
h, labels = jax.random.normal(jax.random.key(2), (1600, 40)), jnp.arange(1600)
loss = lambda layer, h: layer.mean_nll(h, labels)
layer = OutputLayer(jax.random.normal(jax.random.key(3), (1600, 40)), jnp.zeros(1600), tied=True)  # three blocks
for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(layer, h)):
    digest.update(jax.device_get(leaf).tobytes())
for cell, batch, hidden in [("gru", 30, 40), ("lstm", 3, 260)]:
    model = RNNLM(65, hidden, cell=cell, num_layers=2, rngs=nnx.Rngs(0))
    start = model.initialize_carry(batch), jnp.zeros((batch, 65)), jax.random.uniform(jax.random.key(4), (20, batch))
    run = jax.jit(lambda *given: draw(model, *given, top_k=9, top_p=1.0, wanted=True))
    for leaf in jax.tree.leaves(run(*start, jnp.float32(1))):
        digest.update(jax.device_get(leaf).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@needs_compiler
def test_the_bits_do_not_depend_on_how_many_threads_there_are():
    def bits(threads):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"  # the sum of squares is XLA's
        environment = os.environ | {"NPROC": str(threads), "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        return subprocess.run([sys.executable, "-c", CUTS], env=environment, capture_output=True, text=True, check=True)

    assert len({bits(threads).stdout for threads in (1, 5)}) == 1


@needs_compiler
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("t, b, h, v", [(1, 1, 1, 1), (7, 300, 70, 65), (5, 200, 33, 1500)])
def test_the_output_layer_equals_jaxs_in_values_and_gradients(t, b, h, v, tied):
    layer, states, labels, mask = layer_of(t, b, h, v, tied)
    same = partial(both_ways, call="rnn_lm_output")
    labels = labels.at[0, 0].set(-1)  # counts from the end
    mean = lambda layer, states: layer.mean_nll(states, labels, mask)  # noqa: E731
    for asked in (0, 1, (0, 1)):
        assert_close(*same(jax.value_and_grad(mean, argnums=asked), layer, states))
    assert_close(*same(lambda layer, states: layer.nll(states, labels), layer, states))


@needs_compiler
def test_what_is_not_finite_in_the_output_layer_goes_jaxs_way():
    layer, states, labels, _ = layer_of(t=6, b=1)
    layer = replace(layer, w=jnp.abs(layer.w) + 0.1)
    labels = labels.at[4].set(100).at[5].set(-100)  # no such tokens
    states = jnp.stack([jnp.full((1, 4), x) for x in (1e4, jnp.inf, -jnp.inf, jnp.nan, 1.0, 1.0)])
    nats = both_ways(lambda states: layer.nll(states, labels), states, call="rnn_lm_output")
    assert_same(*nats)
    assert np.isnan(nats[0][1:]).all()
    for some in (slice(1), slice(4, 6)):
        mean = lambda states, labels=labels[some]: layer.mean_nll(states, labels)  # noqa: E731
        assert_same(*both_ways(jax.value_and_grad(mean), states[some], call="rnn_lm_output"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flags, features", [("-DRNN_LM_LANES=16 -DRNN_LM_ROWS=12", ""), ("", "V3")])
def test_the_tiles_of_another_cpu_give_the_same(tmp_path, flags, features):
    compiler = f"{os.environ.get('CXX') or 'c++'} {flags}"
    (tmp_path / "another_cpu.py").write_text(
        f"from rnn_lm.nn.cpu import compiler\ncompiler._cpu_features = lambda: compiler.{features}" if features else ""
    )
    environment = os.environ | {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:."}
    tests = "equals_the_scan_in_values or masks_equal and all-False or output_layer_equals"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", "another_cpu", "-k", tests]
    result = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " skipped" not in result.stdout, result.stdout
    assert list(tmp_path.glob("rnn_lm/*.so"))


@needs_compiler
@pytest.mark.parametrize(
    "name", ["elman", "relu", "identity", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "lstm"))]
)
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
@pytest.mark.parametrize("wrapped", [lambda layer: layer, jax.checkpoint], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("name", ["elman", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "lstm"))])
def test_equal_layers_of_which_only_the_first_has_inputs_that_need_no_gradient(name, wrapped):
    """They share one traced function."""
    cell, carry, x = make(name, d=5)
    graphdef, params = nnx.split(cell)

    def loss(layers, x):
        for params in layers:
            x = wrapped(lambda params, x: unroll(nnx.merge(graphdef, params), carry, x)[1])(params, x)
        return jnp.sum(x**2)

    for argnums in (0, 1, (0, 1)):
        assert_same(*both_ways(jax.grad(loss, argnums), [params, params, params], x), tolerance=1e-4)


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
def test_it_is_compiled_once_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cpu.build()
    written = path.stat().st_mtime_ns
    assert list((tmp_path / "rnn_lm").iterdir()) == [path]
    assert cpu.build() == path and path.stat().st_mtime_ns == written
    assert capsys.readouterr().err == library.COMPILING + "\n"


@pytest.mark.parametrize(
    "machine, features, kind",
    [
        ("x86_64", compiler.LEVELS["x86-64-v4"] | {"sse"}, "x86-64-v4"),
        ("x86_64", compiler.V3 | {"avx512f"}, "x86-64-v3"),
        ("x86_64", compiler.V3 - {"fma"}, None),
        ("aarch64", set(), "aarch64"),
    ],
)
def test_the_kind_of_a_cpu(monkeypatch, machine, features, kind):
    monkeypatch.setattr(compiler.platform, "machine", lambda: machine)
    monkeypatch.setattr(compiler, "_cpu_features", lambda: features)
    assert compiler.kind_of_cpu() == kind
    assert (library.why_not() == "this CPU is not known to have AVX2") == (kind is None)


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
