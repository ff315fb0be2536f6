"""Vocabularies of other programs, and the rows of their models' arrays in the order of our ids."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax

from rnn_lm.convert.foreign import from_arrays
from rnn_lm.convert.pytorch import to_pytorch
from rnn_lm.convert.tokens import read_vocabulary
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from tests.convert.models import logits_of, random_mlp, random_weights
from tests.references.make_exchange import TOKENS, V


@pytest.mark.parametrize(
    "value, kind, tokens, rows",
    [
        (["a", "b", "\n"], "char", ["<unk>", "a", "b", "\n"], [-1, 0, 1, 2]),
        (["<unk>", "a", "b"], "char", ["<unk>", "a", "b"], [0, 1, 2]),
        (["a", "[UNK]", "b"], "char", ["<unk>", "a", "b"], [1, 0, 2]),
        ([7, 255, 0], "byte", ["<unk>", 7, 255, 0], [-1, 0, 1, 2]),
        ([7, 255, "<unk>"], "byte", ["<unk>", 7, 255], [2, 0, 1]),
        (["the", "a", "<eos>"], "word", ["<unk>", "the", "a", "<eos>"], [-1, 0, 1, 2]),
        (["<UNK>", "the", "<unk>"], "word", ["<unk>", "<UNK>", "the"], [2, 0, 1]),
        ({"b": 1, "a": 0, "c": 2}, "char", ["<unk>", "a", "b", "c"], [-1, 0, 1, 2]),
        ({"kind": "word", "tokens": ["a", "b"]}, "word", ["<unk>", "a", "b"], [-1, 0, 1]),
        ({"tokens": ["<unk>", "x"]}, "char", ["<unk>", "x"], [0, 1]),
    ],
)
def test_forms(value, kind, tokens, rows):
    vocabulary = read_vocabulary(value)
    assert vocabulary.to_json() == {"kind": kind, "normalize": "none", "tokens": tokens}
    assert vocabulary.rows.tolist() == rows


@pytest.mark.parametrize("kind", ["char", "word", "byte"])
def test_ours_is_read_as_it_was_written(kind):
    given = Vocabulary([1, 200, 10] if kind == "byte" else ["a", "t", "m"], kind=kind, normalize="letters")
    vocabulary = read_vocabulary(json.loads(json.dumps(given.to_json())))
    assert vocabulary.to_json() == given.to_json() and vocabulary.rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "value, message",
    [
        (["a", "b", "a"], "the token 'a' twice"),
        (["a", 7], "all strings, or all integers"),
        ([256], "all strings, or all integers"),
        ([["a"]], "all strings, or all integers"),
        ([], "a JSON list of tokens"),
        ("abc", "a JSON list of tokens"),
        (None, "a JSON list of tokens"),
        ({"a": 0, "b": 2}, "a JSON list of tokens"),
        ({"a": [0]}, "a JSON list of tokens"),
        ({"kind": "char", "tokens": ["a", "bc"]}, "kind char cannot have the token 'bc'"),
        ({"kind": "byte", "tokens": ["a"]}, "kind byte cannot have the token 'a'"),
        ({"kind": "chars", "tokens": ["a"]}, "unknown kind .* 'chars'; did you mean 'char'"),
        ({"normalize": ["x"], "tokens": ["a"]}, "unknown normalize"),
        (["<pad>", "a", "b"], "has '<pad>' among characters"),
    ],
)
def test_mistakes_are_told_in_one_line(value, message):
    with pytest.raises(UserError, match=message) as error:
        read_vocabulary(value)
    assert "\n" not in str(error.value)


MODELS = {
    "one-hot": lambda: random_weights("gru", embed_dim=0, num_layers=2),
    "embedding": lambda: random_weights("lstm"),
    "tied": lambda: random_weights("elman", tie=True),
    "one-hot MLP": lambda: random_mlp(embed_dim=0),
    "MLP": lambda: random_mlp(),
}


@pytest.mark.parametrize("place", [None, 0, 5, V - 1])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_real_tokens_stay_wherever_unk_was(name, place):
    theirs = MODELS[name]()
    tokens = [*"abcdefghijkl"]
    if place is not None:
        tokens[place] = "<unk>"
    ours = from_arrays(to_pytorch(theirs), read_vocabulary(tokens), activation=theirs.model["activation"])
    id_of = np.array([0 if token == "<unk>" else ours.vocabulary.tokens.index(token) for token in tokens])
    logits = logits_of(ours, id_of[TOKENS])
    expected = logits_of(theirs)
    np.testing.assert_allclose(logits[..., id_of], expected, atol=1e-5)
    np.testing.assert_allclose(log_softmax(logits, -1)[..., id_of], log_softmax(expected, -1), atol=1e-5)
    if place is None:
        assert logits.shape[-1] == V + 1 and not np.exp(log_softmax(logits, -1)[..., 0]).any()
        assert np.isfinite(logits).all() and np.isfinite(logits.astype(np.float16)).all()


def test_the_vocabulary_of_the_weights_is_plain_so_that_rows_are_moved_once():
    theirs = random_weights("gru")
    weights = from_arrays(to_pytorch(theirs), read_vocabulary([*"abcdefghijkl"]))
    assert type(weights.vocabulary) is Vocabulary
    again = from_arrays(to_pytorch(weights), weights.vocabulary)
    assert all(again.arrays[name].tobytes() == array.tobytes() for name, array in weights.arrays.items())
