import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from rnn_lm.runs.record import Record, read_metrics


def line(step, split="train"):
    return {"step": step, "tokens": step * 8, "split": split, "nll": 1.0 / step, "perplexity": None}


def test_opened_at_a_step_it_forgets_what_came_later(tmp_path):
    record = Record(tmp_path, 0)
    for step in (10, 20, 30):
        record.write(line(step))
        record.write_sample(step, 5.0, f"=== the text of {step}\r\nüß")
    record.close()
    assert read_metrics(tmp_path) == [line(10), line(20), line(30)]
    for name, torn in [("metrics.jsonl", b'{"step": 3'), ("samples.txt", b"\xc3")]:
        with (tmp_path / name).open("ab") as file:
            file.write(torn)
    record = Record(tmp_path, 20)
    record.write(line(25))
    record.close()
    assert read_metrics(tmp_path) == [line(10), line(20), line(25)]
    samples = (tmp_path / "samples.txt").read_bytes().decode()
    assert "the text of 20\r\nüß" in samples and "the text of 30" not in samples


def test_the_numbers_are_in_tensorboards_event_file(tmp_path):
    record = Record(tmp_path, 0)
    record.write(line(10))
    record.write(line(20, "valid"))
    record.close()
    (path,) = tmp_path.glob("*.tfevents.*")
    seen = {(e.step, value.tag): value.simple_value for e in events(path) for value in e.summary.value}
    assert seen[10, "train/nll"] == pytest.approx(0.1)
    assert seen[20, "valid/nll"] == pytest.approx(0.05)
    assert (10, "train/perplexity") not in seen  # null


def events(path):
    """The records of a TFRecord file: length, checksum, data, checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
