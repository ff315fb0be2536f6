import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnn_lm.program import Numbers
from rnn_lm.training.optimizers import learning_rate, make_optimizer


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
