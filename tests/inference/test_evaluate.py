import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import evaluate as module
from rnn_lm.inference import reading
from rnn_lm.inference.evaluate import Evaluation, evaluate, evaluate_members, figures, runs_away
from rnn_lm.nn.models import RNNLM
from tests.reference import forward, nats, numpy_params


@pytest.fixture
def model():
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.w_hq[...] *= 3
    return model


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 6, 101)


def reference(model, ids, every):
    """Nats of each scored token, the state starting anew every so many inputs."""
    params, total, largest = numpy_params(model), [], 0.0
    for start in range(0, len(ids) - 1, every):
        tokens = ids[start : min(start + every, len(ids) - 1)]
        states, logits = forward(params, np.zeros((1, 8)), tokens[:, None])
        total.extend(nats(logits, ids[start + 1 : start + 1 + len(tokens), None])[:, 0])
        largest = max(largest, np.abs(states).max())
    return np.array(total), largest


@pytest.mark.parametrize("every", [0, 1, 7, 50, 100, 1000])
@pytest.mark.parametrize("limits", [(256, 2**22), (3, 72)])  # one call, and several that do not come out even
def test_each_token_but_the_first_is_scored_once(model, ids, every, limits, monkeypatch):
    monkeypatch.setattr(module, "MAX_WINDOWS", limits[0])
    monkeypatch.setattr(module, "MAX_LOGITS", limits[1])
    monkeypatch.setattr(reading, "MAX_LOGITS", limits[1])
    done = []
    result = evaluate(model, ids, reset_every=every, on_progress=done.append)
    assert sum(done) == 100
    expected, largest = reference(model, ids, every or len(ids))
    assert result.tokens == len(expected) == 100
    assert result.nats == pytest.approx(expected.sum(), rel=1e-5)
    assert result.max_abs == {"h": pytest.approx(largest, rel=1e-5)}


def test_a_uniform_model_has_perplexity_v(ids):
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.w_hq[...] *= 0
    assert figures(evaluate(model, ids).nll, 1.0)["perplexity"] == pytest.approx(6, rel=1e-5)


def test_parts_merge_before_the_perplexity_is_taken():
    whole = Evaluation(10.0, 10, {"h": 0.5}) + Evaluation(90.0, 30, {"h": 0.9})
    assert (whole.nll, whole.tokens, whole.max_abs) == (2.5, 40, {"h": 0.9})


def test_figures():
    assert figures(math.log(8), 0.5) == pytest.approx({"nll": math.log(8), "perplexity": 8, "bits_per_char": 1.5})
    assert figures(1e9, 1.0)["perplexity"] == math.inf


def test_a_large_vocabulary_does_not_take_memory_without_bound(ids, monkeypatch):
    sizes = []
    original = reading._read_window

    def read_window(graphdef, members, mesh, weights, carry, *window):
        sizes.append(window[0].size)
        return original(graphdef, members, mesh, weights, carry, *window)

    monkeypatch.setattr(reading, "_read_window", read_window)
    monkeypatch.setattr(reading, "MAX_LOGITS", 60)
    monkeypatch.setattr(module, "MAX_LOGITS", 60)
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    evaluate(model, ids)
    evaluate(model, ids, reset_every=3)
    assert max(sizes) * 6 <= 60
    sizes.clear()
    monkeypatch.setattr(reading, "MAX_TOKENS", 5)
    evaluate(model, ids)
    evaluate(model, ids, reset_every=50)
    assert sizes == 20 * [5] + 25 * [4]


def test_what_is_learned_is_not_taken_back(model, ids):
    with pytest.raises(ValueError, match="reset_every cannot be used with dynamic"):
        evaluate(model, ids, reset_every=5, dynamic=True)


def test_one_token_is_too_few(model):
    with pytest.raises(ValueError, match="at least 2"):
        evaluate(model, np.array([3]))


def test_a_state_that_runs_away_is_told_from_one_that_does_not():
    """With every token c grows by about 1, and h with it: what a short text does not show, a long one does."""
    model = RNNLM(3, 1, rngs=nnx.Rngs(0), cell="lstm")
    model.cell.w_xh[...] = jnp.zeros((3, 4))
    model.cell.w_hh[...] = jnp.zeros((1, 4))
    model.cell.b_h[...] = jnp.array([9.0, 9.0, 0.01, 9.0])  # i, f and o are open, g is a little above 0
    model.w_hq[...] = jnp.array([[0.0, 0.0, 5.0]])
    ids = np.tile([1, 0], 2000)
    carried, reset = evaluate(model, ids), evaluate(model, ids, reset_every=10)
    assert carried.max_abs["c"] > 10 * reset.max_abs["c"]
    assert runs_away(carried, reset) and not runs_away(reset, reset) and not runs_away(reset, carried)
    assert runs_away(Evaluation(np.nan, 10), reset)


def test_several_models_at_once_are_evaluated_as_alone(monkeypatch):
    """In one window and in chunks of a few steps, as one stream and with resets."""
    models = [RNNLM(6, 8, cell="lstm", rngs=nnx.Rngs(seed), dropout=seed / 10) for seed in range(3)]
    ids = np.random.default_rng(0).integers(0, 6, 200)
    for logits in (2**22, 3 * 6 * 7):
        for each in (module, reading):
            monkeypatch.setattr(each, "MAX_LOGITS", logits)
        for reset_every in (0, 30):
            alone = [evaluate(model, ids, reset_every=reset_every) for model in models]
            together = evaluate_members(models, ids, reset_every=reset_every)
            for mine, theirs in zip(together, alone, strict=True):
                assert (mine.tokens, mine.nll) == (199, pytest.approx(theirs.nll, rel=1e-6))
                assert mine.max_abs == pytest.approx(theirs.max_abs, rel=1e-5)
    assert len({evaluation.nll for evaluation in together}) == 3
