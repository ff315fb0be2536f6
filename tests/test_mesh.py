"""Several devices for one model. What needs them runs in a process of its own, that has eight."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from rnn_lm.config import check_config
from rnn_lm.errors import UserError
from rnn_lm.members import Members
from rnn_lm.mesh import AXIS, DataMesh
from rnn_lm.program import batches_of, program_of
from rnn_lm.runs.load import text_and_origin
from rnn_lm.training.step import new_state, train_steps
from tests.conftest import small_config


def on_eight_devices(marks):
    arguments = ["-o", "addopts=", "-q", "-x", "-m", marks, "-p", "no:cacheprovider", "tests/eight_devices.py"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


def test_on_eight_devices():
    on_eight_devices("not slow")


@pytest.mark.slow
def test_more_on_eight_devices():
    on_eight_devices("slow")


@pytest.mark.parametrize("platform, count", [("cuda", 1), ("cuda", 2), ("tpu", 1)])
def test_a_divided_step_is_lowered_without_foreign_calls_and_adds_up_once(platform, count, text_file):
    config = small_config(text_file, batch_size=8, model__cell="gru", mesh__data=8)
    corpus, _ = text_and_origin(config)
    program, numbers = program_of(config, len(corpus.vocabulary))
    members = Members(count)
    state, numbers = members.stack(count * [(new_state(program, numbers.arrays()), numbers.arrays())])
    given = state, jnp.int32(9), batches_of(program, corpus), numbers
    mesh = DataMesh(AbstractMesh((8,), (AXIS,), (AxisType.Auto,)))
    traced = train_steps.trace(*given, program=program, members=members, mesh=mesh)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" not in text and "all_gather" not in text
    assert text.count('"stablehlo.all_reduce"') == 1  # the loss and all gradients


def test_a_mesh_must_divide_the_minibatch_and_have_its_devices(text_file):
    with pytest.raises(UserError, match=r"mesh.data is 3, which does not divide config.batch_size = 4"):
        check_config(small_config(text_file, mesh__data=3))
    count = jax.device_count() + 1
    with pytest.raises(UserError, match=rf"mesh.data is {count}, but JAX sees .* JAX_NUM_CPU_DEVICES"):
        DataMesh.of(count)
