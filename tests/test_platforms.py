"""Where programs run: machine code or scan is chosen when they are lowered, and meshes of both kinds of axes work."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rnn_lm.inference.reading
from rnn_lm.config import complete_config
from rnn_lm.data.corpus import load_corpus
from rnn_lm.inference import generate as generation
from rnn_lm.members import Members
from rnn_lm.mesh import ONE_DEVICE
from rnn_lm.nn import native
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.output import OutputLayer
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.truncation import SegmentTruncation, WindowTruncation
from rnn_lm.program import batches_of, program_of
from rnn_lm.training.step import new_state, train_steps
from tests.conftest import small_config
from tests.nn.test_recurrence import assert_same, loss_of

T, B, D, H = 5, 4, 3, 6
CELLS = {
    "elman": ElmanCell,
    "gru": GRUCell,
    "lstm": LSTMCell,
    "before": partial(GRUCell, reset_after=False),
    "norm": partial(LSTMCell, layer_norm=True),
}
ACCELERATORS = ["cuda", pytest.param("tpu", marks=pytest.mark.slow)]  # which both have the same way
needs_compiler = pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")


@pytest.fixture(scope="module")
def small_corpus(text_file):
    return load_corpus(**small_config(text_file).corpus)


def lowered(function, *args, platform, **kwargs):
    return function.trace(*args, **kwargs).lower(lowering_platforms=(platform,)).as_text()


def step_program(corpus, members=1, **changes):
    """What `train_steps`, of one or several members, is called with."""
    config = complete_config({"batch_size": B, "segment_length": 8, "model": {"num_hiddens": H}} | changes)
    program, numbers = program_of(config, len(corpus.vocabulary))
    axis, numbers = Members(members), numbers.arrays()
    state, numbers = axis.stack(members * [(new_state(program, numbers), numbers)])
    return (state, jnp.int32(2), batches_of(program, corpus), numbers), {"program": program, "members": axis}


PROGRAMS = {
    "elman": {"model": {"num_hiddens": H}},
    "gru": {"model": {"num_hiddens": H, "cell": "gru"}},
    "lstm": {"model": {"num_hiddens": H, "cell": "lstm", "num_layers": 2, "dropout": 0.1}},
    "segment": {"truncation": {"kind": "segment", "steps": 4}},
    "window": {"truncation": {"kind": "window", "steps": 4}},
    "randomized": {"truncation": {"kind": "randomized", "keep_probability": 0.5}},
    "tbptt": {"truncation": {"kind": "tbptt", "steps": 8, "update_every": 4}},
    "remat": {"remat": 4},
}


@pytest.mark.parametrize("platform", ACCELERATORS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_training_step_for_an_accelerator_calls_no_foreign_code(small_corpus, name, platform):
    args, static = step_program(small_corpus, **PROGRAMS[name])
    assert "rnn_lm_" not in lowered(train_steps, *args, platform=platform, **static)


@needs_compiler
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "tbptt", "remat"])
def test_the_same_step_for_a_cpu_calls_it(small_corpus, name):
    args, static = step_program(small_corpus, **PROGRAMS[name])
    text = lowered(train_steps, *args, platform="cpu", **static)
    assert "rnn_lm_forward" in text and "rnn_lm_backward" in text


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_nor_do_steps_of_several_members_an_evaluation_and_a_generation(small_corpus, platform):
    args, static = step_program(small_corpus, members=2, **PROGRAMS["gru"])
    assert "rnn_lm_" not in lowered(train_steps, *args, platform=platform, **static)
    model = RNNLM(7, H, rngs=nnx.Rngs(0), cell="gru")
    graphdef, weights = nnx.split(model)
    tokens = jnp.zeros((T, B), jnp.int32)
    read = lowered(
        rnn_lm.inference.reading._read_window, graphdef, Members(1), ONE_DEVICE, weights, model.initialize_carry(B),
        tokens, tokens, jnp.ones((T, B), bool), platform=platform,
    )  # fmt: skip
    assert "while" in read and "rnn_lm_" not in read
    state = nnx.state(model)

    def continued(state, key):
        return generation.generate(nnx.merge(nnx.graphdef(model), state), np.array([1, 2, 3]), 4, key=key)

    with pytest.MonkeyPatch.context() as patch:  # its own compiled function, looked at as it is lowered
        texts = []
        for name in dir(generation):
            function = getattr(generation, name)
            if hasattr(function, "trace") and hasattr(function, "lower"):

                def spied(*args, function=function, **kwargs):
                    texts.append(lowered(function, *args, platform=platform, **kwargs))
                    return function(*args, **kwargs)

                patch.setattr(generation, name, spied)
        continued(state, jax.random.key(0))
    assert texts and not [text for text in texts if "rnn_lm_" in text]


@needs_compiler
def test_the_environment_is_looked_at_whenever_a_program_is_traced(monkeypatch):
    cell, x = GRUCell(D, H, rngs=nnx.Rngs(0)), jnp.ones((T, B, D))

    def calls():
        run = jax.jit(lambda x: unroll(cell, jnp.zeros((B, H)), x))
        return "rnn_lm_forward" in run.lower(x).as_text()

    assert calls()
    fast = unroll(cell, jnp.zeros((B, H)), x)
    monkeypatch.setenv("RNN_LM_NATIVE", "0")
    assert not calls()
    assert_same(unroll(cell, jnp.zeros((B, H)), x), fast)
    monkeypatch.setenv("RNN_LM_NATIVE", "1")
    assert calls()


ON_A_GPU = """
import jax, jax.numpy as jnp
from flax import nnx
import rnn_lm
from rnn_lm.nn.cpu import library
cell = rnn_lm.GRUCell(3, 4, rngs=nnx.Rngs(0))
f = jax.jit(jax.grad(lambda x: rnn_lm.unroll(cell, jnp.zeros((2, 4)), x)[1].sum()))
f.trace(jnp.ones((5, 2, 3))).lower(lowering_platforms=("cuda",))
assert library._loaded is None
assert "rnn_lm/kernels-" not in open("/proc/self/maps").read()
"""


@pytest.mark.skipif(native.cpu is None, reason="the folder cpu was left out")
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks at what the process has loaded")
def test_a_process_that_lowers_for_a_gpu_neither_compiles_nor_loads_the_library(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ON_A_GPU], check=True, env=environment)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(native.cpu is None, reason="the folder cpu was left out")
def test_a_compiler_that_fails_is_no_error(tmp_path):
    code = ON_A_GPU.split("f.trace")[0] + "print(f(jnp.ones((5, 2, 3))).sum())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": "false"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@needs_compiler
@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda", "tpu")])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_an_exported_program_calls_no_foreign_code_on_a_cpu_either(name, platforms):
    """It may be called by a process that has JAX only."""
    cell, x = CELLS[name](D, H, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (T, B, D))
    carry = jax.tree.map(lambda c: c + 0.1, cell.initialize_carry((B, D)))
    labels = jnp.zeros((T, B), jnp.int32)

    @jax.jit
    def run(carry, x):
        run = partial(unroll, cell, lengths=LENGTHS, resets=RESETS)
        gradient = jax.grad(lambda x: OutputLayer(jnp.ones((H, 3)), x[0, 0]).mean_nll(run(carry, x)[1], labels))(x)
        return run(carry, x), gradient

    assert {"rnn_lm_forward", "rnn_lm_backward"} <= set(re.findall(r"rnn_lm_\w+", run.lower(carry, x).as_text()))
    exported = jax.export.export(run, platforms=platforms)(carry, x)
    assert "custom_call" not in exported.mlir_module()
    assert "rnn_lm_forward" in run.lower(carry, x).as_text()  # here it goes on as before
    assert_same(exported.call(carry, x), run(carry, x), tolerance=1e-5)


def test_sizes_may_be_left_open_in_an_exported_program():
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax import export
from flax import nnx
import rnn_lm

T, B = export.symbolic_shape("T, B")
for make, ids, options in [
    (rnn_lm.ElmanCell, True, {}), (rnn_lm.GRUCell, False, {}), (rnn_lm.LSTMCell, False, {"reverse": True})
]:
    cell = make(3, 4, rngs=nnx.Rngs(0))
    shaped = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    kinds = [shaped(jnp.int32, T, B) if ids else shaped(jnp.float32, T, B, 3), shaped(jnp.int32, B), shaped(bool, T, B)]

    def run(x, lengths, resets):
        carry = jnp.zeros((x.shape[1], 4))
        carry = (carry, carry) if make is rnn_lm.LSTMCell else carry
        return rnn_lm.unroll(cell, carry, x, lengths=lengths, resets=resets, **options)

    exported = export.export(jax.jit(run))(*kinds)
    for t, b in [(1, 3), (7, 2)]:
        x = jax.random.normal(jax.random.key(0), (t, b, 3))
        given = x.argmax(-1) if ids else x, jnp.arange(b) % (t + 1), jnp.zeros((t, b), bool).at[t // 2].set(True)
        for got, expected in zip(*(jax.tree.leaves(f(*given)) for f in (exported.call, run)), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # without checks at run time: an open size is no int


LENGTHS, RESETS = jnp.array([5, 0, 3, 1]), jnp.zeros((T, B), bool).at[2, ::2].set(True)
OPTIONS = {
    "nothing": {},
    "autodiff": {"backward": "autodiff"},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS, "reverse": True},
    "remat": {"remat": 2},
    "segment": {"truncation": SegmentTruncation(2)},
    "window": {"truncation": WindowTruncation(2)},
}


def on_a_mesh(kind, name, options, ids, compiled, devices):
    """Values and gradients of sequences that are divided among devices, and of the same ones that are not."""
    cell, given = CELLS[name](D, H, rngs=nnx.Rngs(0)), OPTIONS[options]
    x = jax.random.normal(jax.random.key(0), (T, B, D))
    x = jnp.argmax(x, -1) if ids else x

    def function(x, **masks):
        run = partial(unroll, **{k: v for k, v in given.items() if k not in masks}, **masks)
        return jax.value_and_grad(loss_of(run, cell, T, B, H), argnums=(0, 1))(
            nnx.state(cell), cell.initialize_carry((B, D)), x
        )

    masks = {k: v for k, v in given.items() if k in ("lengths", "resets")}
    expected = jax.jit(function)(x, **masks)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spec = {1: P("data"), 2: P(None, "data"), 3: P(None, "data", None)}
        divided = {k: jax.device_put(v, NamedSharding(mesh, spec[v.ndim])) for k, v in {"x": x, **masks}.items()}
        return (jax.jit(function) if compiled else function)(**divided), expected


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_sequences_on_a_mesh_with_explicit_axes(options, ids):
    """Also on one device the type of an array says that it is divided."""
    assert_same(*on_a_mesh(AxisType.Explicit, "lstm", options, ids, True, 1))


@pytest.mark.parametrize("name", ["elman", "gru", "before", "norm"])
def test_other_cells_there_and_outside_jit(name):
    assert_same(*on_a_mesh(AxisType.Explicit, name, "lengths", False, name == "norm", 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_four_devices(kind):
    code = f"""
from jax.sharding import AxisType
from tests.test_platforms import CELLS, OPTIONS, assert_same, on_a_mesh
for name in CELLS:
    for options in OPTIONS if name in ("gru", "before") else ("lengths", "resets"):
        assert_same(*on_a_mesh(AxisType.{kind}, name, options, name in ("gru", "lstm"), options != "resets", 4), 1e-4)
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "XLA_FLAGS": flags})
