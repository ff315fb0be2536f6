from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.data.batches import Batches
from rnn_lm.nn.losses import cross_entropy
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation
from rnn_lm.training.step import Means, TrainState, train_steps
from tests.reference import forward, gradients, numpy_params

V, H, B, T = 7, 5, 3, 4


def numbers(**changes):
    given = {"learning_rate": 0.5, "momentum": 0, "weight_decay": 0, "clip_norm": 0, "warmup_steps": 0, "steps": 99}
    return {name: jnp.float32(value) for name, value in (given | changes).items()}


def setup(partition="sequential", optimizer="sgd"):
    """A new model, its state, and `run(state, until)`."""
    model = RNNLM(V, H, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, V, 70)
    batches = Batches.of(ids, batch_size=B, segment_length=T, partition=partition, seed=3)
    graphdef, _ = nnx.split(model, nnx.Param)
    state = TrainState.create(model, optimizer, B)

    def run(state, until, **changes):
        names = {"optimizer": optimizer, "schedule": "constant"}
        return train_steps(state, jnp.int32(until), batches, numbers(**changes), {}, graphdef=graphdef, **names)

    return model, batches, state, run, lambda state: nnx.merge(graphdef, state.params)


@pytest.mark.parametrize("partition", ["sequential", "random"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.615])
def test_steps_equal_numpy_backpropagation_through_time(partition, clip_norm):
    model, batches, state, run, merged = setup(partition)
    params, h, losses, norms = numpy_params(model), np.zeros((B, H)), [], []
    for step in range(batches.steps_per_epoch + 2):  # into the second epoch
        inputs, labels, restart = map(np.asarray, batches(step))
        h = h * (1 - restart)
        loss, grads = gradients(params, h, inputs, labels)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1, clip_norm / norm) if clip_norm else 1
        h = forward(params, h, inputs)[0][-1]
        params = {name: value - 0.5 * scale * grads[name] for name, value in params.items()}
        losses.append(loss)
        norms.append(norm)
        state, report = run(state, step + 1, clip_norm=clip_norm)
        for name, value in numpy_params(merged(state)).items():
            np.testing.assert_allclose(value, params[name], atol=1e-5)
        np.testing.assert_allclose(state.carry, h, atol=1e-5)
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
    model, batches, *_ = setup()
    params = numpy_params(model)
    inputs, labels, _ = map(np.asarray, batches(0))
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
    _, _, one, run, _ = setup(optimizer="adam")
    one, _ = run(one, 9)
    _, _, many, run, _ = setup(optimizer="adam")
    for step in (1, 2, 5, 9):
        many, _ = run(many, step)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_depends_on_the_step_whenever_the_log_is_written():
    model = RNNLM(V, H, rngs=nnx.Rngs(0), dropout=0.5)
    ids = np.random.default_rng(0).integers(0, V, 70)
    batches = Batches.of(ids, batch_size=B, segment_length=T, partition="sequential")
    settings = {"graphdef": nnx.graphdef(model), "optimizer": "sgd", "schedule": "constant"}

    def run(*stops, seed=0, settings=settings):
        state = TrainState.create(model, "sgd", B)
        for step in stops:
            state = replace(jax.tree.map(jnp.array, state), means=Means.none())  # as a train line leaves it
            state, _ = train_steps(
                state, jnp.int32(step), batches, numbers(dropout=0.5), {"dropout": jax.random.key(seed)}, **settings
            )
        return numpy_params(nnx.merge(settings["graphdef"], state.params))["w_hq"]

    np.testing.assert_array_equal(run(2, 5), run(5))
    assert np.abs(run(5, seed=1) - run(5)).max() > 0.01
    other = nnx.graphdef(RNNLM(V, H, rngs=nnx.Rngs(0), dropout=0.9))  # the rate is one of the numbers
    np.testing.assert_array_equal(run(5, settings=settings | {"graphdef": other}), run(5))


def test_it_stops_at_the_step_whose_loss_is_not_finite():
    _, _, state, run, _ = setup()
    state, _ = run(state, 2)
    state.params.cell.w_hh[...] = jnp.full((H, H), jnp.nan)
    state, report = run(state, 9)
    assert not report["finite"]
    assert int(report["step"]) == 3
    state, report = run(state, 20)
    assert int(report["step"]) == 3


