"""Modules of the user's own: `--import`, and what it leaves."""

import sys

import pytest

from rnn_lm import plugins
from rnn_lm.errors import UserError
from rnn_lm.nn.cells import ElmanCell, GRUCell
from rnn_lm.nn.registry import CELLS, register_cell, takes


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    monkeypatch.setattr(plugins, "IMPORTED", [])
    cells, modules, path = dict(CELLS), set(sys.modules), list(sys.path)
    yield
    CELLS.clear()
    CELLS.update(cells)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_file_is_run_once_and_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("RUNS = []")
    (tmp_path / "mine.py").write_text("import beside\nbeside.RUNS.append(__name__)")
    for _ in range(2):
        plugins.import_module_or_file(str(tmp_path / "mine.py"))
    assert len(sys.modules["beside"].RUNS) == 1
    assert plugins.IMPORTED == [str(tmp_path / "mine.py")]


def test_a_module_is_found_in_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "rnn_lm_test_module.py").write_text("")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    plugins.import_module_or_file("rnn_lm_test_module")
    assert plugins.IMPORTED == ["rnn_lm_test_module"] and sys.path == before


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("none.py", None, "--import=.*none.py: no such file"),
        ("no_such_module", None, "--import=no_such_module: ModuleNotFoundError: No module named"),
        ("bad.py", "\n1 / 0", "/bad.py:2: 1 / 0: ZeroDivisionError: division by zero"),
        ("bad.py", "raise SystemExit(3)", "/bad.py:1: raise SystemExit.3.: SystemExit: 3"),
        ("bad.py", "def", "/bad.py:1: def: SyntaxError: invalid syntax$"),
    ],
)
def test_what_cannot_be_imported_is_the_users_mistake(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    given = str(tmp_path / name) if name.endswith(".py") else name
    with pytest.raises(UserError, match=message):
        plugins.import_module_or_file(given)
    assert plugins.IMPORTED == []


def test_a_name_belongs_to_one_class_that_may_be_defined_again():
    class Mine(GRUCell):
        pass

    again = type("Mine", (GRUCell,), {"__qualname__": Mine.__qualname__})
    assert register_cell("mine")(Mine) is Mine and CELLS["mine"] is Mine
    register_cell("mine")(again)
    assert CELLS["mine"] is again
    with pytest.raises(ValueError, match="the name 'mine' already belongs to the cell .*Mine; choose another"):
        register_cell("mine")(ElmanCell)


def test_a_constructor_must_take_what_it_is_called_with():
    class Narrow(GRUCell):
        def __init__(self, in_features, hidden_features, *, rngs):
            super().__init__(in_features, hidden_features, rngs=rngs)

    with pytest.raises(TypeError, match="Narrow: its constructor must take dtype, recurrent_init"):
        register_cell("narrow")(Narrow)
    assert "narrow" not in CELLS

    class Any(GRUCell):
        def __init__(self, in_features, hidden_features, **options):
            super().__init__(in_features, hidden_features, **options)

    assert takes(Any, "dtype") and takes(Any, "reset_after") and not takes(Any, "activation")
    with pytest.raises(ValueError, match="the name 'lstm' already belongs to the cell LSTMCell"):
        register_cell("lstm")(type("LSTMCell", (Any,), {}))
    assert takes(ElmanCell, "activation") and not takes(GRUCell, "activation")
