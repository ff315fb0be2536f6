import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import evaluate as module
from rnn_lm.inference import score as score_module
from rnn_lm.inference.score import score
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.models import RNNLM
from tests.reference import forward, nats, numpy_params

RNG = np.random.default_rng(0)
PROMPT = RNG.integers(0, 6, 9)
CONTINUATIONS = [RNG.integers(0, 6, size) for size in (3, 1, 12, 3, 7)]


@pytest.fixture(scope="module")
def model():
    model = RNNLM(6, 8, rngs=nnx.Rngs(0))
    model.w_hq[...] *= 3
    return model


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
@pytest.mark.parametrize("limits", [(256, 2**22), (2, 72)])  # all in one call, and in several groups and chunks
def test_each_continuation_is_scored_as_if_it_were_alone(model, prompt, limits, monkeypatch):
    monkeypatch.setattr(score_module, "MAX_WINDOWS", limits[0])
    monkeypatch.setattr(module, "MAX_LOGITS", limits[1])
    got = score(model, prompt, CONTINUATIONS)
    for ids, of_each in zip(CONTINUATIONS, got, strict=True):
        text = np.concatenate([prompt, ids])
        _, logits = forward(numpy_params(model), np.zeros((1, 8)), text[:-1, None])
        expected = nats(logits, text[1:, None])[len(prompt) - 1 :, 0]
        np.testing.assert_allclose(of_each, expected, rtol=1e-5)


def test_a_model_without_a_state_is_scored_too():
    model = MLPLM(6, 8, context=4, rngs=nnx.Rngs(0))
    together = score(model, PROMPT, CONTINUATIONS)
    for ids, of_each in zip(CONTINUATIONS, together, strict=True):
        text = np.concatenate([PROMPT, ids])
        alone = score(model, text[:1], [text[1:]])[0]
        np.testing.assert_allclose(of_each, alone[len(PROMPT) - 1 :], rtol=1e-5)
