import os
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from rnn_lm.runs.record import Record, read_metrics


def line(step, split="train"):
    return {"step": step, "tokens": step * 8, "split": split, "nll": 1.0 / step, "perplexity": None}


def test_opened_at_a_step_it_forgets_what_came_later(tmp_path):
    record = Record(tmp_path, 0)
    for step in (10, 20, 30):
        record.write(line(step))
        record.write_sample(step, 5.0, f"=== the text of {step}\r\nüß === step 99, ")
    assert read_metrics(tmp_path) == [line(10), line(20), line(30)]
    for name, torn in [("metrics.jsonl", b'{"step": 3'), ("samples.txt", b"\xc3")]:
        with (tmp_path / name).open("ab") as file:
            file.write(torn)
    record = Record(tmp_path, 20)
    record.write(line(25))
    assert read_metrics(tmp_path) == [line(10), line(20), line(25)]
    samples = (tmp_path / "samples.txt").read_bytes().decode()
    assert "the text of 20\r\nüß" in samples and "the text of 30" not in samples
    Record(tmp_path, 0)
    assert [(tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.txt")] == [b"", b""]


def test_a_line_that_a_crash_cut_short_goes_and_those_before_it_are_never_rewritten(tmp_path):
    path, record = tmp_path / "metrics.jsonl", Record(tmp_path, 0)
    for step in (10, 20):
        record.write(line(step, "valid"))
    whole, inode = path.read_bytes(), path.stat().st_ino
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) + 1):
        path.write_bytes(whole[:length])
        Record(tmp_path, 20)
        kept = path.read_bytes()
        assert kept == (whole if length >= len(whole) - 1 else whole[:first])  # a line may lack its end alone
        assert path.stat().st_ino == inode
    assert read_metrics(tmp_path, "valid") == [line(10, "valid"), line(20, "valid")]
    assert read_metrics(tmp_path, "train") == []


def test_what_a_long_log_is_cut_to_is_not_read(tmp_path):
    """Nor are lines before it that nothing could parse."""
    (tmp_path / "metrics.jsonl").write_bytes(b"?" * 10_000 + b'\n{"step": 10}\n{"step": 11}\n')
    Record(tmp_path, 10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"?" * 10_000 + b'\n{"step": 10}\n'


def test_the_numbers_of_a_line_are_one_event_of_tensorboards_file(tmp_path):
    record = Record(tmp_path, 0)
    record.write(line(10) | {"grad_norm": float("inf"), "learning_rate": 0.5})
    record.write(line(20, "valid"))
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, first, second = events(path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == SessionLog.START and start.step == 1  # earlier files are void from there
    assert first.step == 10 and {value.tag: value.simple_value for value in first.summary.value} == {
        "train/tokens": 80, "train/nll": pytest.approx(0.1), "train/learning_rate": 0.5,  # what is finite
    }  # fmt: skip
    assert second.step == 20 and "valid/nll" in [value.tag for value in second.summary.value]


def events(path):
    """The records of a TFRecord file: length, checksum, data, checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        sums = content[8:12] + content[12 + length : 16 + length]
        assert sums == struct.pack("<II", masked_crc32c(content[:8]), masked_crc32c(data))
        yield Event.FromString(data)
        content = content[16 + length :]


def test_records_take_no_descriptors_and_no_threads(tmp_path):
    def taken():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    records, before = [], taken()
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        records.append(Record(tmp_path / str(number), 0))
        records[-1].write(line(10))
    assert taken() == before
