"""`benchmarks/against.py`: what it says of two trees, and that it tells equal ones from others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import against
from benchmarks.against import Failed, Row, alternate, bits, verdict

ROOT = Path(against.__file__).parents[1]
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def timed(ref, now, part="training", name="gru", tokens=0):
    return Row(part, name, tokens, {"ref": ref, "now": now})


def ends(nll, digest="a"):
    return [{"seconds": 1.0, "nll": nll, "digest": digest}]


def test_ratios_are_of_speeds():
    row = timed([[0.02, 0.04], [0.03]], [[0.01, 0.08], [0.06]])
    assert row.ratio() == 2 and row.ratio(against.median) == 0.5
    record = row.record()
    assert record["best"] == {"ref": 0.02, "now": 0.01, "ratio": 2}
    low, high = record["quartiles"]
    assert 0.5 <= low < high <= 0.03 / 0.045 + 1e-9
    assert row.cells()[:6] == ["training", "gru", "20.00 ms a step", "10.00 ms a step", "2.000", "0.500"]
    assert timed([[2.0]], [[1.0]], "sampling", "B1", 500).cells()[2:4] == ["250 tokens/s", "500 tokens/s"]
    assert timed([[2.0]], [[4.0]], "start", "import").cells()[2:] == [
        "2.00 s",
        "4.00 s",
        "0.500",
        "0.500",
        "0.500–0.500",
    ]


def test_turns_are_in_the_order_abba_and_end_where_one_fails():
    asked, row = [], Row("training", "gru")
    found = alternate({"ref": 1, "now": 2}, lambda side: asked.append(side) or side, 2, row)
    assert asked == [2, 1, 1, 2] and found == {"ref": [1, 1], "now": [2, 2]} and not row.errors

    def old(side):
        if side == 1:
            raise Failed("ImportError", "cannot import name 'static_of'")
        return side

    assert alternate({"ref": 1, "now": 2}, old, 9, row) == {"ref": [], "now": [2]}
    assert row.cells() == ["training", "gru", "ImportError", "", "", "", ""]
    assert row.record() == {"part": "training", "name": "gru", "errors": {"ref": "ImportError"}}


@pytest.mark.parametrize(
    "ref, now, same, says",
    [
        (ends(1.5), ends(1.5), True, "same bits"),
        (ends(1.5), ends(1.25), False, "other bits: nll 1.5 → 1.25, -2.5e-01"),
        (ends(1.5), ends(1.5, "b"), False, "other bits, though the same nll 1.5"),
        (ends(1.5, ""), ends(1.5), True, "same nll; parameters cannot be read"),
        (ends(1.5) + ends(1.6), ends(1.5), False, "a side differs from itself, run by run"),
    ],
)
def test_bits(ref, now, same, says):
    result = bits("gru", {"ref": ref, "now": now}, {})
    assert (result["same"], result["says"]) == (same, says)


def test_verdict():
    rows = [timed([[2.0]], [[1.0]]), timed([[1.0]], [[2.0]], name="lstm"), timed([[1.0]], [[9.0]], "start", "import")]
    rows.append(Row("sampling", "B1", errors={"ref": "KeyError"}))
    checks = [bits("gru", {"ref": ends(1.5), "now": ends(1.5)}, {}), bits("lstm", {}, {"ref": "failed"})]
    assert checks[1]["says"] == "ref: failed"
    assert verdict(rows, checks) == (
        "training × 1.000 (median × 1.000), slowest × 0.500, lstm; 1 of 2 runs with the same bits; 1 not measured"
    )


def refused(capsys, ref):
    with pytest.raises(SystemExit) as exit:
        against.main([ref])
    assert exit.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@needs_git
def test_what_git_does_not_know_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(against, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert refused(capsys, "HEAD").startswith(f"error: {tmp_path} is no git checkout")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert refused(capsys, "no-such") == "error: git knows no revision no-such"


@needs_git
@pytest.mark.slow
def test_equal_trees_and_others(tmp_path):
    """In a repository of its own, as the tests may run in a copy without one."""
    tree, out = tmp_path / "tree", tmp_path / "out.json"
    for name in ("rnn_lm", "benchmarks", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tree)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], cwd=tree, check=True)

    def run(*options):
        command = [sys.executable, "-m", "benchmarks.against", "HEAD", "--seconds=0.1", f"--out={out}", *options]
        printed = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout
        return json.loads(out.read_text()), printed

    for only, part in [("training char.py", "training"), ("sampling B1", "sampling"), ("start import", "start")]:
        results, _ = run(f"--only={only}")
        assert {row["part"] for row in results["rows"]} == {part} and not any(
            "errors" in row for row in results["rows"]
        )
    results, printed = run("--only=bits gru")
    assert [check["says"] for check in results["bits"]] == ["same bits"]
    assert "1 of 1 runs with the same bits" in printed and str(results["machine"]["cores"]) in printed

    fields = tree / "rnn_lm" / "fields.py"
    before = '"model.initial_radius": number(1.0,'
    assert before in fields.read_text()
    fields.write_text(fields.read_text().replace(before, before.replace("1.0", "0.9")))
    results, printed = run("--only=bits gru")
    [check] = results["bits"]
    assert check["same"] is False and check["says"].startswith("other bits: nll ") and not results["rows"]

    (tree / "run.py").write_text("raise SystemExit('broken')")
    results, printed = run("--only=--help")
    assert results["rows"][0]["errors"] == {"now": "failed"} and "1 not measured" in printed
