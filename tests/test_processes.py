import jax
import numpy as np
import pytest

from rnn_lm import processes
from rnn_lm.errors import UserError


def test_one_process_is_the_first_and_agrees_with_itself():
    assert processes.is_first()
    assert processes.largest(0.1) == processes.of_first(0.1) == 0.1
    processes.check_same({"text": "a"}, "advice")


@pytest.fixture
def of_three(monkeypatch):
    """Makes this process one of three. `change(contents)` is what the others have, [3, N], at first as this one."""

    def pretend(change):
        def of_all(content):
            contents = np.array(3 * [[*content]], np.uint8)
            change(contents)
            return contents

        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(processes, "_of_all", of_all)

    return pretend


def test_the_largest_and_the_first_value_to_the_bit(of_three):
    def change(contents):
        contents.view(np.float64)[:, 0] = 0.1, 1 / 3, -5.0

    of_three(change)
    assert processes.largest(-5.0) == 1 / 3 and processes.of_first(-5.0) == 0.1


@pytest.mark.parametrize("different", [0, 1, 2])
def test_what_a_process_has_otherwise_is_named(of_three, different):
    def change(contents):
        contents.reshape(3, 3, -1)[2, different, -1] ^= 1

    values = {"config.steps": "3", "text": "abc", "code": "d"}
    of_three(lambda contents: None)
    processes.check_same(values, "advice")
    of_three(change)
    name = list(values)[different]
    with pytest.raises(UserError, match=f"^process 2 of the job has another {name} than process 0; advice$"):
        processes.check_same(values, "advice")


def test_a_folder_that_one_does_not_see(of_three, tmp_path):
    def change(contents):
        contents[2, -1] ^= 1

    of_three(lambda contents: None)
    processes.check_shared(tmp_path)
    of_three(change)
    with pytest.raises(
        UserError, match="^process 2 of the job has another --workdir than process 0; --workdir must be"
    ):
        processes.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_version_of_the_code_changes_with_each_file(monkeypatch, tmp_path):
    seen = set()
    monkeypatch.setattr(processes, "__file__", str(tmp_path / "processes.py"))
    for name, content in (("a.py", "1"), ("a.py", "2"), ("cpu/k.cc", "3"), ("cpu/k.h", "4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        assert processes.code_version() == processes.code_version()
        seen.add(processes.code_version())
    assert len(seen) == 4
