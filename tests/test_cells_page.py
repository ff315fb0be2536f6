"""The examples of docs/cells.md run as they stand, and what the page says about them is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import rnn_lm
from rnn_lm.nn import native

ROOT = Path(rnn_lm.__file__).parent.parent
PAGE = (ROOT / "docs" / "cells.md").read_text()
CODE = re.compile(r"```python[^\n]*\n(.*?)```", re.DOTALL)
START, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
[IMPORTS] = re.findall(CODE, START)


def code_of(section):
    [code] = [code for text in SECTIONS if section in text.splitlines()[0] for code in re.findall(CODE, text)]
    return code


def run(section):
    """The names that an example leaves behind. Its own assertions hold."""
    names = {}
    exec(IMPORTS + code_of(section), names)
    return names


def in_another_process(code, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_section_has_one_example_and_every_link_a_section():
    assert len(SECTIONS) == 11 and all(len(re.findall(CODE, text)) == 1 for text in SECTIONS)
    titles = [text.splitlines()[0] for text in SECTIONS]
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\(#(\S+?)\)", PAGE)) == anchors


def test_nnx_rnn():
    names = run("`nnx.RNN`")
    padding = ~np.asarray(names["valid"])
    assert not names["our_y"][padding].any() and names["y"][padding].all()
    x, lengths = names["x"], names["lengths"]
    layer = nnx.RNN(names["cell"], time_major=True)
    with pytest.raises(ValueError, match="trace level"):
        jax.jit(lambda x: layer(x))(x)
    stack = rnn_lm.Stack([names["cell"], rnn_lm.LSTMCell(16, 5, rngs=nnx.Rngs(1))])
    last, _ = names["run"](nnx.RNN(stack, time_major=True, return_carry=True), x)
    ours, _ = rnn_lm.unroll(stack, stack.initialize_carry((3, 4)), x, lengths=lengths)
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_nnx_bidirectional():
    names = run("`nnx.Bidirectional`")
    assert names["y"].shape == (8, 3, 32)
    changed = names["x"].at[4, 2].add(1.0)  # the last valid step of the third sequence
    _, right = rnn_lm.unroll(names["backward"], names["carry"], changed, lengths=names["lengths"], reverse=True)
    assert (right[:5, 2] != names["right"][:5, 2]).all()  # every output of that sequence sees it
    np.testing.assert_array_equal(right[:, :2], names["right"][:, :2])


@pytest.mark.slow
def test_linen():
    names = run("Linen")
    assert "# {:.2f} → {:.2f}\n".format(names["losses"][0], names["losses"][-1]) in PAGE
    params = names["params"]["params"]
    assert {name: value.shape for name, value in params["cell"].items()} == {
        "w_xh": (2, 48), "w_hh": (16, 48), "b_h": (48,), "b_hn": (16,)
    }  # fmt: skip
    cell = rnn_lm.GRUCell(2, 16, rngs=nnx.Rngs(0))
    nnx.update(cell, params["cell"])
    x, lengths = jax.random.normal(jax.random.key(5), (20, 32, 2)), jnp.arange(32) % 20
    _, h = rnn_lm.unroll(cell, jnp.zeros((32, 16)), x)
    logits = h @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(names["Tagger"]().apply(names["params"], x), logits[..., 0], atol=1e-5)

    bridged = nnx.bridge.to_linen(rnn_lm.GRUCell, 2, 16)
    given = jnp.zeros((32, 16)), x
    got, _ = bridged.apply({"params": params["cell"]}, *given, lengths=lengths, nnx_method=rnn_lm.unroll)
    np.testing.assert_allclose(got, rnn_lm.unroll(cell, *given, lengths=lengths)[0], atol=1e-6)
    with pytest.raises(AttributeError, match="'ToLinen' object has no attribute 'num_feature_axes'"):
        linen.RNN(bridged).init(jax.random.key(0), x)


@pytest.mark.slow
def test_a_training_loop_in_a_program_of_its_own(tmp_path):
    path = tmp_path / "forecast.py"
    path.write_text(code_of("A training loop"))
    command = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
    printed = in_another_process(f"import os; os.chdir({str(tmp_path)!r}); {command}")
    errors = [float(number) for number in re.findall(r"step \d+: mean squared error (\S+)", printed)]
    assert len(errors) == 5 and errors[0] > 0.3 and errors[-1] < 0.02


@pytest.mark.slow
def test_vmap():
    names = run("`vmap`")
    _, _, values = names["all_at_once"]
    assert values.shape == (3,) and len(set(values.tolist())) == 3
    np.testing.assert_array_equal(values[2], jnp.asarray(values)[-1])
    np.testing.assert_allclose(values[2], names["one"][2], rtol=1e-6)


@pytest.mark.slow
def test_shard_map_on_four_devices():
    more = """
