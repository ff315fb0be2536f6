import hashlib
import http.client
import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from rnn_lm.data import corpus as module
from rnn_lm.data.corpus import clean_markdown, load_corpus, read_source, recall, shakespeare, text_split
from rnn_lm.data.texts import read_files
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError

SHARED = Path(__file__).parents[2].with_name("shared") / "data"


def load(path, **changes):
    settings = {"source": "shakespeare", "path": str(path), "tokens": "char", "normalize": "none", "max_vocab": 0}
    settings |= {"max_tokens": 0, "valid_fraction": 0.2, "test_fraction": 0.1}
    return load_corpus(**settings | changes)


@pytest.fixture
def letters(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("abcdefghij" * 10 + "üü", encoding="utf-8")
    return path


def test_the_parts_are_contiguous_and_the_vocabulary_is_the_training_parts(letters):
    corpus = load(letters)
    text = letters.read_text()
    train, valid, test = (corpus.vocabulary.decode(s.ids) for s in (corpus.train, corpus.valid, corpus.test))
    assert train + valid == text[:92] and len(valid) == 20 and len(corpus.test.ids) == 10
    assert test == "cdefghij<unk><unk>"
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (corpus.test.tokens, corpus.test.characters) == (9, 9)


def test_max_tokens_keeps_the_first_of_the_training_part_after_the_split(letters):
    corpus = load(letters, max_tokens=7)
    assert corpus.vocabulary.decode(corpus.train.ids) == "abcdefg"
    np.testing.assert_array_equal(corpus.valid.ids == 0, load(letters).valid.ids > 7)
    assert len(corpus.valid.ids) == 20


def test_scored_characters_are_those_behind_all_tokens_but_the_first(letters):
    assert load(letters, tokens="byte").test.characters < load(letters, tokens="byte").test.tokens  # ü is two bytes
    words = Vocabulary.of(["to", "be"], kind="word", normalize="none")
    split = text_split(words, "to be\nor not")  # scored: " be", "\n", "or", " not"
    assert (split.tokens, split.characters, split.tokens_per_character) == (4, 10, 0.4)


@pytest.mark.parametrize(
    "tokens, normalize, text, comparable",
    [
        ("char", "none", "a  b\n" * 20, True),
        ("byte", "none", "ä  b\n" * 20, True),
        ("word", "none", "a b\n" * 20, True),
        ("word", "none", "a b\n" * 20 + "a  b\n", False),
        ("word", "none", "  if a:\n    b\n" * 20, False),
        ("word", "none", "a b \n" * 20, False),
        ("word", "none", "a\tb\n" * 20, False),
        ("char", "letters", "a b " * 20, True),
        ("char", "letters", "A b " * 20, False),
    ],
)
def test_bits_per_character_compare_where_the_tokens_are_the_text(tmp_path, tokens, normalize, text, comparable):
    path = tmp_path / "text.txt"
    path.write_text(text)
    corpus = load(path, tokens=tokens, normalize=normalize)
    assert corpus.train.comparable is corpus.valid.comparable is corpus.test.comparable is comparable
    assert text_split(corpus.vocabulary, text).comparable is comparable


def test_folders_and_globs_are_read_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/1.txt", "a.txt", ".hidden", "c.md"):
        (tmp_path / name).write_text(name)
    assert read_files(str(tmp_path)) == "a.txt\nb/1.txt\nc.md"
    assert read_files(str(tmp_path / "**/*.txt")) == "a.txt\nb/1.txt"
    assert read_files(str(tmp_path / "c.md"), str(tmp_path / "a.txt")) == "c.md\na.txt"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"a\0b", "a binary file"),
        ("grün".encode("latin1"), r"not UTF-8 \(byte 2 is 0xfc\)"),
        (b"a" * 500, "1 distinct tokens, so there is nothing to learn"),
        (b"ab", "1 distinct|leave 0 for the validation split|0 distinct"),
        (b"abcdef", "leave 1 for the validation split, .* a larger corpus.valid_fraction"),
    ],
)
def test_texts_that_will_not_do(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file in it"):
        load(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="all files in it are empty"):
        load(tmp_path)


def test_empty_files_in_a_folder_and_byte_order_marks_do_not_count(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").write_text("two")
    assert read_files(str(tmp_path)) == "one\r\n\ntwo"
    with pytest.raises(UserError, match="the path of the text is empty"):
        read_files("")


def test_unknown_sources_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'shakespeare'"):
        read_source("shakespear")


def test_markdown_becomes_the_plain_text_of_a_play():
    markdown = "# Hamlet  \n\n## ACT I\n\n\n_Enter \\[Ghost\\]_  \n\n**BERNARDO**  \nWho's there?  \n'Tis I,\\--he\n"
    assert clean_markdown(markdown) == ("Hamlet\n\nACT I\n\nEnter [Ghost]\n\nBERNARDO\nWho's there?\n'Tis I,--he\n")


def test_the_embedded_corpus():
    text = shakespeare()
    assert 4_900_000 < len(text) < 5_000_000
    assert not set("*_#\\") & set(text)
    assert " \n" not in text and "\n\n\n" not in text
    assert text.startswith("A Midsummer Night's Dream\n\nACT I\n")
    assert "\n\nHAMLET\nTo be, or not to be: that is the question:\n" in text
    digest = "34b06ebf5cdd30331153f99e3f6b11ef332d1a14e6b889ac2fb879f0e1016d24"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_download_is_checked_and_cached(tmp_path, monkeypatch):
    content, calls = b"the time machine", []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(module.DOWNLOADS, "time_machine", ("http://host/tm.txt", hashlib.sha256(content).hexdigest()))

    def urlopen(url, timeout):
        calls.append(url)
        return io.BytesIO(answers.pop())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    answers = [b"something else"]
    with pytest.raises(UserError, match="has changed"):
        read_source("time_machine")
    assert not list(tmp_path.rglob("*.txt"))
    answers = [content]
    assert read_source("time_machine") == read_source("time_machine") == content.decode()
    assert len(calls) == 2
    (tmp_path / "rnn_lm" / "time_machine.txt").write_bytes(b"damaged")
    answers = [content]
    assert read_source("time_machine") == content.decode()


@pytest.mark.parametrize("error", [OSError("no route to host"), http.client.IncompleteRead(b"abc", 997)])
def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch, error):
    def urlopen(url, timeout):
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError) as caught:
        read_source("tiny_shakespeare")
    for part in ("https://raw.githubusercontent.com/karpathy/char-rnn", str(tmp_path), "--config.corpus.path=FILE"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "source, name", [("time_machine", "timemachine.txt"), ("tiny_shakespeare", "tinyshakespeare.txt")]
)
def test_the_sums_are_those_of_the_published_files(source, name):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there; the sums of the downloads are checked where it is")
    assert hashlib.sha256((SHARED / name).read_bytes()).hexdigest() == module.DOWNLOADS[source][1]


def test_the_time_machine_has_28_entries():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there; test_the_letters_rule_is_the_books covers the rule")
    corpus = load(SHARED / "timemachine.txt", normalize="letters", max_tokens=10_000)
    assert len(corpus.vocabulary) == 28
    assert len(corpus.train.ids) == 10_000


def test_the_recall_task_has_a_lag_of_ten():
    lines = recall(500).splitlines()
    assert all(len(line) == 11 and line[10] == line[0] and line[1:10] == "abcdefghi" for line in lines)
    assert {line[0] for line in lines} == set("ABCDEFGH")
    assert recall(500) == recall()[: 500 * 12]
