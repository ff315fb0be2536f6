"""The kernels for GPUs: in Pallas's interpreter on any machine, and on the device where there is one.

The interpreter knows no semaphores: there blocks wait for each other at barriers of a cluster.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.nn import gpu, native
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell
from rnn_lm.nn.fused import _read_leaves, _Scan
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.scan import Pieces, projections
from rnn_lm.nn.truncation import RandomizedTruncation

if jax.__version_info__ < (0, 11):
    pytest.skip("the kernels need jax 0.11", allow_module_level=True)

from jax.experimental.pallas import mosaic_gpu as plgpu

from rnn_lm.nn.gpu.plan import plan_of
from rnn_lm.nn.gpu.recurrence import Kernels, plan_for
from rnn_lm.nn.gpu.tile import rounded

CELLS = {"gru": GRUCell, "lstm": LSTMCell}
D = 5
CORES = 132
on_device = pytest.mark.skipif(not gpu.is_possible(), reason="no Hopper GPU here")


def make_cell(kind, hidden, **options):
    options |= {} if kind in CELLS else {"activation": kind}
    cell = CELLS.get(kind, ElmanCell)(D, hidden, rngs=nnx.Rngs(0), **options)
    for i, name in enumerate(("b_h", "b_hn")):
        if getattr(cell, name, None) is not None:
            bias = getattr(cell, name)
            bias[...] = bias[...] + jax.random.normal(jax.random.key(i), bias.shape) / 4
    return cell


def normal(key, like):
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def errors(got, want):
    """The largest difference in each leaf, by the leaf's largest number."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return [float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs]


def small_of(pieces, carry, projected):
    one = jax.ShapeDtypeStruct(projected.shape[1:], projected.dtype)
    return {i: pieces.leaves[i] for i in _read_leaves(pieces, carry, one)}


def layer_of(kind, hidden, batch, steps, *, reverse=False, masks=()):
    """A cell's scan and its arguments."""
    cell = make_cell(kind, hidden)
    x = jax.random.normal(jax.random.key(2), (steps, batch, D))
    carry = normal(3, cell.initialize_carry((batch, D)))
    controls = {
        "resets": jax.random.bernoulli(jax.random.key(5), 0.3, (steps, batch)),
        "valid": jnp.arange(steps)[:, None] < jax.random.randint(jax.random.key(6), (batch,), 0, steps + 1),
        "passed": jnp.where(jax.random.bernoulli(jax.random.key(9), 0.5, (steps,)), 2.0, 0.0),
    }
    controls = {name: controls[name] for name in masks}
    initial = normal(4, carry) if "resets" in masks else None
    pieces, projected = Pieces.of(cell), projections(cell, x)
    small = small_of(pieces, carry, projected)
    scan = _Scan(pieces.shapes(), cell.dtype, reverse, "resets" in masks)
    return cell, scan, (small, cell.w_hh[...], carry, projected, initial, {}, controls)


ALL = ("resets", "valid", "passed")


@pytest.mark.parametrize(
    "kind, hidden, batch, options",
    [
        ("tanh", 32, 3, {}),
        ("gru", 64, 5, {"masks": ALL, "members": 2}),
        ("lstm", 70, 66, {"masks": ALL, "reverse": True}),
        pytest.param("gru", 128, 64, {"reverse": True, "masks": ("passed",)}, marks=pytest.mark.slow),
        pytest.param("relu", 200, 70, {"masks": ("valid",)}, marks=pytest.mark.slow),
        pytest.param("identity", 64, 7, {"members": 3}, marks=pytest.mark.slow),
    ],
)
def test_interpreted_kernels_equal_the_scan(kind, hidden, batch, options):
    members = options.pop("members", 1)
    with jax.default_matmul_precision("highest"):
        cell, scan, arguments = layer_of(kind, hidden, batch, 3, **options)
        want, saved = scan.forward(*arguments)
        cotangents = normal(7, want)
        want_adjoints = scan.backward(saved, cotangents)
        small, _, carry, projected, *_, controls = arguments
        plan = plan_for(CORES, scan, cell, small, carry, projected, controls)
        kernels = Kernels(scan, plan)
        plan = dataclasses.replace(plan, interpreted=True, members=members)

        def beside_others(x):  # the last member is the one that is compared
            return jnp.stack([x if x.dtype == bool or i == members - 1 else x / 2 for i in range(members)])

        given = jax.tree.map(beside_others, arguments)
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(inline_mgpu="ignore")):
            got, parts = kernels.made(plan, given, saving=True)
            cotangents = jax.tree.map(beside_others, cotangents)
            adjoints = kernels.pulled(plan, given, got[1], parts, cotangents)
    got, adjoints = jax.tree.map(lambda x: x[-1], (got, adjoints))
    assert max(errors(got, want)) < 1e-6
    assert max(errors(adjoints, want_adjoints[:5])) < 2e-6