def test_one_batch_can_be_learned_by_heart():
    model = RNNLM(V, 32, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, V, B * T + T + 1)
    batches = Batches.of(ids, batch_size=B, segment_length=T, partition="sequential")
    graphdef, _ = nnx.split(model, nnx.Param)
    state = TrainState.create(model, "adam", B)
    settings = {"graphdef": graphdef, "optimizer": "adam", "schedule": "constant"}
    state, _ = train_steps(state, jnp.int32(400), batches, numbers(learning_rate=0.01), {}, **settings)
    state = replace(state, means=Means.none())
    state, _ = train_steps(state, jnp.int32(420), batches, numbers(learning_rate=0.01), {}, **settings)
    assert float(state.means.values["nll"]) < 0.3 * np.log(V)


TRUNCATIONS = {
    "segment": SegmentTruncation(2),
    "window": WindowTruncation(2),
    "randomized": RandomizedTruncation(0.5, jax.random.fold_in(jax.random.key(4), 0)),
}


@pytest.mark.parametrize("kind", TRUNCATIONS)
def test_a_step_truncates_as_the_config_says(kind):
    model, batches, state, *_ = setup()
    inputs, labels, _ = batches(0)

    def loss(model, truncation):
        _, h = model.hidden(model.initialize_carry(B), inputs, truncation=truncation)
        return cross_entropy(model.output(h), labels).mean()

    expected, whole = (nnx.grad(loss)(model, t) for t in (TRUNCATIONS[kind], None))
    settings = {"optimizer": "sgd", "schedule": "constant", "truncation": kind, "truncation_steps": 2}
    graphdef, before = nnx.split(model, nnx.Param)
    given = numbers(learning_rate=1.0) | {"keep_probability": jnp.float32(0.5)}
    keys = {"truncation": jax.random.key(4)}
    before = jax.tree.map(np.array, before)
    state, _ = train_steps(state, jnp.int32(1), batches, given, keys, graphdef=graphdef, **settings)
    moved = jax.tree.map(lambda a, b: a - b, before, state.params)
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(expected.cell.w_hh[...] - whole.cell.w_hh[...]).max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": "tbptt", "truncation_steps": T},
        {"truncation": "window", "truncation_steps": T},
        {"truncation": "segment", "truncation_steps": T},
        {"remat": 2},
    ],
    ids=str,
)
def test_what_is_the_same_as_plain_training_trains_the_same(changes):
    """TBPTT(k, k) is training by segments; a truncation of T steps or more, and recomputation, change nothing."""

    def trained(stride, **changes):
        model = RNNLM(V, H, rngs=nnx.Rngs(0), cell="gru")
        ids = np.random.default_rng(0).integers(0, V, 70)
        batches = Batches.of(ids, batch_size=B, segment_length=T, partition="sequential", stride=stride)
        names = {"graphdef": nnx.graphdef(model), "optimizer": "adam", "schedule": "constant"}
        state = TrainState.create(model, "adam", B)
        return train_steps(state, jnp.int32(5), batches, numbers(learning_rate=0.01), {}, **names, **changes)[0]

    exactly = "tbptt" in changes.values()
    got, expected = trained(T, **changes), trained(0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=0 if exactly else 1e-6, rtol=0)


@pytest.mark.parametrize("update_every", [1, 2, 4])
def test_tbptt_updates_every_few_tokens_and_looks_back_further(update_every):
    """Against windows differentiated one by one: the new tokens' losses, from the state T tokens before their end."""
    model, *_ = setup()
    ids = np.random.default_rng(0).integers(0, V, 70)
    batches = Batches.of(ids, batch_size=B, segment_length=T, partition="sequential", stride=update_every, seed=3)
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.array, params)
    state = TrainState.create(model, "sgd", B)
    carry = model.initialize_carry(B)

    def loss(params, carry, inputs, labels):
        model, total, kept = nnx.merge(graphdef, params), 0.0, None
        for t in range(T):
            carry, logits = model(carry, inputs[t : t + 1])
            kept = carry if t == update_every - 1 else kept
            total += cross_entropy(logits[0], labels[t]).mean() if t >= T - update_every else 0.0
        return total / update_every, kept

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    for step in range(5):
        inputs, labels, _ = batches(step)
        grads, carry = gradient(params, carry, inputs, labels)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        names = {"optimizer": "sgd", "schedule": "constant", "truncation": "tbptt", "truncation_steps": T}
        state, _ = train_steps(state, jnp.int32(step + 1), batches, numbers(), {}, graphdef=graphdef, **names)
        for got, want in zip(
            jax.tree.leaves((state.params, state.carry)), jax.tree.leaves((params, carry)), strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-5)