assert len(value.devices()) == jax.device_count() == 4
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
part = jax.NamedSharding(mesh, P(None, "data"))
assert [shard.data.shape for shard in jax.device_put(x, part).addressable_shards] == 4 * [(20, 2, 4)]
divided = jax.shard_map(mean_loss, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
print(jax.jit(divided).lower(params, x).as_text().count("rnn_lm_forward"))
lowered = jax.jit(loss).lower(params, jax.device_put(x, part))
print(lowered.as_text().count("rnn_lm_forward"))
assert "rnn_lm_forward" not in lowered.as_text() or "all-gather" in lowered.compile().as_text()
with jax.set_mesh(jax.make_mesh((4,), ("data",))):
    x = jax.device_put(x, P(None, "data"))
    print(jax.jit(loss).lower(params, x).as_text().count("rnn_lm_forward"))
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    printed = in_another_process(IMPORTS + code_of("`shard_map`") + more, XLA_FLAGS=flags)
    under_shard_map, auto, explicit = map(int, printed.split())
    assert (under_shard_map, auto) == 2 * (native.is_available(),) and explicit == 0


@pytest.mark.slow
def test_checkpoint():
    names = run("`jax.checkpoint`")
    cells = [nnx.merge(names["graphdef"], jax.tree.map(lambda p, i=i: p[i], names["params"])) for i in range(4)]
    graphdef, params = nnx.split(nnx.List(cells))
    x = names["x"]

    def megabytes(wrapped=lambda f: f, **options):
        def loss(params):
            y = x
            for cell in nnx.merge(graphdef, params):
                layer = lambda y, cell=cell: rnn_lm.unroll(cell, cell.initialize_carry(y.shape[1:]), y, **options)[1]  # noqa: E731
                y = wrapped(layer)(y)
            return jnp.mean(y**2)

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    plain = megabytes()
    assert megabytes(remat="sqrt") < 0.5 * plain
    if jax.__version_info__ < (0, 11):
        assert "# [{:.1f}, {:.1f}]\n".format(*names["megabytes"]) in PAGE or not native.is_available()
        assert megabytes(jax.checkpoint) > 0.95 * plain
    if jax.__version_info__ >= (0, 12):
        assert megabytes(jax.checkpoint) < 0.9 * plain


@pytest.mark.slow
def test_export(tmp_path):
    pytest.importorskip("flatbuffers")
    file, ids, logits = (str(tmp_path / name) for name in ("exported", "ids.npy", "logits.npy"))
    writer = f"""
import os, numpy as np
os.environ["RNN_LM_NATIVE"] = "0"
for a, b in zip(loaded.call(h, ids), jax.jit(lambda *given: model(*given))(h, ids), strict=True):
    np.testing.assert_array_equal(a, b)
open({file!r}, "wb").write(file)
np.save({ids!r}, ids)
np.save({logits!r}, b)
"""
    reader = f"""
import sys, jax, jax.numpy as jnp, numpy as np
loaded = jax.export.deserialize(bytearray(open({file!r}, "rb").read()))
_, logits = loaded.call(jnp.zeros((3, 16)), np.load({ids!r}))
np.testing.assert_array_equal(logits, np.load({logits!r}))
assert not any(name.partition(".")[0] in ("rnn_lm", "flax") for name in sys.modules)
"""
    in_another_process(IMPORTS + code_of("`jax.export`") + writer)
    in_another_process(reader)


def test_what_the_page_says_of_exported_lstms_and_gradients():
    pytest.importorskip("flatbuffers")
    cell = rnn_lm.LSTMCell(3, 4, rngs=nnx.Rngs(0))
    read = jax.jit(lambda carry, x: rnn_lm.unroll(cell, carry, x))
    carry, x = cell.initialize_carry((2, 3)), jax.random.normal(jax.random.key(0), (5, 2, 3))
    with pytest.raises(ValueError, match="LSTMState"):
        jax.export.export(read)(carry, x).serialize()
    loaded = jax.export.deserialize(jax.export.export(read)(tuple(carry), x).serialize(vjp_order=1))
    got, expected = (jax.grad(lambda x, f=f: f(tuple(carry), x)[1].sum())(x) for f in (loaded.call, read))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.slow
def test_a_classifier():
    names = run("A classifier")
    model, ids, lengths = names["model"], names["ids"], names["lengths"]
    padding = jnp.arange(20)[:, None] >= lengths
    assert padding.any()
    logits = model(ids, lengths)
    np.testing.assert_array_equal(logits, model(jnp.where(padding, 3 - ids, ids), lengths))
    assert np.abs(logits - model(jnp.where(padding, 3 - ids, ids), jnp.full(64, 20))).max() > 0.01  # would matter


@pytest.mark.slow
def test_from_sequence_to_sequence():
    names = run("From sequence to sequence")
    assert len(names["source"]) == 5 and names["right"] > 0.95
    unlearned = names["Reverser"](nnx.Rngs(0)).decode(names["source"])
    assert np.mean((unlearned == names["source"][::-1]).all(axis=0)) < 0.1


@pytest.mark.slow
def test_reinforcement_learning():
    names = run("Reinforcement learning")
    assert names["with_memory"] > 0.95 and names["without"] < 0.55
    B, T = names["B"], names["T"]
    agent = names["Agent"](nnx.Rngs(3))
    state = agent.cell.initialize_carry((B, 3)), jnp.ones(B, int), jnp.zeros(B, int), jnp.ones(B, bool)
    (after, *_), (x, starts, *_) = names["play"](agent, state, jax.random.split(jax.random.key(0), 5 * T), False)
    assert starts[0].all() and 0 < starts[1:].mean() < 0.2 and starts.any(axis=1).mean() > 0.8  # at many steps
    carry, _ = agent(state[0], x, starts)  # all steps at once: what was played one by one
    np.testing.assert_allclose(carry, after, atol=1e-5)
