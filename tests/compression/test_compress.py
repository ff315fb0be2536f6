import io
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import rnn_lm
from rnn_lm.compression import codec
from rnn_lm.compression import compress as module
from rnn_lm.compression.archive import CODED, STORED, Header, write_block
from rnn_lm.compression.compress import compress, decompress
from rnn_lm.compression.lanes import TOTAL, frequencies_of
from rnn_lm.data.corpus import text_split
from rnn_lm.data.vocabulary import Vocabulary
from rnn_lm.errors import UserError
from rnn_lm.inference.evaluate import evaluate
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.models import RNNLM
from tests.conftest import make_text

LETTERS = Vocabulary(list("etaoin shr\n"), kind="char", normalize="none")


@pytest.fixture(scope="module")
def model():
    return RNNLM(len(LETTERS), 8, rngs=nnx.Rngs(0))


def packed(model, vocabulary, data, **options):
    target = io.BytesIO()
    report = compress(model, vocabulary, io.BytesIO(data), target, **options)
    assert report.archive_bytes == len(target.getvalue())
    return target.getvalue(), report


def unpacked(model, vocabulary, archive):
    target = io.BytesIO()
    report = decompress(model, vocabulary, io.BytesIO(archive), target)
    assert report.archive_bytes == len(archive) and report.file_bytes == len(target.getvalue())
    return target.getvalue()


def changed(archive, blocks=None, **changes):
    """The archive with other fields in its header, or with other blocks, and checksums that are right."""
    source, target = io.BytesIO(archive), io.BytesIO()
    replace(Header.read(source), **changes).write(target)
    return target.getvalue() + (source.read() if blocks is None else blocks)


def block(kind, content, raw):
    target = io.BytesIO()
    write_block(target, kind, content, raw)
    return target.getvalue()


def header_size(archive):
    source = io.BytesIO(archive)
    Header.read(source)
    return source.tell()


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=100),
        st.text(max_size=60).map(str.encode),
        st.lists(st.sampled_from([b"the ", b"sea\n", "ü".encode(), "漢".encode(), b"\xe6\xbc", b"\x80"])).map(b"".join),
    )
)
@pytest.mark.slow
def test_any_file_comes_back(model, data):
    archive, _ = packed(model, LETTERS, data, verify=False)
    assert unpacked(model, LETTERS, archive) == data


@pytest.mark.parametrize(
    "data",
    [b"", b"e", b"\xff", bytes(range(256)), np.random.default_rng(0).bytes(100_000), 
     "sea ä sea 漢 مرحبا\n".encode() * 60, b"\x80" * 50 + b"tea " * 100, "no tea ü".encode() * 30],
    ids=["empty", "one byte", "one bad byte", "all bytes", "random", "scripts", "cut lanes", "one unknown"],
)  # fmt: skip
@pytest.mark.parametrize("dynamic", [False, True])
def test_odd_files_come_back_from_several_lanes_and_blocks(model, data, dynamic, monkeypatch):
    monkeypatch.setattr(module, "LANE_SYMBOLS", 40)
    monkeypatch.setattr(module, "MAX_LANES", 3)
    monkeypatch.setattr(codec, "BLOCK_SYMBOLS", 32)
    archive, report = packed(model, LETTERS, data, dynamic=dynamic)
    assert unpacked(model, LETTERS, archive) == data
    assert len(archive) < len(data) * (1 + 19 / 96) + 400  # 13 bytes a block of 96, and 2 for each of its 3 lanes
    assert report.model_bits <= 8 * len(data)


@pytest.fixture(scope="module")
def trained(run_folder):
    return rnn_lm.load(run_folder)


def test_what_evaluate_reports_is_what_the_archive_takes(trained):
    """The proof of the perplexity: the same text, in as many bits."""
    model, vocabulary = trained
    text = make_text(lines=3700, seed=9)
    archive, report = packed(model, vocabulary, text.encode())
    payload = 8 * (len(archive) - header_size(archive))
    assert payload == pytest.approx(report.model_bits, rel=0.01)
    split = text_split(vocabulary, text)
    assert split.tokens > 100_000 and split.unknown == 0
    assert payload == pytest.approx(evaluate(model, split.ids).nats / math.log(2), rel=0.03)


