import gzip
import json
import re

import pytest

from rnn_lm.errors import UserError
from rnn_lm.nn import native
from rnn_lm.runs.folder import METRICS
from rnn_lm.training.profile import seconds_of_parts
from rnn_lm.training.train import train
from tests.conftest import small_config


def lines(workdir):
    """What was logged, but for the time that it took."""
    found = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in found]


def test_a_trace_names_the_parts_of_a_step_and_changes_nothing(text_file, run_folder, tmp_path, capsys):
    train(small_config(text_file), tmp_path / "run", profile=tmp_path / "trace")
    assert lines(tmp_path / "run") == lines(run_folder)
    [trace], [readable] = (list((tmp_path / "trace").rglob(name)) for name in ("*.xplane.pb", "perfetto_trace.json.gz"))
    shown = capsys.readouterr().err
    assert str(readable) in shown
    in_scan = () if native.is_available() else ("gather",)  # machine code gathers rows of w_xh itself
    for part in ("batch", *in_scan, "recurrence", "output_layer", "optimizer"):
        assert f"/{part}/".encode() in trace.read_bytes() or f"({part})/".encode() in trace.read_bytes()
        assert re.search(rf"^  {part} +\d+\.\d\d ms +\d+%$", shown, re.MULTILINE)
    assert re.search(r"^  recurrence backward +\d", shown, re.MULTILINE)


def test_a_finished_run_and_what_is_no_folder_are_refused(text_file, run_folder, tmp_path):
    with pytest.raises(UserError, match="--profile: this run is done; give another --workdir"):
        train(small_config(text_file), run_folder, profile=tmp_path / "trace")
    with pytest.raises(UserError, match=f"--profile={text_file} is not a folder"):
        train(small_config(text_file), tmp_path / "run", profile=text_file)
    assert not list(tmp_path.iterdir())


def test_times_go_to_the_innermost_part_and_loops_are_not_counted_twice(tmp_path):
    program = """
      %fusion.1 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/recurrence/gather/add"}
      ROOT dot.2 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(f)/transpose(jvp(recurrence))/dot"}
      %gather.5 = s32[2]{0} gather(%d), metadata={op_name="jit(f)/while/body/batch/gather"}
      %while.3 = (f32[2]) while(%c), metadata={op_name="jit(f)/recurrence/while"}
    """
    times = {"fusion.1": 3e3, "dot.2": 2e3, "while.3": 9e3, "copy.4": 1e3, "gather.5": 5e3}
    events = [{"dur": 7e3, "name": "python"}, *({"dur": t, "args": {"hlo_op": name}} for name, t in times.items())]
    (tmp_path / "trace.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": 2 * events}).encode()))
    expected = {"batch": 10e-3, "gather": 6e-3, "recurrence backward": 4e-3, "other": 2e-3}
    assert seconds_of_parts(tmp_path / "trace.gz", program) == pytest.approx(expected)
