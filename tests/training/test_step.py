from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rnn_lm import config as config_module
from rnn_lm.config import complete_config
from rnn_lm.data.batches import Batches
from rnn_lm.keys import named_key
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation
from rnn_lm.plugins import OPTIMIZERS
from rnn_lm.program import model_of, program_of
from rnn_lm.training.step import Means, new_state, train_steps
from tests.reference import forward, gradients, numpy_params

V, H, B, T = 7, 5, 3, 4
IDS = np.random.default_rng(0).integers(0, V, 70)


class Training:
    """Steps on a small text, of a config with these changes."""

    def __init__(self, ids=IDS, *, optimizer=None, model=None, **changes):
        optimizer = {"name": "sgd", "learning_rate": 0.5, "clip_norm": 0.0} | (optimizer or {})
        model = {"num_hiddens": H} | (model or {})
        given = {"seed": 3, "steps": 99, "batch_size": B, "segment_length": T, "model": model, "optimizer": optimizer}
        self.program, self.numbers = program_of(complete_config(given | changes), V)
        stride, partition = self.program.truncation_update_every, self.program.partition
        self.batches = Batches.of(ids, batch_size=B, segment_length=T, partition=partition, stride=stride, seed=3)
        self.state = new_state(self.program, self.numbers.arrays())

    @property
    def model(self):
        return model_of(self.program, self.state.params)

    def run(self, until, **numbers):
        given = self.numbers._replace(**numbers).arrays()
        self.state, report = train_steps(self.state, jnp.int32(until), self.batches, given, program=self.program)
        return report


@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.75])
def test_steps_equal_numpy_backpropagation_through_time(partition, clip_norm):
    training = Training(partition=partition, optimizer={"clip_norm": clip_norm})
    params, h, losses, norms = numpy_params(training.model), np.zeros((B, H)), [], []
    for step in range(training.batches.steps_per_epoch + 2):  # into the second epoch
        inputs, labels, restart = map(np.asarray, training.batches(step))
        h = h * (1 - restart)
        loss, grads = gradients(params, h, inputs, labels)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1, clip_norm / norm) if clip_norm else 1
        h = forward(params, h, inputs)[0][-1]
        params = {name: value - 0.5 * scale * grads[name] for name, value in params.items()}
        losses.append(loss)
        norms.append(norm)
        report = training.run(step + 1)
        for name, value in numpy_params(training.model).items():
            np.testing.assert_allclose(value, params[name], atol=1e-5)
        np.testing.assert_allclose(training.state.carry, h, atol=1e-5)
    clipped = [clip_norm and norm > clip_norm for norm in norms]
    expected = {
        "nll": np.mean(losses),
        "grad_norm": np.mean(norms),
        "clipped_norm": np.mean(np.where(clipped, clip_norm, norms)),
        "clipped": np.mean(clipped),
    }
    assert report["means"].values == pytest.approx(expected, rel=1e-5)
    assert not clip_norm or 0 < expected["clipped"] < 1  # it acts on some of them


def test_numpy_gradients_are_those_of_finite_differences():
    training = Training()
    params = numpy_params(training.model)
    inputs, labels, _ = map(np.asarray, training.batches(0))
    h0 = np.random.default_rng(1).normal(size=(B, H))
    _, grads = gradients(params, h0, inputs, labels)
    for name, value in params.items():
        index = tuple(np.unravel_index(np.abs(grads[name]).argmax(), value.shape))
        moved = []
        for sign in (1, -1):
            changed = {**params, name: value.copy()}
            changed[name][index] += sign * 1e-5
            moved.append(gradients(changed, h0, inputs, labels)[0])
        assert grads[name][index] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-5)


def test_the_running_mean_stays_exact_over_many_steps():
    def step(means, x):
        return means.add({name: (2 if name == "grad_norm" else 1) * x for name in means.values}), None

    values = 1.3 + jax.random.normal(jax.random.key(0), (300_000,)) / 10
    means, _ = jax.lax.scan(step, Means.none(), values)
    expected = np.asarray(values, np.float64).mean()
    assert float(means.values["nll"]) == pytest.approx(expected, rel=1e-5)
    assert float(means.values["grad_norm"]) == pytest.approx(2 * expected, rel=1e-5)


def test_one_dispatch_of_many_steps_has_the_same_bits_as_many_of_one():
    one, many = (Training(optimizer={"name": "adam"}) for _ in range(2))
    one.run(9)
    for step in (1, 2, 5, 9):
        many.run(step)
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_depends_on_seed_and_step_and_not_on_when_the_log_is_written():
    def weights(*stops, **numbers):
        training = Training(model={"dropout": 0.5})
        for step in stops:
            state = jax.tree.map(jnp.array, training.state)
            training.state = replace(state, means=Means.none())  # as a train line leaves it
            training.run(step, **numbers)
        return numpy_params(training.model)["w_hq"]

    np.testing.assert_array_equal(weights(2, 5), weights(5))
    assert np.abs(weights(5, dropout=0.9) - weights(5)).max() > 0.01
    assert np.abs(weights(5, seed=1) - weights(5)).max() > 0.01


def test_it_stops_at_the_step_whose_loss_is_not_finite():
    training = Training()
    training.run(2)
    training.state.params.cell.w_hh[...] = jnp.full((H, H), jnp.nan)
    report = training.run(9)
    assert not report["finite"]
    assert int(report["step"]) == 3
    assert int(training.run(20)["step"]) == 3


