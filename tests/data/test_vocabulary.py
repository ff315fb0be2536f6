import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_lm.data import vocabulary as vocabulary_module
from rnn_lm.data.vocabulary import UNKNOWN, Vocabulary, characters_after, counted, num_characters, readable, tokenize
from rnn_lm.errors import UserError

KINDS = ("char", "word", "byte")


def make(text, kind="char", normalize="none", max_vocab=0):
    return Vocabulary.of(tokenize(text, kind, normalize), kind=kind, normalize=normalize, max_vocab=max_vocab)


@given(st.sampled_from(["char", "byte"]), st.text(min_size=1))
def test_characters_and_bytes_round_trip(kind, text):
    vocabulary = make(text, kind)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert num_characters(tokenize(text, kind, "none")) == len(text)


def test_words_round_trip_but_for_runs_of_blanks():
    text = "To be,  or not\n\nto be:\tthat is the question\n"
    vocabulary = make(text, "word")
    canonical = "To be, or not\n\nto be: that is the question\n"
    assert vocabulary.decode(vocabulary.encode(text)) == canonical
    assert num_characters(tokenize(text, "word", "none")) == len(canonical)


def test_ids_go_by_frequency_and_0_is_unknown():
    vocabulary = make("abracadabra")
    assert vocabulary.tokens == [UNKNOWN, "a", "b", "r", "c", "d"]
    np.testing.assert_array_equal(vocabulary.encode("crab!ü"), [4, 3, 1, 2, 0, 0])
    assert vocabulary.unknown_in("crab!ü!") == ["!", "ü"]
    assert vocabulary.decode([4, 0]) == "c<unk>"


def test_max_vocab_counts_the_unknown_entry_and_keeps_the_most_frequent():
    assert make("abracadabra", max_vocab=3).tokens == [UNKNOWN, "a", "b"]
    assert make("a b a", "word", max_vocab=2).tokens == [UNKNOWN, "a"]


def test_the_letters_rule_is_the_books():
    text = "The Time-Machine, 1895\n by H. G. Wells [1]"
    assert tokenize(text, "char", "letters") == "the time machine by h g wells "
    alphabet = "The quick brown fox jumps over the lazy dog"
    assert len(make(alphabet, "char", "letters")) == 28


def test_a_text_that_has_the_word_unk_means_unknown():
    vocabulary = make("a <unk> b <unk>", "word")
    assert vocabulary.tokens == [UNKNOWN, "a", "b"]
    np.testing.assert_array_equal(vocabulary.encode("b <unk>"), [2, 0])
    assert vocabulary.unknown_in("b <unk> c") == ["c"]  # the word itself is nothing to warn of
    assert make("a b").unknown_in("<unk>") == ["<", "u", "n", "k", ">"]  # characters know no such word


def test_bytes_in_messages_are_hexadecimal():
    assert make("a", "byte").unknown_in("aé!") == ["\\xc3", "\\xa9", "!"]
    assert [readable(token) for token in ("é", "word", 0x41, 0xE9)] == ["é", "word", "A", "\\xe9"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_prompt_is_one_token_of_the_vocabulary(kind):
    vocabulary = make("to be\nor not", kind)
    text, ids = vocabulary.prompt_of(None)
    assert text == "\n" and ids.tolist() == vocabulary.encode("\n").tolist()
    assert vocabulary.prompt_of("to")[1].tolist() == vocabulary.encode("to").tolist()
    cyrillic = make("\u043a\u043e\u0442", kind)  # three letters of two bytes each, the first of which is 0xd0 or 0xd1
    text, ids = cyrillic.prompt_of(None)
    assert ids.tolist() == [1] and text == ("" if kind == "byte" else cyrillic.decode([1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before, text, expected", [("a", "b c", 4), ("\n", "b c", 3), ("a", "\nb", 2)])
def test_a_word_brings_the_blank_before_it(kind, before, text, expected):
    added = characters_after(tokenize(before, kind, "none"), tokenize(text, kind, "none"))
    assert added == (expected if kind == "word" else len(text))


@pytest.mark.parametrize("kind", KINDS)
def test_json_keeps_everything(kind):
    vocabulary = make("größer ist\nbesser", kind)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    np.testing.assert_array_equal(again.encode("besser größer"), vocabulary.encode("besser größer"))
    assert again.decode([1, 2, 3]) == vocabulary.decode([1, 2, 3])


def test_half_a_character_in_bytes_decodes_to_a_replacement():
    vocabulary = make("ü", "byte")
    assert vocabulary.decode(vocabulary.encode("ü")[:1]) == "�"


@pytest.mark.parametrize("kind, expected", [("char", "Qü to be"), ("word", "Qü to be"), ("byte", "Qü to be")])
def test_a_prompt_is_kept_as_it_was_typed(kind, expected):
    vocabulary = make("to be or not to be", kind)
    assert vocabulary.continue_text("Qü", vocabulary.encode(" to be")) == expected


@pytest.mark.parametrize("prompt", ["to be", "to be ", "to be\n\n", "be\t"])
def test_words_go_on_after_a_blank_of_the_prompt(prompt):
    vocabulary = make("to be or not to be\n", "word")
    expected = prompt + ("" if prompt[-1].isspace() else " ") + "or not"
    assert vocabulary.continue_text(prompt, vocabulary.encode("or not")) == expected


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match="unknown corpus.tokens 'chars'; did you mean 'char'"):
        tokenize("text", "chars", "none")
    with pytest.raises(UserError, match="unknown corpus.normalize"):
        tokenize("text", "char", "lower")


def test_tokens_of_one_frequency_are_in_their_own_order():
    assert make("cabac").tokens == [UNKNOWN, "a", "c", "b"]


@pytest.mark.parametrize("kind", ["char", "byte", "word"])
def test_counting_and_encoding_in_chunks(kind, monkeypatch):
    text = "the time\nmachine 漢字 👋 the\nü" * 3 + "z"
    monkeypatch.setattr(vocabulary_module, "CHUNK", 5)
    tokens = tokenize(text, kind, "none")
    assert list(counted(tokens).items()) == list(Counter(tokens).items())  # with the order of appearance
    vocabulary = make(text[: len(text) // 2], kind)
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    assert vocabulary.encode(text).tolist() == [ids.get(token, 0) for token in tokens]
    assert vocabulary.encode("").shape == (0,)


def test_a_vocabulary_of_all_bytes():
    vocabulary = Vocabulary(range(256), kind="byte", normalize="none")
    assert vocabulary.encode_tokens(bytes(range(256))).tolist() == [*range(1, 257)]
