import pytest

from rnn_lm.training.metrics import Record, read_metrics


def line(step, split="train"):
    return {"step": step, "tokens": step * 8, "split": split, "nll": 1.0 / step, "perplexity": None}


def test_opened_at_a_step_it_forgets_what_came_later(tmp_path):
    record = Record(tmp_path, 0)
    for step in (10, 20, 30):
        record.write(line(step))
        record.write_sample(step, 5.0, f"=== the text of {step}\nüß")
    record.close()
    assert read_metrics(tmp_path) == [line(10), line(20), line(30)]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    record = Record(tmp_path, 20)
    record.write(line(25))
    record.close()
    assert read_metrics(tmp_path) == [line(10), line(20), line(25)]
    samples = (tmp_path / "samples.txt").read_text()
    assert "the text of 20\nüß" in samples and "the text of 30" not in samples


def test_tensorboard_reads_the_events(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    record = Record(tmp_path, 0)
    record.write(line(10))
    record.write(line(10, "valid"))
    record.close()
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/nll")] == [(10, pytest.approx(0.1))]
    assert "valid/nll" in events.Tags()["scalars"]
