"""Files that earlier versions wrote are opened: a run, an n-gram model, an archive and a sweep of each format."""

import io
import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import rnn_lm
from rnn_lm.compression.archive import MAGIC, Header, machine
from rnn_lm.compression.compress import decompress
from rnn_lm.data.corpus import load_corpus
from rnn_lm.errors import NewerFormat, UserError
from rnn_lm.files import FORMAT, check_format, read_json, write_json
from rnn_lm.ngram import NGramLM
from rnn_lm.runs.checkpoints import Checkpoints
from rnn_lm.runs.folder import NGRAM, read_summary
from rnn_lm.sweeps.sweep import sweep
from rnn_lm.training.baselines import fit_ngram
from rnn_lm.training.train import train
from tests.golden import make

PACKED = sorted(Path(make.__file__).parent.glob("format_*.tar.xz"))


def without_number(folder):
    """As before files had a number: format 0."""
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "format"}))
    for path in folder.rglob(NGRAM):
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file if name != "format"})


@pytest.fixture(
    params=[pytest.param("0", marks=pytest.mark.slow), *(re.findall(r"\d+", path.name)[0] for path in PACKED)]
)
def golden(request, tmp_path):
    """The unpacked files of one format."""
    number = max(int(request.param), 1)
    shutil.unpack_archive(Path(make.__file__).with_name(f"format_{number}.tar.xz"), tmp_path, filter="data")
    if request.param == "0":
        without_number(tmp_path)
    return tmp_path


def test_there_are_files_of_todays_format(tmp_path):
    assert make.PACKED in PACKED
    shutil.unpack_archive(make.PACKED, tmp_path, filter="data")
    assert (tmp_path / make.ARCHIVE).read_bytes().startswith(MAGIC)


def test_a_run_says_what_it_did(golden):
    got, expected = make.figures(golden / make.RUN, golden / make.TEXT), read_json(golden / make.EXPECTED)
    for mix, figures in expected.items():
        assert got[mix]["tokens"] == figures["tokens"]
        assert got[mix]["nll"] == pytest.approx(figures["nll"], abs=1e-5)
    ngram, counted = NGramLM.load(golden / make.RUN / NGRAM), read_summary(golden / make.RUN)["baselines"]["ngram"]
    assert ngram.order == counted["order"]


def test_a_run_and_a_sweep_go_on(golden):
    config = make.config_with(golden / make.TEXT, steps=24)
    summary = train(config, golden / make.RUN)
    assert summary["steps"] == 24
    first, *_ = (golden / make.RUN / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["step"] == 20  # which was there
    before = {path: path.stat().st_mtime_ns for path in golden.glob("sweep/*/checkpoints/*")}
    result = sweep(make.config_with(golden / make.TEXT), make.MEMBERS, golden / make.SWEEP)
    assert [row["status"] for row in result["members"]] == 2 * ["finished"] and len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in golden.glob("sweep/*/checkpoints/*")}


def test_an_archive_is_decoded_where_it_was_made_and_perhaps_refused_elsewhere(golden):
    model, vocabulary = rnn_lm.load(golden / make.RUN)
    with (golden / make.ARCHIVE).open("rb") as archive:
        made_here = Header.read(archive).made_with == machine()
        archive.seek(0)
        try:
            decompress(model, vocabulary, archive, target := io.BytesIO())
        except UserError as refused:  # the last bit of a probability is another one
            assert not made_here and "\n" not in str(refused) and "made" in str(refused)
        else:
            assert target.getvalue() == (golden / make.TEXT).read_bytes()


def test_every_file_has_a_number_and_a_newer_one_is_refused(golden):
    write_json(golden / "any.json", {"a": 1})
    assert json.loads((golden / "any.json").read_text()) == {"format": FORMAT, "a": 1}
    config, run = make.config_with(golden / make.TEXT), golden / make.RUN
    readers = {
        run / "config.json": lambda: rnn_lm.load(run),
        run / "vocabulary.json": lambda: rnn_lm.load(run),
        run / "summary.json": lambda: train(config, run),
        run / "mixture.json": lambda: rnn_lm.load(run, mix="ngram"),
        golden / make.SWEEP / "results.json": lambda: sweep(config, make.MEMBERS, golden / make.SWEEP),
    }
    newer = rf"has format {FORMAT + 1}, this rnn_lm reads formats up to {FORMAT}; use a newer rnn_lm"
    for path, read in readers.items():
        kept = path.read_text()
        write_json(path, read_json(path) | {"format": FORMAT + 1})
        with pytest.raises(NewerFormat, match=newer):
            read()
        path.write_text(kept)
    with np.load(run / NGRAM) as file:
        np.savez(run / NGRAM, **{**file, "format": FORMAT + 1})
    newer_counts = (run / NGRAM).read_bytes()
    with pytest.raises(NewerFormat, match=newer):
        fit_ngram(run / NGRAM, load_corpus(**config.corpus), lambda: False)
    assert (run / NGRAM).read_bytes() == newer_counts
    with pytest.raises(NewerFormat, match=rf"the archive has format {MAGIC[-1] + 1}"):
        Header.read(io.BytesIO(MAGIC[:-1] + bytes([MAGIC[-1] + 1])))
    with pytest.raises(UserError, match="is damaged: its format is '1'"):
        check_format("it", "1")


@pytest.mark.parametrize("number", [0, FORMAT + 1])
def test_a_checkpoint_has_a_number_too(tmp_path, monkeypatch, number):
    with closing(Checkpoints(tmp_path)) as checkpoints:
        monkeypatch.setattr("rnn_lm.runs.checkpoints.FORMAT", number)
        checkpoints.save(1, {"a": np.ones(3)}, {"best": {"step": 1}})
    with closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        if number > FORMAT:
            with pytest.raises(NewerFormat, match=f"{tmp_path}/1 has format {number}"):
                checkpoints.restore(1)
        else:
            assert list(checkpoints.restore(1)[0]) == ["a"]
