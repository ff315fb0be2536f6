import jax
import numpy as np
from flax import nnx

from rnn_lm.compression.lanes import TOTAL, Lanes
from rnn_lm.inference.dynamic import STEPS
from rnn_lm.nn.models import RNNLM

SIZE = 6


def read(model, lanes, texts):
    """What is expected of each token of texts [T, L], and the state after them."""
    expected, rows = [], iter(texts)

    def choose(frequencies, log_probs):
        expected.append((frequencies, log_probs))
        return next(rows), np.ones(texts.shape[1], bool)

    state = lanes.read(lanes.start, len(texts), choose)
    return *map(np.stack, zip(*expected, strict=True)), state


def test_expectations_are_the_models_with_the_files_own_share_of_unknowns():
    model = RNNLM(SIZE, 8, rngs=nnx.Rngs(0))
    texts = np.random.default_rng(0).integers(0, SIZE, (9, 3)).astype(np.int32)
    frequencies, log_probs, _ = read(model, Lanes(model, 3, first=2, escape=0.25, dynamic=False), texts)
    _, logits = model(model.initialize_carry(3), np.concatenate([np.full((1, 3), 2), texts[:-1]]) + jax.numpy.int32(0))
    expected = np.concatenate([np.full((9, 3, 1), 0.25), 0.75 * jax.nn.softmax(logits[..., 1:])], axis=-1)
    np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-5)
    np.testing.assert_allclose(frequencies / TOTAL, expected, atol=1e-5)


def test_what_the_vocabulary_lacks_teaches_nothing():
    model = RNNLM(SIZE, 8, rngs=nnx.Rngs(0))
    lanes = Lanes(model, 2, first=1, escape=0.5, dynamic=True)
    for texts, learns in [(np.zeros((STEPS, 2), np.int32), False), (np.ones((STEPS, 2), np.int32), True)]:
        *_, state = read(model, lanes, texts)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.learned.params, lanes.start.learned.params)
        assert all(jax.tree.leaves(same)) != learns
