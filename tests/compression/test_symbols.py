import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_lm.compression.symbols import Symbols
from rnn_lm.data.vocabulary import Vocabulary

VOCABULARIES = {
    "char": Vocabulary(["e", "t", "ä", "漢", "\n", "👋"], kind="char", normalize="none"),
    "byte": Vocabulary([101, 116, 195, 10], kind="byte", normalize="none"),
}
FILES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    st.lists(st.sampled_from([b"et", "ä漢👋".encode(), b"\xf0\x9f", b"\x82\x82\x82\x82", b"\xed\xa0\x80"])).map(
        b"".join
    ),
)


@pytest.mark.parametrize("kind", VOCABULARIES)
@given(data=FILES)
def test_any_bytes_come_back(kind, data):
    symbols = Symbols(VOCABULARIES[kind])
    codes = symbols.codes(data)
    assert symbols.join(codes) == data
    assert symbols.sizes(codes).sum() == len(data) and symbols.sizes(codes).max(initial=1) <= symbols.max_bytes


@given(data=FILES, size=st.integers(1, 20))
def test_the_first_symbols_can_be_read_alone(data, size):
    """So a lane is read piece by piece, however the bytes of a character or of none fall."""
    symbols = Symbols(VOCABULARIES["char"])
    codes, place, read = symbols.codes(data), 0, []
    while place < len(data):
        part = symbols.codes(data[place : place + 4 * size])[:size]
        read.extend(part)
        place += len(symbols.join(part))
    np.testing.assert_array_equal(read, codes)


@given(data=FILES, place=st.integers(0, 60))
def test_a_cut_is_never_inside_a_character(data, place):
    symbols, place = Symbols(VOCABULARIES["char"]), min(place, len(data))
    place += symbols.shift(io.BytesIO(data), place)
    assert place <= len(data)
    joined = np.concatenate([symbols.codes(data[:place]), symbols.codes(data[place:])])
    np.testing.assert_array_equal(joined, symbols.codes(data))


def test_ids_are_the_vocabularys():
    symbols = Symbols(VOCABULARIES["char"])
    np.testing.assert_array_equal(symbols.ids(symbols.codes("te漢x\n👋".encode() + b"\xff")), [2, 1, 4, 0, 5, 6, 0])


@pytest.mark.parametrize("read_bytes", [1, 3, 2**20])  # characters that fall in two reads are one all the same
def test_a_survey_counts_what_the_vocabulary_lacks(read_bytes, monkeypatch):
    monkeypatch.setattr("rnn_lm.compression.symbols.READ_BYTES", read_bytes)
    data = "tête-à-tête 漢".encode() + b"\xff\xe6\xbc"
    survey = Symbols(VOCABULARIES["char"]).survey(io.BytesIO(data))
    unknown = {ord("ê"): 2, ord("-"): 2, ord("à"): 1, ord(" "): 1, 0xDCFF: 1, 0xDCE6: 1, 0xDCBC: 1}
    assert (survey.size, survey.symbols, survey.characters, survey.unknown) == (len(data), 16, 16, unknown)
    assert survey.mostly_unknown
    of_bytes = Symbols(VOCABULARIES["byte"]).survey(io.BytesIO("eté".encode()))
    assert (of_bytes.symbols, of_bytes.characters, of_bytes.unknown) == (
        4,
        3,
        {0xA9: 1},
    ) and not of_bytes.mostly_unknown
