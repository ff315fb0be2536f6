"""Files that earlier versions wrote are opened: a run, an n-gram model, an archive and a sweep of each format."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import rnn_lm
from rnn_lm.errors import UserError
from rnn_lm.files import FORMAT, read_json, write_json
from rnn_lm.inference.archive import MAGIC, Header, machine
from rnn_lm.inference.compress import decompress
from rnn_lm.ngram import NGramLM
from rnn_lm.training.loop import train
from rnn_lm.training.run_folder import NGRAM, read_summary
from rnn_lm.training.sweep import sweep
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


def test_there_are_files_of_todays_format():
    assert make.PACKED in PACKED


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


def test_an_archive_is_decoded_where_it_was_made_and_refused_elsewhere(golden):
    model, vocabulary = rnn_lm.load(golden / make.RUN)
    with (golden / make.ARCHIVE).open("rb") as archive:
        made_with = Header.read(archive).made_with
        archive.seek(0)
        if made_with == machine():
            decompress(model, vocabulary, archive, target := io.BytesIO())
            assert target.getvalue() == (golden / make.TEXT).read_bytes()
        else:
            with pytest.raises(UserError, match="was made with.*this is") as refused:
                decompress(model, vocabulary, archive, io.BytesIO())
            assert "\n" not in str(refused.value)


def test_every_file_has_a_number_and_a_newer_one_is_refused(golden):
    write_json(golden / "any.json", {"a": 1})
    assert json.loads((golden / "any.json").read_text()) == {"format": FORMAT, "a": 1}
    newer = rf"is of format {FORMAT + 1}, this version of rnn_lm reads up to {FORMAT}; use a newer one"
    for name in ("config.json", "vocabulary.json", "summary.json"):
        path = golden / make.RUN / name
        kept = path.read_text()
        write_json(path, read_json(path) | {"format": FORMAT + 1})
        with pytest.raises(UserError, match=newer):
            rnn_lm.load(golden / make.RUN)
            train(make.config_with(golden / make.TEXT), golden / make.RUN)
        path.write_text(kept)
    path = golden / make.SWEEP / "results.json"
    write_json(path, read_json(path) | {"format": FORMAT + 1})
    with pytest.raises(UserError, match=newer):
        sweep(make.config_with(golden / make.TEXT), make.MEMBERS, golden / make.SWEEP)
    with np.load(golden / make.RUN / NGRAM) as file:
        np.savez(golden / NGRAM, **{**file, "format": FORMAT + 1})
    with pytest.raises(UserError, match=rf"it {newer}\); delete it to have it counted again"):
        NGramLM.load(golden / NGRAM)
    with pytest.raises(UserError, match=rf"the archive is of format {MAGIC[-1] + 1}"):
        Header.read(io.BytesIO(MAGIC[:-1] + bytes([MAGIC[-1] + 1])))
