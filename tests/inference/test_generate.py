import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import generate as module
from rnn_lm.inference.generate import generate, generate_members
from rnn_lm.nn.models import RNNLM

PROMPT = np.array([1, 2, 3])


@pytest.fixture(scope="module")
def model():
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.b_q[...] = model.b_q[...].at[0].set(9.0)  # it would say <unk> nearly always
    return model


def draw(model, length=30, seed=1, **settings):
    return generate(model, PROMPT, length, key=jax.random.key(seed), **settings)


def test_the_likeliest_tokens_are_those_of_the_forward_pass(model):
    greedy = draw(model, temperature=0.0)[0]
    text = np.concatenate([PROMPT, greedy])
    _, logits = model(model.initialize_carry(1), jnp.asarray(text[:-1, None], jnp.int32))
    np.testing.assert_array_equal(greedy, np.asarray(logits)[len(PROMPT) - 1 :, 0, 1:].argmax(-1) + 1)


def test_a_long_text_is_drawn_in_several_calls(model, monkeypatch):
    at_once = draw(model, 50, num_samples=2)
    monkeypatch.setattr(module, "CALL_STEPS", 7)
    np.testing.assert_array_equal(draw(model, 50, num_samples=2), at_once)


def test_a_tiny_temperature_is_greedy_too(model):
    np.testing.assert_array_equal(draw(model, temperature=1e-38), draw(model, temperature=0.0))


def test_step_by_step_logits_equal_the_forward_pass(model):
    text = jnp.asarray(draw(model)[0][:, None], jnp.int32)
    _, whole = model(model.initialize_carry(1), text)
    carry = model.initialize_carry(1)
    for t in range(len(text)):
        carry, logits = model(carry, text[t : t + 1])
        np.testing.assert_allclose(logits[0], whole[t], rtol=1e-4, atol=1e-5)


def test_unknown_is_never_drawn(model):
    assert (draw(model, 200, num_samples=5) > 0).all()


def test_frequencies_are_the_models_probabilities(model):
    _, logits = model(model.initialize_carry(1), jnp.asarray(PROMPT[:, None], jnp.int32))
    p = np.asarray(jax.nn.softmax(logits[-1, 0, 1:] / 0.7))
    drawn = draw(model, 1, num_samples=4000, temperature=0.7)[:, 0]
    counts = np.bincount(drawn, minlength=6)[1:]
    assert (np.abs(counts - 4000 * p) < 5.5 * np.sqrt(4000 * p * (1 - p))).all()


def test_each_position_has_randomness_of_its_own():
    """A model without weights draws independent tokens: each of the 5 repeats the one before it in a fifth of cases."""
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.w_hq[...] *= 0
    drawn = draw(model, 4000)[0]
    repeats = (drawn[1:] == drawn[:-1]).mean()
    assert abs(repeats - 1 / 5) < 5.5 * np.sqrt(1 / 5 * 4 / 5 / 4000)


def test_the_same_seed_gives_the_same_text_and_more_samples_leave_the_first_alone(model):
    np.testing.assert_array_equal(draw(model), draw(model))
    assert (draw(model, seed=2) != draw(model)).any()
    several = draw(model, num_samples=3)
    np.testing.assert_array_equal(several[0], draw(model)[0])
    assert (several[1] != several[0]).any()


def test_several_models_at_once_write_what_each_writes_alone():
    models = [RNNLM(6, 8, rngs=nnx.Rngs(seed)) for seed in range(3)]
    keys = [jax.random.key(seed) for seed in (5, 5, 6)]
    together = generate_members(models, PROMPT, 40, keys=keys)
    for written, model, key in zip(together, models, keys, strict=True):
        np.testing.assert_array_equal(written, generate(model, PROMPT, 40, key=key))
    assert (together[0] != together[1]).any()
