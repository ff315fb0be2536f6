"""`inspect` as a user meets it."""

import json
import shutil

import numpy as np
import pytest

from rnn_lm.analysis import laboratory
from rnn_lm.commands import main
from rnn_lm.plots.laboratory import INSPECTION


@pytest.fixture(scope="module")
def inspected(tmp_path_factory, run_folder):
    """The folder of an inspected run, and what was printed."""
    folder = tmp_path_factory.mktemp("inspected") / "run"
    shutil.copytree(run_folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "KEEP_PROBABILITIES", (0.5, 0.9))
        patch.setattr(laboratory, "LENGTHS", (1,))
        assert main(["inspect", f"--workdir={folder}", "--window=4"]) == 0
    return folder


def test_it_leaves_numbers_and_a_picture_of_each(inspected):
    found = json.loads((inspected / "inspect.json").read_text())
    assert found["window"] == 4 and found["text"].endswith("test split")
    for name in INSPECTION:
        assert found[name]["finding"].endswith((".", ")"))
        assert (inspected / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(found["gradients_by_lag"]["quantiles"]["h"]["0.5"]) == 4
    assert [gate["gate"] for gate in found["jacobians"]["w_hh"]] == ["h"]
    exact = [row for row in found["truncated_gradients"]["rows"] if row["steps"] == 4]
    assert {row["kind"] for row in exact} == {"segment", "window"} and max(row["bias"] for row in exact) < 1e-5
    spread = [row["standard_deviation"] for row in found["randomized_truncation"]["rows"] if row["parameter"] == "all"]
    assert spread[0] > spread[1] > 0
    assert found["clipping"]["share"] == 0 and len(found["clipping"]["lines"]) == 6
    assert {row["way"] for row in found["cost"]["rows"]} == {"cached", "remat", "truncated"}
    assert len(found["strategies"]["tokens"]) == 60 and found["strategies"]["cuts"]["regular"] == [12, 24, 36, 48]


def test_pictures_are_drawn_of_little_too(inspected, tmp_path):
    found = json.loads((inspected / "inspect.json").read_text())
    found["gradients_by_lag"] |= {"effective_memory": None, "predicted_rate": float("nan"), "later_lags": []}
    found["clipping"] |= {"lines": [], "clip_norm": 0.0, "share": None}
    found["cost"]["rows"][0]["seconds"] = None  # as of a gradient that needs too much memory
    found["jacobians"] |= {"lyapunov_exponents": [-np.inf], "standard_errors": [np.nan]}
    for name, draw in INSPECTION.items():
        draw(tmp_path / f"{name}.png", found[name], of="a model")
        assert (tmp_path / f"{name}.png").exists()


def test_mistakes_are_one_line(run_folder, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("the time traveller\n")
    for flags, message in [
        ([], "--workdir is missing"),
        ([f"--workdir={tmp_path}"], "holds no run"),
        ([f"--workdir={run_folder}", "--window=3"], "--window is 3; it must be at least 4"),
        ([f"--workdir={run_folder}", f"--text={short}"], "the text has 19 tokens; a window of 128 and a warm-up"),
        ([f"--workdir={run_folder}", f"--text={tmp_path / 'none'}"], "no such file"),
    ]:
        before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(["inspect", *flags]) == 2
        printed = capsys.readouterr()
        assert message in printed.err.splitlines()[-1] and printed.out == ""
        assert before == {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
