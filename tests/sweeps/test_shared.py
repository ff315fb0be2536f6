"""What members share is made once: texts are hashed and counted once, and laid out once for each layout."""

from contextlib import ExitStack

import pytest

from rnn_lm.data.corpus import load_corpus
from rnn_lm.program import program_of
from rnn_lm.sweeps import shared as module
from tests.conftest import small_config


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name in ("counts_path", "batches_of"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, n=name, f=original: made.append(n) or f(*given))
    return made


def test_a_text_is_hashed_and_counted_once(calls, text_file, tmp_path):
    corpus, same = (load_corpus(**small_config(text_file).corpus) for _ in range(2))
    with ExitStack() as stack:
        shared = module.SharedBaselines(tmp_path / "ngrams", stack)
        first = shared.of(corpus)
        assert shared.of(corpus) is first and calls == ["counts_path"]
        assert shared.of(same) is first  # another object with the same tokens
        assert first.wait()
    assert len(list((tmp_path / "ngrams").glob("*.npz"))) == 1


def test_a_layout_is_made_once_and_kept_until_the_next(calls, text_file):
    corpus = load_corpus(**small_config(text_file).corpus)
    wide, deep, other = (
        program_of(small_config(text_file, **changes), len(corpus.vocabulary))[0]
        for changes in ({}, {"model__num_layers": 2}, {"batch_size": 2})
    )
    last = module.LastBatches()
    first = last.of(wide, corpus)
    assert last.of(deep, corpus) is first and calls == ["batches_of"]
    assert last.of(other, corpus).batch_size == 2 and last.of(wide, corpus) is not first
    assert calls == 3 * ["batches_of"]
