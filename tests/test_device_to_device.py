"""A run that was trained on a CPU elsewhere (tests/golden) is opened for other devices.

No other device is needed: its weights go into programs that are lowered for it. What such a program computes there is
not tested here; one exported program that has been lowered for all of them is run on the CPU.
"""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.files import read_json
from tests.golden import make


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    shutil.unpack_archive(make.PACKED, folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def opened(golden):
    """The model, the ids of its text [T, 1], and the nats of each token that were noted when it was trained."""
    model, vocabulary = rnn_lm.load(golden / make.RUN)
    ids = vocabulary.encode((golden / make.TEXT).read_text(encoding="utf-8"))
    return model, jnp.asarray(ids)[:, None], read_json(golden / make.EXPECTED)["none"]["nll"]


def of_text(model, carry, ids):
    """The carry after the text, and the mean nats of its tokens."""
    carry, h = model.hidden(carry, ids[:-1])
    return carry, model.mean_nll(h, ids[1:])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_its_gradient_is_lowered_for_another_device(opened, platform):
    model, ids, _ = opened
    graphdef, weights = nnx.split(model)

    def gradient(weights, carry, ids):
        return jax.grad(lambda weights: of_text(nnx.merge(graphdef, weights), carry, ids)[1])(weights)

    given = weights, model.initialize_carry(1), ids
    text = jax.jit(gradient).trace(*given).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") >= 2 and "custom_call" not in text  # forward and backward, no foreign code
    assert jax.tree.map(jnp.shape, jax.eval_shape(gradient, *given)) == jax.tree.map(jnp.shape, weights)


def test_one_program_for_all_of_them_computes_here_what_was_noted_there(opened):
    model, ids, nll = opened
    carry = model.initialize_carry(1)
    run = jax.jit(lambda carry, ids: of_text(model, carry, ids))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(carry, ids)
    assert exported.platforms == ("cpu", "cuda", "tpu") and "custom_call" not in exported.mlir_module()
    last, found = exported.call(carry, ids)
    np.testing.assert_allclose(found, nll, atol=1e-5)
    np.testing.assert_allclose(last, run(carry, ids)[0], atol=1e-5)


def test_it_opens_on_a_device_that_was_not_there(golden):
    code = f"""
import jax, rnn_lm
from pathlib import Path
from flax import nnx
from tests.golden import make
there = jax.devices()[3]
with jax.default_device(there):
    model, vocabulary = rnn_lm.load({str(golden / make.RUN)!r})
    assert all(leaf.devices() == {{there}} for leaf in jax.tree.leaves(nnx.state(model)))
    print(rnn_lm.evaluate(model, vocabulary.encode(Path({str(golden / make.TEXT)!r}).read_text())).nll)
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    printed = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert float(printed.stdout) == pytest.approx(read_json(golden / make.EXPECTED)["none"]["nll"], abs=1e-5)
