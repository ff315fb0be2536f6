import json

from rnn_lm.training.loop import train
from rnn_lm.training.run_folder import METRICS
from tests.conftest import small_config


def lines(workdir):
    """What was logged, but for the time that it took."""
    found = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in found]


def test_a_trace_names_the_parts_of_a_step_and_changes_nothing(text_file, run_folder, tmp_path, capsys):
    train(small_config(text_file), tmp_path / "run", profile=tmp_path / "trace")
    assert lines(tmp_path / "run") == lines(run_folder)
    [trace], [readable] = (list((tmp_path / "trace").rglob(name)) for name in ("*.xplane.pb", "perfetto_trace.json.gz"))
    assert str(readable) in capsys.readouterr().err
    for part in ("batch", "gather", "recurrence", "output_layer", "optimizer"):
        assert f"/{part}/".encode() in trace.read_bytes() or f"({part})/".encode() in trace.read_bytes()