def test_it_stops_at_a_gradient_that_is_not_finite_though_the_loss_is():
    training = Training(model={"activation": "identity"})
    cell = training.state.params.cell
    for parameter in (cell.w_xh, cell.b_h):
        parameter[...] = jnp.zeros_like(parameter[...])  # so the state stays 0, whatever it is multiplied by
    cell.w_hh[...] = jnp.full((H, H), 1e30)
    report = training.run(5)
    assert int(report["step"]) == 1 and not report["finite"]
    assert np.isfinite(report["means"].values["nll"]) and not np.isfinite(report["means"].values["grad_norm"])


def test_one_batch_can_be_memorised():
    optimizer = {"name": "adam", "learning_rate": 0.01}
    training = Training(IDS[: B * T + T + 1], model={"num_hiddens": 32}, optimizer=optimizer)
    training.run(400)
    training.state = replace(training.state, means=Means.none())
    training.run(420)
    assert float(training.state.means.values["nll"]) < 0.3 * np.log(V)


TRUNCATIONS = {
    "segment": SegmentTruncation(2),
    "window": WindowTruncation(2),
    "randomized": RandomizedTruncation(0.5, jax.random.fold_in(named_key(3, "truncation"), 0)),
}


@pytest.mark.parametrize("kind", TRUNCATIONS)
def test_a_step_truncates_as_the_config_says(kind):
    given = {"keep_probability": 0.5} if kind == "randomized" else {"steps": 2}
    training = Training(truncation={"kind": kind} | given, optimizer={"learning_rate": 1.0})
    inputs, labels, _ = training.batches(0)

    def loss(model, truncation):
        _, h = model.hidden(model.initialize_carry(B), inputs, truncation=truncation)
        return model.mean_nll(h, labels)

    expected, whole = (nnx.grad(loss)(training.model, t) for t in (TRUNCATIONS[kind], None))
    before = jax.tree.map(np.array, training.state.params)
    training.run(1)
    moved = jax.tree.map(lambda a, b: a - b, before, training.state.params)
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(expected.cell.w_hh[...] - whole.cell.w_hh[...]).max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": {"kind": "tbptt", "steps": T, "update_every": T}},
        {"truncation": {"kind": "window", "steps": T}},
        {"truncation": {"kind": "segment", "steps": T}},
        {"remat": 2},
    ],
    ids=str,
)
def test_what_is_the_same_as_plain_training_trains_the_same(changes):
    """TBPTT(k, k) is training by segments; a truncation of T steps or more, and recomputation, change nothing."""
    usual = {"model": {"cell": "gru"}, "optimizer": {"name": "adam", "learning_rate": 0.01}}
    got, expected = Training(**usual, **changes), Training(**usual)
    for training in (got, expected):
        training.run(5)
    exactly = "truncation" in changes
    for a, b in zip(jax.tree.leaves(got.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_allclose(a, b, atol=0 if exactly else 1e-6, rtol=0)


@pytest.mark.parametrize("update_every", [1, 2, 4])
def test_tbptt_updates_every_few_tokens_and_looks_back_further(update_every):
    """Against windows differentiated one by one: the new tokens' losses, from the state T tokens before their end."""
    training = Training(truncation={"kind": "tbptt", "steps": T, "update_every": update_every})
    graphdef, params = nnx.split(training.model, nnx.Param)
    params = jax.tree.map(jnp.array, params)
    carry = training.model.initialize_carry(B)

    def loss(params, carry, inputs, labels):
        model, total, kept = nnx.merge(graphdef, params), 0.0, None
        for t in range(T):
            carry, h = model.hidden(carry, inputs[t : t + 1])
            kept = carry if t == update_every - 1 else kept
            total += model.nll(h[0], labels[t]).mean() if t >= T - update_every else 0.0
        return total / update_every, kept

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    for step in range(5):
        inputs, labels, _ = training.batches(step)
        grads, carry = gradient(params, carry, inputs, labels)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        training.run(step + 1)
        got = training.state.params, training.state.carry
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves((params, carry)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def _compilations(caplog, call):
    caplog.clear()
    with jax.log_compiles():
        call()
    return sum("Finished XLA compilation" in record.message for record in caplog.records)


def test_runs_of_one_model_and_equal_layers_share_the_compilations_of_the_start(caplog):
    def start(num_layers, **changes):
        model = {"cell": "gru", "num_hiddens": 6, "num_layers": num_layers}
        return lambda: Training(model=model, **changes)

    assert _compilations(caplog, start(2)) > 0
    cut = {"kind": "segment", "steps": 2}
    other = start(2, seed=4, steps=7, truncation=cut, optimizer={"schedule": "cosine", "learning_rate": 0.1})
    assert _compilations(caplog, other) == 0
    assert _compilations(caplog, start(5)) == 1  # the optimizer's start, of all layers


def test_an_array_may_be_in_the_state_twice(monkeypatch):
    """Such as the parameters that an optimizer starts a mean from; a step donates each array."""

    def keeping_the_start(numbers):
        return optax.GradientTransformation(lambda params: (params,), lambda grads, state, params: (grads, state))

    monkeypatch.setitem(OPTIMIZERS, "keeping", keeping_the_start)
    monkeypatch.setitem(config_module.REGISTERED, "optimizer.name", OPTIMIZERS)
    training = Training(optimizer={"name": "keeping"})
    start = jax.device_get(training.state.params)
    training.run(2)
    is_state = lambda node: isinstance(node, nnx.State)  # noqa: E731
    [kept] = filter(is_state, jax.tree.leaves(training.state.opt_state, is_leaf=is_state))
    jax.tree.map(np.testing.assert_array_equal, kept, start)