@pytest.mark.slow
def test_a_model_that_learns_needs_fewer_bits(trained):
    model, vocabulary = trained
    data = ("there sat a cat on a mat\n" * 400).encode()
    archive, report = packed(model, vocabulary, data, dynamic=True)
    assert report.model_bits < 0.9 * packed(model, vocabulary, data)[1].model_bits
    assert unpacked(model, vocabulary, archive) == data


def test_what_no_model_knows_hardly_grows(model):
    data = np.random.default_rng(0).bytes(200_000)
    assert len(packed(model, LETTERS, data)[0]) < 1.01 * len(data) + 400


def test_what_a_model_gets_wrong_is_kept_as_it_is():
    model = RNNLM(len(LETTERS), 8, rngs=nnx.Rngs(0))
    model.b_q[1] = 50.0  # sure of the letter e, which never comes
    data = b"soon at noon\n" * 50
    archive, report = packed(model, LETTERS, data)
    assert report.model_bits == 8 * len(data) and unpacked(model, LETTERS, archive) == data


@pytest.mark.parametrize(
    "other",
    [
        lambda size: MLPLM(size, 8, context=3, embed_dim=4, rngs=nnx.Rngs(0)),
        lambda size: RNNLM(size, 8, cell="lstm", num_layers=2, embed_dim=8, tie=True, dropout=0.5,
                           dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    ],
    ids=["mlp", "lstm"],
)  # fmt: skip
def test_any_model_will_do(other):
    model, data = other(len(LETTERS)), "tea ä\n".encode() * 40
    for dynamic in (False, True):
        assert unpacked(model, LETTERS, packed(model, LETTERS, data, dynamic=dynamic)[0]) == data


def test_bytes_are_read_by_a_model_of_bytes():
    vocabulary = Vocabulary(list(b"etaoin \xc3"), kind="byte", normalize="none")
    model = RNNLM(len(vocabulary), 8, rngs=nnx.Rngs(0))
    data = "tea ät noon é\xff".encode() * 20
    archive, report = packed(model, vocabulary, data)
    assert unpacked(model, vocabulary, archive) == data and report.characters == len(data.decode())


@pytest.fixture(scope="module")
def archive(model):
    data = ("sea and tea " * 40 + "ü").encode()
    return packed(model, LETTERS, data)[0], data


def test_whatever_is_damaged_is_refused(model, archive):
    whole, data = archive
    rng = np.random.default_rng(0)
    damaged = [whole[:size] for size in rng.choice(len(whole), 70, replace=False)]
    for place in rng.integers(0, len(whole), 70):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
    for place in rng.integers(0, len(whole), 40):
        damaged.append(whole[:place] + rng.bytes(rng.integers(1, 9)) + whole[place:])
    damaged += [rng.bytes(size) for size in rng.integers(0, 600, 10)] + [whole + whole, whole + b"\0"]
    damaged += [data, b"", whole[:8] + b"\xff" * 8, whole[:8] + b"\0" * 8, whole[8:], whole[::-1]]
    damaged += [whole[:place] + bytes(20) + whole[place + 20 :] for place in (0, 8, 60, 200)]
    assert len(damaged) >= 200
    for bad in damaged:
        with pytest.raises(UserError, match="archive"):
            unpacked(model, LETTERS, bad)


def test_what_is_wrong_behind_right_checksums_is_refused(model, archive):
    whole, data = archive
    start, rng = len(changed(whole, blocks=b"")), np.random.default_rng(0)
    raw, size = data[:40], len(data).to_bytes(2, "little")
    wrong = [block(CODED, rng.bytes(4 * words), data) for words in (0, 1, 5, 50)] + [
        block(CODED, bytes([255] * 40), data)
    ]
    wrong += [block(CODED, b"abc", data), block(STORED, b"", data), block(STORED, b"\xff", data)]
    wrong += [block(STORED, bytes(2), b""), block(STORED, b"\x05\x00" + raw, raw), block(7, whole[start:], data)]
    wrong += [block(STORED, b"\x28\x00" + raw, raw), 40 * block(STORED, b"\x28\x00" + raw, raw)]
    wrong += [block(STORED, size + data[::-1], data[::-1])]  # its own checksums are right, the file's is not
    for blocks in wrong:
        with pytest.raises(UserError, match="archive is damaged"):
            unpacked(model, LETTERS, changed(whole, blocks=blocks))
    for size in (0, len(data) - 1, len(data) + 1, 10**9):
        with pytest.raises(UserError, match="archive is damaged"):
            unpacked(model, LETTERS, changed(whole, size=size))


@pytest.mark.parametrize("after", [b"sea and sea " * 40, b"too short", b"no more of this, but Q\xff" * 40])
def test_a_file_that_changes_meanwhile_is_found_out(model, after, monkeypatch):
    source = io.BytesIO(b"sea and tea " * 40)
    original = module.Symbols.survey

    def survey(self, file, *arguments):
        result = original(self, file, *arguments)
        source.seek(0)
        source.truncate()
        source.write(after)
        return result

    monkeypatch.setattr(module.Symbols, "survey", survey)
    with pytest.raises(UserError, match="changed while it was read"):
        compress(model, LETTERS, source, io.BytesIO())


def test_an_archive_belongs_to_its_model_and_machine(model, archive):
    whole, _ = archive
    other = RNNLM(len(LETTERS), 8, rngs=nnx.Rngs(1))
    with pytest.raises(UserError, match="another model"):
        unpacked(other, LETTERS, whole)
    swapped = Vocabulary([*LETTERS.tokens[2:], LETTERS.tokens[1]], kind="char", normalize="none")
    with pytest.raises(UserError, match="another model"):
        unpacked(model, swapped, whole)
    made_with = {**Header.read(io.BytesIO(whole)).made_with, "cores": "77"}
    with pytest.raises(UserError, match="other probabilities than .*: cores 77 there, .* here"):
        unpacked(model, LETTERS, changed(whole, probe="0", made_with=made_with))
    del made_with["machine code"]  # as archives of before
    with pytest.raises(UserError, match="machine code not said there, .* here"):
        unpacked(model, LETTERS, changed(whole, probe="0", made_with=made_with))
    with pytest.raises(UserError, match="format 9"):
        unpacked(model, LETTERS, whole[:7] + b"\x09" + whole[8:])


def test_what_does_not_decode_is_not_written(model, monkeypatch):
    """A probability that differs by one part in four million on the way back spoils the file: it is found at once."""
    original, calls = codec._shares, []

    def shares(frequencies):
        calls.append(1)
        if len(calls) == 120:
            frequencies = frequencies + np.array([1] + [0] * (len(LETTERS) - 2) + [-1])
        return original(frequencies)

    monkeypatch.setattr(codec, "_shares", shares)
    with pytest.raises(UserError, match="does not decode to the file"):
        packed(model, LETTERS, b"to see or " * 10)


def test_a_model_of_words_is_refused(model):
    with pytest.raises(UserError, match="words"):
        packed(model, Vocabulary(["a"], kind="word", normalize="none"), b"a")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), st.sampled_from([0.0, 1.0, math.nan]))
def test_frequencies_are_whole_and_none_is_0(values, scale):
    probs = np.array([values, np.full(4, 0.25)], np.float32)
    probs[0] = probs[0] / max(probs[0].sum(), 1e-9) * scale
    frequencies = np.asarray(frequencies_of(jnp.asarray(probs)))
    assert (frequencies.sum(1) == TOTAL).all() and (frequencies >= 1).all()
    np.testing.assert_array_equal(codec._shares(frequencies) * TOTAL, frequencies)
    if scale == 1 and probs[0].sum() > 0.9:
        np.testing.assert_allclose(frequencies[0] / TOTAL, probs[0], atol=5e-6)
