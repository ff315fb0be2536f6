"""Training on eight devices, each a CPU's. `test_mesh.py` runs this file in a process that has them."""

import re
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.errors import UserError
from rnn_lm.inference.evaluate import evaluate, evaluate_members
from rnn_lm.members import ONE
from rnn_lm.mesh import WHOLE, DataMesh, rows_at
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.registry import CELLS
from rnn_lm.program import batches_of, program_of
from rnn_lm.runs.checkpoints import Checkpoints
from rnn_lm.runs.load import text_and_origin
from rnn_lm.runs.record import read_metrics
from rnn_lm.sweeps import sweep as module
from rnn_lm.training.step import new_state, specs_of, train_steps
from rnn_lm.training.train import train
from tests.conftest import small_config

STEPS = 50
LEARNING = {"batch_size": 8, "optimizer__learning_rate": 0.02, "corpus__test_fraction": 0.1}
OPTIONS = {
    "carried": {},
    "embedded": {"model__embed_dim": 5},
    "random": {"partition": "random"},
    "dropout": {"model__dropout": 0.3, "model__num_layers": 2, "model__embed_dim": 5},
    "window": {"truncation__kind": "window", "truncation__steps": 3},
    "randomized": {"truncation__kind": "randomized", "truncation__keep_probability": 0.5},
    "tbptt": {"truncation__kind": "tbptt", "truncation__steps": 8, "truncation__update_every": 2},
    "segment": {"truncation__kind": "segment", "truncation__steps": 3, "remat": 4},
    "before": {"model__reset_after": False},
    "mlp": {"model__kind": "mlp"},
}


class ForeignCell(nnx.OptimizedLSTMCell):
    def __init__(self, in_features, hidden_features, *, rngs, dtype=None, recurrent_init=None):
        super().__init__(in_features, hidden_features, rngs=rngs, dtype=dtype)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape, nnx.Rngs(0))  # zeros


@pytest.fixture(autouse=True)
def _a_foreign_cell(monkeypatch):
    monkeypatch.setitem(CELLS, "foreign", ForeignCell)


def trained(config, mesh):
    """The state after all steps, their report, and the text of the compiled program."""
    corpus, _ = text_and_origin(config)
    program, numbers = program_of(config, len(corpus.vocabulary))
    state = mesh.put(new_state(program, numbers.arrays()), specs_of(ONE))
    until, batches, numbers = mesh.put((np.int32(STEPS), batches_of(program, corpus), numbers.arrays()))
    given = {"program": program, "mesh": mesh}
    text = train_steps.lower(state, until, batches, numbers, **given).compile().as_text()
    return *jax.device_get(train_steps(state, until, batches, numbers, **given)), text


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


