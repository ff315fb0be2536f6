import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_lm
import rnn_lm.config as config_module
from rnn_lm.errors import UserError
from rnn_lm.program import Numbers, program_of
from rnn_lm.training.optimizers import learning_rate, make_optimizer
from tests.conftest import small_config


def numbers(**changes):
    given = {"learning_rate": 0.5, "steps": 100, "decay_factor": 0.1, "decay_every": 30, "plateau_factor": 1.0}
    return Numbers(*len(Numbers._fields) * [0])._replace(**given | changes).arrays()


def rates(schedule, steps, **changes):
    return [float(learning_rate(schedule, numbers(**changes), jnp.int32(step))) for step in steps]


def test_schedules():
    assert rates("constant", [0, 99]) == [0.5, 0.5]
    assert rates("constant", [0, 4, 9, 10], warmup_steps=10) == pytest.approx([0.05, 0.25, 0.5, 0.5])
    assert rates("cosine", [0, 50, 100, 500]) == pytest.approx([0.5, 0.25, 0, 0], abs=1e-7)
    assert rates("cosine", [9, 55], warmup_steps=10) == pytest.approx([0.5, 0.25])
    assert rates("step", [0, 29, 30, 60]) == pytest.approx([0.5, 0.5, 0.05, 0.005])
    assert rates("plateau", [7], plateau_factor=0.25) == [0.125]


@pytest.mark.parametrize(
    "name, changes, peer",
    [
        ("sgd", {}, optax.sgd(0.5)),
        ("sgd", {"momentum": 0.9}, optax.sgd(0.5, momentum=0.9)),
        ("adam", {}, optax.adam(0.5)),
        ("adamw", {"weight_decay": 0.3}, optax.adamw(0.5, weight_decay=0.3)),
        ("sgd", {"clip_norm": 0.1}, optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))),
        ("adam", {"weight_decay": 0.3}, optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.5))),
    ],
)
def test_three_steps_are_those_of_optax(name, changes, peer):
    params = mine = theirs = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    optimizer = make_optimizer(name, numbers(**changes), jnp.float32(0.5))
    state, peer_state = optimizer.init(params), peer.init(params)
    for step in range(3):
        grads = {"a": jnp.array([0.3, 0.1 * step]), "b": jnp.array(-1.0)}
        updates, state = optimizer.update(grads, state, mine)
        mine = optax.apply_updates(mine, updates)
        updates, peer_state = peer.update(grads, peer_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(mine["a"], theirs["a"], rtol=1e-5)
    np.testing.assert_allclose(mine["b"], theirs["b"], rtol=1e-5)


def test_clipping_gives_exactly_the_norm_and_0_is_off():
    grads = {"a": jnp.array([30.0, 40.0])}
    for clip_norm, norm in [(5.0, 5.0), (100.0, 50.0), (0.0, 50.0)]:
        optimizer = make_optimizer("sgd", numbers(clip_norm=clip_norm), jnp.float32(1))
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_allclose(optax.tree.norm(updates), norm, rtol=1e-6)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("rnn_lm.plugins.OPTIMIZERS", registered := {})
    monkeypatch.setattr("rnn_lm.program.OPTIMIZERS", registered)
    monkeypatch.setitem(config_module.REGISTERED, "optimizer.name", registered)
    return registered


def test_an_optimizer_of_the_users_own_trains_and_resumes(registry, text_file, tmp_path):
    """The package's adam under another name ends with the same weights."""

    @rnn_lm.register_optimizer("mine")
    def mine(numbers):
        return optax.chain(optax.add_decayed_weights(numbers.weight_decay), optax.scale_by_adam())

    assert registry == {"mine": mine}
    config = small_config(text_file, optimizer__name="mine", optimizer__weight_decay=0.01, steps=20)
    rnn_lm.train(config, tmp_path / "mine")
    config.steps = 40
    rnn_lm.train(config, tmp_path / "mine")
    rnn_lm.train(small_config(text_file, optimizer__weight_decay=0.01, steps=40), tmp_path / "adam")
    prints = [rnn_lm.load(tmp_path / name)[0].fingerprint() for name in ("mine", "adam")]
    assert prints[0] == prints[1]


def test_another_function_of_that_name_is_another_program(registry):
    config = rnn_lm.default_config()
    config.optimizer.name = "mine"
    programs = []
    for _ in range(2):

        @rnn_lm.register_optimizer("mine")  # as a cell of a notebook that is run again
        def mine(numbers):
            return optax.scale_by_lion()

        programs.append(program_of(config, 9)[0])
    assert programs[0] != programs[1]


def test_names_of_optimizers(registry):
    rnn_lm.register_optimizer("mine")(lambda numbers: optax.identity())
    with pytest.raises(ValueError, match="the name 'mine' already belongs to another optimizer"):
        rnn_lm.register_optimizer("mine")(numbers)
    rnn_lm.register_optimizer("nameless")(functools.partial(numbers))
    with pytest.raises(ValueError, match="the name 'nameless' already belongs to another optimizer"):
        rnn_lm.register_optimizer("nameless")(functools.partial(numbers))
    with pytest.raises(ValueError, match="the name 'adam' already belongs to another optimizer"):
        rnn_lm.register_optimizer("adam")(numbers)
    config = rnn_lm.default_config()
    config.optimizer.name = "min"
    with pytest.raises(UserError, match=r"did you mean 'mine'\? .*\(--import=MODULE_OR_FILE may register others\)"):
        config_module.check_config(config)
