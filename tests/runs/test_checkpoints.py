import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_lm.errors import UserError
from rnn_lm.runs.checkpoints import Checkpoints, fill_tree


def tree(step):
    return {
        "w": jnp.arange(600.0).reshape(20, 30) + step,
        "nested": {"count": jnp.int32(step), "flag": jnp.bool_(True)},
    }


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10, 20 … 60, of which 20 was the best."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in range(10, 70, 10):
        checkpoints.save(step, tree(step), {"best": {"step": min(step, 20)}})
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_the_three_latest_and_the_best_are_kept(folder):
    assert sorted(int(path.name) for path in folder.iterdir()) == [20, 40, 50, 60]


def test_what_was_saved_comes_back(folder):
    checkpoints = Checkpoints(folder)
    arrays, notes = checkpoints.restore(checkpoints.steps()[-1])
    checkpoints.close()
    assert notes["best"]["step"] == 20
    assert set(arrays) == {"w", "nested.count", "nested.flag"}
    for a, b in zip(jax.tree.leaves(fill_tree(tree(0), arrays)), jax.tree.leaves(tree(60)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_notes_that_change_after_a_save_are_those_of_the_save(tmp_path):
    """A save goes on in the background while training changes what its notes were made of."""
    checkpoints, best = Checkpoints(tmp_path / "checkpoints"), {"step": 1, "waited": 0}
    for step in range(1, 6):
        checkpoints.save(step, tree(step), {"best": best})
        best["waited"] += 1
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert [checkpoints.restore(step)[1]["best"]["waited"] for step in checkpoints.steps()] == [0, 2, 3, 4]
    checkpoints.close()


def test_the_best_stays_when_saving_goes_on_later(folder):
    checkpoints = Checkpoints(folder)
    for step in (70, 80, 90):
        checkpoints.save(step, tree(step), {"best": {"step": 20}})
    checkpoints.close()
    assert sorted(int(path.name) for path in folder.iterdir()) == [20, 70, 80, 90]


def test_without_the_best_the_latest_takes_its_place(folder):
    shutil.rmtree(folder / "20")
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.best_step() == 60
    checkpoints.close()


def test_what_cannot_be_written_is_told(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    checkpoints = Checkpoints(folder)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(UserError, match="a checkpoint cannot be written: No space left on device"):
            checkpoints.save(70, tree(70), {"best": {"step": 70}})
    checkpoints.close()


def files(folder: Path):
    return sorted(path for path in (folder / "60").rglob("*") if path.is_file() and path.stat().st_size)


# Orbax abandons the reads of the other arrays when one fails, and they complain later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_never_comes_back_as_if_nothing_had_happened(folder):
    whole, _ = read(folder)
    refused = 0
    for path in files(folder):
        content = path.read_bytes()
        for damaged in (
            content[: len(content) // 2],
            flip(content, len(content) // 2),
            flip(content, len(content) - 1),
        ):
            path.write_bytes(damaged)
            try:
                arrays, _ = read(folder)
            except UserError as error:
                assert "is damaged" in str(error) and "delete that folder" in str(error)
                refused += 1
            else:
                for name, array in whole.items():
                    np.testing.assert_array_equal(arrays[name], array)
        path.write_bytes(content)
    assert refused >= 6


def read(folder):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(60)
    finally:
        checkpoints.close()


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_checkpoint_of_another_model_is_refused(folder):
    arrays, _ = read(folder)
    for template in ({"w": jnp.zeros((2, 2))}, {"other": jnp.zeros(3)}):
        with pytest.raises(UserError, match="do not fit this model"):
            fill_tree(template, arrays)