CASES = [
    ("gru", "dropout"),
    *(pytest.param(cell, "carried", marks=pytest.mark.slow) for cell in ("elman", "gru")),
    pytest.param("foreign", "embedded", marks=pytest.mark.slow),
    *(pytest.param("lstm", name, marks=pytest.mark.slow) for name in OPTIONS if name not in ("before", "mlp")),
    *(pytest.param("gru", name, marks=pytest.mark.slow) for name in ("before", "window", "random")),
    pytest.param("elman", "mlp", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("cell, name", CASES)
def test_eight_devices_train_as_one_does(cell, name, text_file):
    config = small_config(text_file, **LEARNING, **{"model__cell": cell} | OPTIONS[name])
    one, one_report, _ = trained(config, DataMesh())
    many, many_report, text = trained(config, DataMesh.of(8))
    assert one.step == many.step == STEPS
    assert_close((many.params, many.carry, many_report["means"]), (one.params, one.carry, one_report["means"]))
    start = jax.device_get(
        new_state(*(lambda p, n: (p, n.arrays()))(*program_of(config, len(text_and_origin(config)[0].vocabulary))))
    )
    moved = max(
        np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(start.params), strict=True)
    )
    assert moved > 0.05  # so that the comparison says something
    assert not re.search(r"all-gather|all-to-all|collective-permute", text) and "all-reduce" in text


def test_evaluations_divide_their_windows(text_file):
    corpus, _ = text_and_origin(small_config(text_file))
    model, mesh = RNNLM(len(corpus.vocabulary), 6, cell="lstm", rngs=nnx.Rngs(0)), DataMesh.of(8)
    graphdef, params = nnx.split(model)
    placed = nnx.merge(graphdef, mesh.put(params))
    for reset_every in (7, 100, 0):
        [ours] = evaluate_members([placed], corpus.valid.ids, reset_every=reset_every, mesh=mesh)
        theirs = evaluate(model, corpus.valid.ids, reset_every=reset_every)
        assert ours.tokens == theirs.tokens and ours.nats == pytest.approx(theirs.nats, rel=1e-5)
        assert ours.max_abs == pytest.approx(theirs.max_abs, rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(text_file, tmp_path):
    """8 → 2 → 1, beside one device all the way; dropout and the best checkpoint included."""
    options = LEARNING | OPTIONS["dropout"] | {"model__cell": "gru", "eval_every": 10}
    for steps, devices in ((20, 8), (40, 2), (60, 1)):
        config = small_config(text_file, **options | {"steps": steps, "mesh__data": devices})
        train(config, tmp_path / "divided")
    train(small_config(text_file, **options | {"steps": 60}), tmp_path / "alone")
    states = []
    for name in ("divided", "alone"):
        with closing(Checkpoints(tmp_path / name / "checkpoints", read_only=True)) as checkpoints:
            states.append(checkpoints.restore(60)[0])
    assert states[0].keys() == states[1].keys()
    assert_close(states[0], states[1])
    nlls = [[line["nll"] for line in read_metrics(tmp_path / name, "valid")] for name in ("divided", "alone")]
    np.testing.assert_allclose(*nlls, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode, count", [("sequential", 3), ("vmap", 5)])
def test_teams_of_a_sweep(mode, count, text_file, tmp_path, monkeypatch):
    """Two devices a job, because the config says so: the results are those of one."""
    given = [{"seed": seed} for seed in range(count)]
    config = small_config(text_file, **LEARNING | {"steps": 12, "sweep__mode": mode})
    sizes, original = [], module.DataMesh.on
    monkeypatch.setattr(module.DataMesh, "on", lambda team: sizes.append(len(team)) or original(team))
    alone = module.sweep(config, given, tmp_path / "alone")
    assert set(sizes) == {1}
    sizes.clear()
    config.mesh.data = 2
    divided = module.sweep(config, given, tmp_path / "divided")
    assert set(sizes) == {2}
    for a, b in zip(alone["members"], divided["members"], strict=True):
        assert a["valid"]["nll"] == pytest.approx(b["valid"]["nll"], rel=1e-4)


@pytest.mark.parametrize("members, sizes", [(1, [8]), (2, [4, 4]), (3, [2, 2, 2, 2]), (5, 8 * [1]), (40, 8 * [1])])
def test_devices_that_would_be_idle_join_a_team(members, sizes, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = small_config(text_file, batch_size=8, sweep__mode="sequential")
    listed = module.members_of(config, [{"seed": seed} for seed in range(members)], tmp_path)
    teams = module.teams_of(jax.devices(), module.team_size(listed, 8))
    assert [len(team) for team in teams] == sizes
    assert len({device for team in teams for device in team}) == 8


def test_what_has_no_rows_cannot_be_divided():
    """Such as a carry that counts steps."""
    with pytest.raises(UserError, match="config.mesh.data: an array of the carry has no axis of rows"):
        DataMesh.of(8).put({"h": np.zeros((8, 3)), "count": np.zeros(())}, rows_at(0))


def test_shapes_have_the_places_of_arrays():
    """Or the check of memory would compile another program than the one that trains."""
    tree, specs = (np.zeros((8, 3)), np.zeros(2)), (rows_at(0), WHOLE)
    mesh = DataMesh.of(8)
    for shape, array in zip(mesh.shapes(tree, specs), mesh.put(tree, specs), strict=True):
        assert shape.shape == array.shape and shape.sharding == array.sharding
    assert mesh.shapes(tree, specs)[0].sharding.shard_shape((8, 3)) == (1, 3)


def test_keys_of_sequences_draw_for_each_by_itself():
    """Half of the sequences get the same dropout as among all of them."""
    model = RNNLM(9, 4, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (5, 6), 0, 9)
    keys = jax.random.split(jax.random.key(1), 6)
    of_all = model.hidden(model.initialize_carry(6), tokens, key=keys)[1]
    of_half = model.hidden(model.initialize_carry(3), tokens[:, 3:], key=keys[3:])[1]
    np.testing.assert_allclose(of_all[:, 3:], of_half, rtol=1e-6)
    assert (jnp.asarray(of_all) == 0).mean() == pytest.approx(0.5, abs=0.2)