def test_plans_fit_on_the_chip():
    layer = {"dtype": jnp.float32, "reverse": False, "resets": False, "valid": False, "cores": CORES, "steps": 9}
    gru = plan_of("gru", batch=2048, hidden=128, terms=1, **layer)
    assert (gru.tiles, gru.blocks, gru.in_cluster) == (32, 4, False)
    assert plan_of("gru", batch=4096, hidden=128, terms=1, **layer).in_cluster  # 256 blocks are too many at once
    assert plan_of("gru", batch=64, hidden=512, terms=1, **layer).blocks == 32
    assert plan_of("gru", batch=4096, hidden=512, terms=1, **layer) is None  # 2048 blocks, 32 of a tile
    assert plan_of("lstm", batch=64, hidden=512, terms=2, **layer) is None  # two terms of w_hh have 8 MiB
    assert plan_of("tanh", batch=64, hidden=513, terms=1, **layer) is None
    assert not dataclasses.replace(plan_of("gru", batch=64, hidden=512, terms=1, **layer), members=9).runs


def test_only_what_the_kernels_compute_is_given_to_them():
    def has_plan(cell, precision=None):
        x = jnp.zeros((4, 3, D))
        carry, projected = cell.initialize_carry((3, D)), projections(cell, x)
        pieces = Pieces.of(cell)
        small = small_of(pieces, carry, projected)
        with jax.default_matmul_precision(precision):
            return (
                plan_for(CORES, _Scan(pieces.shapes(), None, False, False), cell, small, carry, projected, {})
                is not None
            )

    class Own(GRUCell):
        def gates(self, *arguments):
            return super().gates(*arguments)

    assert has_plan(make_cell("gru", 8)) and has_plan(make_cell("lstm", 8, dtype="bfloat16"), "highest")
    assert not has_plan(make_cell("gru", 8), "BF16_BF16_F32_X3")
    assert not has_plan(make_cell("gru", 8, dtype="float16"))
    assert not has_plan(LSTMCell(D, 8, layer_norm=True, rngs=nnx.Rngs(0)))
    assert not has_plan(Own(D, 8, rngs=nnx.Rngs(0)))


def test_rounding_is_to_the_nearest_number_of_11_bits():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    ulp = 2.0 ** (np.floor(np.log2(np.abs(x))) - 10)
    np.testing.assert_array_equal(rounded(jnp.asarray(x)), np.round(x / ulp) * ulp)
    assert abs(np.mean((rounded(x) - x) / x)) < 3e-5  # cutting off would be 2.4e-4 on the average
    kept = np.array([0x7FFFFFFF, 0x7FC00000, 0x7F800000, 0xFF800000, 0], np.uint32).view(np.float32)  # NaN, ±inf, 0
    np.testing.assert_array_equal(rounded(jnp.asarray(kept)), kept)


def test_there_are_no_kernels_unless_asked_for(monkeypatch):
    monkeypatch.setattr(gpu, "is_possible", lambda: True)
    monkeypatch.delitem(os.environ, "RNN_LM_GPU_KERNELS", raising=False)
    assert native.on_gpu(None) is None
    monkeypatch.setitem(os.environ, "RNN_LM_GPU_KERNELS", "1")
    assert gpu.is_wanted() and native.wanted()[1]


CONFIGURATIONS = [
    ("tanh", 64, 5, {}),
    ("tanh", 512, 40, {}),  # was wrong from the second run on
    ("gru", 128, 100, {"resets": True}),
    ("gru", 128, 2048, {}),
    ("gru", 128, 4096, {"resets": True}),  # clusters
    ("lstm", 70, 70, {"lengths": True, "reverse": True}),
    ("lstm", 256, 64, {"tf32": True}),
    ("relu", 200, 130, {"resets": True, "lengths": True, "truncation": True}),
    ("gru", 512, 64, {"tf32": True, "resets": True}),
    ("lstm", 512, 20, {"tf32": True}),  # 16 units a block
    ("gru", 64, 40, {"members": 5, "resets": True}),
    ("lstm", 128, 40, {"members": 33}),
    ("lstm", 128, 256, {"dtype": "bfloat16", "resets": True}),
]


