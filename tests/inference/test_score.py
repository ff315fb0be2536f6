import math

import numpy as np
import pytest
from flax import nnx

from rnn_lm.inference import reading
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
@pytest.mark.parametrize("limits", [(256, 2**22, 2**14), (2, 72, 0)])  # one call, and several groups and chunks
def test_each_continuation_is_scored_as_if_it_were_alone(model, prompt, limits, monkeypatch):
    monkeypatch.setattr(score_module, "MAX_WINDOWS", limits[0])
    monkeypatch.setattr(reading, "MAX_LOGITS", limits[1])
    monkeypatch.setattr(score_module, "MAX_PADDING", limits[2])
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


@pytest.mark.parametrize("vocab_size", [100, 5000, 100_000])
@pytest.mark.parametrize(
    "lengths",
    [
        np.r_[RNG.geometric(0.02, 3000), 25_000],  # a long line among short ones
        np.r_[np.full(999, 33), 70, 700, 7000],  # a little more than powers of two
        2 ** np.arange(15),
        [5],
    ],
)
def test_padding_is_bounded_and_shapes_are_few(lengths, vocab_size, monkeypatch):
    shapes = []

    def read_window(graphdef, members, mesh, weights, carry, inputs, labels, valid):
        shapes.append(inputs.shape)
        return reading.Window(carry, np.zeros(inputs.shape), {})

    monkeypatch.setattr(reading, "_read_window", read_window)
    got = score(RNNLM(vocab_size, 1, rngs=nnx.Rngs(0)), PROMPT[:1], [np.zeros(length, int) for length in lengths])
    assert [len(nats) for nats in got] == list(lengths)
    tokens = sum(map(math.prod, shapes))
    assert sum(lengths) <= tokens <= 2 * sum(lengths) + score_module.MAX_PADDING
    assert len(set(shapes)) <= 20
