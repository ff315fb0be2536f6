"""Models whose logits are not finite: every verb says so in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_lm
from rnn_lm.errors import NotFinite


@pytest.fixture
def broken(run_folder, monkeypatch):
    """The model of the small run with one weight that is NaN; all verbs load it."""
    model, vocabulary = rnn_lm.load(run_folder)
    model.b_q[...] = model.b_q[...].at[3].set(np.nan)
    monkeypatch.setattr("rnn_lm.runs.load.load", lambda *arguments, **options: (model, vocabulary))
    return model, vocabulary


@pytest.mark.parametrize(
    "verb",
    [
        ["generate"],
        ["generate", "--temperature=0"],
        ["generate", "--top_k=3"],
        ["generate", "--top_p=0.5", "--num_samples=3"],
        ["score", "--continuation=the"],
        ["score", "--continuation=the", "--surprise"],
        ["evaluate"],
        ["evaluate", "--dynamic"],
    ],
)
def test_verbs_say_so(cli, run_folder, broken, verb):
    code, out, err = cli(*verb, f"--workdir={run_folder}")
    assert (code, out) == (2, "")
    assert "error: the model predicts nothing: its logits are not finite; it diverged in training\n" in err


def test_compression_stays_lossless(cli, run_folder, text_file, tmp_path, broken):
    archive, copy = tmp_path / "archive", tmp_path / "copy"
    assert cli("compress", f"--workdir={run_folder}", text_file, archive)[0] == 0
    assert cli("decompress", f"--workdir={run_folder}", archive, copy)[0] == 0
    assert copy.read_bytes() == text_file.read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_library_raises(broken, value):
    model, vocabulary = broken
    model.b_q[...] = model.b_q[...].at[3].set(value)
    with pytest.raises(NotFinite):
        rnn_lm.generate(model, vocabulary.encode("the"), 5, key=jax.random.key(0))
    with pytest.raises(NotFinite):
        rnn_lm.score(model, vocabulary.encode("the"), [vocabulary.encode(" time")])


def test_a_model_that_never_predicts_a_token_is_finite_enough(run_folder):
    """Generation works where some logits are −∞."""
    model, vocabulary = rnn_lm.load(run_folder)
    model.b_q[...] = jnp.where(jnp.arange(len(vocabulary)) == 2, -jnp.inf, model.b_q[...])
    ids = rnn_lm.generate(model, vocabulary.encode("the"), 50, key=jax.random.key(0))
    assert ids.all() and not (ids == 2).any()