def traced_gradient(kind, hidden, batch, *, dtype=None, resets=False, lengths=False, truncation=False, members=0,
                    reverse=False, tf32=False):  # fmt: skip
    """Outputs, the last carry and all gradients, by the kernels or by the scan; and the arguments."""
    del tf32
    steps, options = 24, {"reverse": reverse}
    cell = make_cell(kind, hidden, dtype=dtype)
    x, carry = jax.random.normal(jax.random.key(2), (steps, batch, D)), normal(3, cell.initialize_carry((batch, D)))
    if resets:
        options["resets"] = jax.random.bernoulli(jax.random.key(4), 0.1, (steps, batch))
    if lengths:
        options["lengths"] = jax.random.randint(jax.random.key(5), (batch,), 0, steps + 1)
    if truncation:
        options["truncation"] = RandomizedTruncation(0.6, jax.random.key(6))
    graphdef, params = nnx.split(cell, nnx.Param)
    w = jax.random.normal(jax.random.key(8), (*x.shape[:2], cell.hidden_features))

    def loss(params, carry, x):
        last, y = unroll(nnx.merge(graphdef, params), carry, x, **options)
        return jnp.sum(y * w) + sum(jnp.sum(c**2) for c in jax.tree.leaves(last)), (last, y)

    run = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    if members:
        scale = 1 + jnp.arange(members) / members
        params, carry = jax.tree.map(lambda a: a * scale.reshape(-1, *(1,) * a.ndim), (params, carry))
        run = jax.vmap(run, (0, 0, None))
    return jax.jit(run).trace(params, carry, x), (params, carry, x)


@pytest.mark.parametrize("kind, hidden, batch, options", CONFIGURATIONS)
def test_kernels_are_lowered_without_a_gpu(kind, hidden, batch, options, monkeypatch):
    monkeypatch.setitem(os.environ, "RNN_LM_GPU_KERNELS", "1")
    monkeypatch.setattr(gpu, "is_possible", lambda: True)
    monkeypatch.setattr(gpu, "cores", lambda: CORES)
    with jax.default_matmul_precision("high" if "tf32" in options else "highest"):
        traced, _ = traced_gradient(kind, hidden, batch, **options)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("stablehlo.custom_call @mosaic_gpu") == 2


def states_and_d_carry(made):
    (_, states), (_, d_carry, _) = made
    return states, d_carry


@on_device
@pytest.mark.parametrize("kind, hidden, batch, options", CONFIGURATIONS)
def test_on_the_device_kernels_equal_the_scan(kind, hidden, batch, options, monkeypatch):
    tf32, found = "tf32" in options, {}
    for on, precision in (("0", "highest"), ("0", "high"), ("1", "high" if tf32 else "highest")):
        monkeypatch.setitem(os.environ, "RNN_LM_GPU_KERNELS", on)
        with jax.default_matmul_precision(precision):
            traced, arguments = traced_gradient(kind, hidden, batch, **options)
            compiled = traced.lower().compile()
        assert compiled.as_text().count('custom_call_target="mosaic_gpu') == (2 if on == "1" else 0)
        first, *again = (jax.device_get(compiled(*arguments)) for _ in range(12 if on == "1" else 1))
        for other in again:
            assert max(errors(states_and_d_carry(other), states_and_d_carry(first))) == 0
            assert max(errors(other, first)) < 1e-6  # XLA may add in another order
        found[on, precision] = first
    exact = found["0", "highest"]
    if tf32:
        assert max(errors(found["1", "high"], exact)) < 1.5 * max(errors(found["0", "high"], exact))
    else:
        assert max(errors(found["1", "highest"], exact)) < (5e-3 if "dtype" in options else 2e-5)


@on_device
def test_on_the_device_second_derivatives_are_the_scans(monkeypatch):
    cell = make_cell("gru", 32)
    x, carry = jax.random.normal(jax.random.key(2), (6, 4, D)), normal(3, cell.initialize_carry((4, D)))

    def penalty(x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(unroll(cell, carry, x)[1] ** 2))(x) ** 2)

    made = []
    for on in "01":
        monkeypatch.setitem(os.environ, "RNN_LM_GPU_KERNELS", on)
        with jax.default_matmul_precision("highest"):
            made.append(jax.jit(jax.grad(penalty))(x))
    assert max(errors(*made)) < 1e-5
