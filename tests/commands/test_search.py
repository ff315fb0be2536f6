"""`sweep` of a file with search(trial), as a user meets it."""

import re

import pytest

from tests.conftest import SEARCH_FILE

pytest.importorskip("optuna")


@pytest.mark.slow
def test_a_command_line_of_a_search(tmp_path, text_file, cli):
    path, workdir = tmp_path / "rates.py", tmp_path / "search"
    path.write_text(SEARCH_FILE.format(steps=60, trials=12, path=str(text_file)))
    code, out, err = cli("sweep", f"--config={path}", f"--workdir={workdir}")
    assert code == 0 and "Lowest validation nats as trials finished: " in out
    assert "Importance for the loss, by PED-ANOVA over the finished trials: rate 100%" in out.replace("\n", " ")
    for picture in ("history.png", "importances.png", "learning_curves.png", "loss_by_learning_rate.png"):
        assert str(workdir / "plots" / picture) in out and (workdir / "plots" / picture).exists()
    assert re.search(r"… and 2 more", out)


@pytest.mark.parametrize(
    ("more", "flags", "message"),
    [
        ("", ["--shard=0/2"], "--shard is for sweep()"),
        ("def sweep():\n    return [{}]\n", [], "has both sweep() and search(trial); remove one of them"),
        ("def search(trial):\n    return 1 // 0\n", [], "return 1 // 0: ZeroDivisionError"),
        ("del search\n", [], "has no sweep() that returns a list of dicts, field name → value, and no search(trial)"),
        ("del search\ndef sweep():\n    return [{}]\n", ["--storage=x://y"], "--storage is for a config file with"),
        ("", ["--config.sweep.sampler=tp"], "did you mean 'tpe'"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, text_file, cli, more, flags, message):
    path = tmp_path / "rates.py"
    path.write_text(SEARCH_FILE.format(steps=60, trials=12, path=str(text_file)) + more)
    code, _, err = cli("sweep", f"--config={path}", f"--workdir={tmp_path / 'x'}", *flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not (tmp_path / "x").exists()
