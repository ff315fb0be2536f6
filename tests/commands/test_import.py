"""A cell in a file of the user's own, on the command line: trained, resumed, and read by every verb."""

import json

import pytest

from rnn_lm import plugins
from rnn_lm.nn.registry import CELLS

MGU = '''
import jax
import jax.numpy as jnp
import rnn_lm


@rnn_lm.register_cell("mgu")
class MGUCell(rnn_lm.Cell):
    """The minimal gated unit, with the forget gate after the product."""

    num_gates = 2

    def gates(self, carry, projected, recurrent):
        (f_x, n_x), (f_h, n_h) = jnp.split(projected, 2, -1), jnp.split(recurrent, 2, -1)
        f = jax.nn.sigmoid(f_x + f_h)
        return (1 - f) * carry + f * jnp.tanh(n_x + f * n_h)
'''

CONFIG = """
def sweep():
    return [{{"seed": 0}}, {{"seed": 1}}]

def get_config():
    return {{"batch_size": 4, "segment_length": 8, "steps": 20, "eval_every": 10, "save_every": 10, "log_every": 10,
             "model": {{"num_hiddens": 8, "cell": "mgu"}},
             "corpus": {{"path": {path!r}, "valid_fraction": 0.1, "test_fraction": 0.1}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mgu.py").write_text(MGU)
    (folder / "config.py").write_text(CONFIG.format(path=str(text_file)))
    return folder


@pytest.fixture
def own(cli, folder, monkeypatch):
    """Runs a command as a new process would: nothing has been imported yet."""

    def run(*arguments, imports=("mgu.py",)):
        CELLS.pop("mgu", None)
        monkeypatch.setattr(plugins, "IMPORTED", [])
        monkeypatch.setattr("rnn_lm.runs.folder.IMPORTED", plugins.IMPORTED)
        given = [str(argument).replace("FOLDER", str(folder)) for argument in arguments]
        return cli(*given, *(f"--import={folder / name}" for name in imports))

    yield run
    CELLS.pop("mgu", None)


TRAIN = ("--config=FOLDER/config.py", "--workdir=FOLDER/run")


def test_it_trains_resumes_and_is_read_by_every_verb(own, folder):
    assert own(*TRAIN)[0] == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["model"]["cell"] == "mgu" and config["import"] == [str(folder / "mgu.py")]
    code, out, _ = own(*TRAIN, "--config.steps=30")
    assert code == 0 and "Finished: 30 steps" in out
    code, out, _ = own("generate", "--workdir=FOLDER/run", "--prompt=the ", "--length=7")
    assert code == 0 and len(out) == len("the ") + 7 + 1
    assert own("score", "--workdir=FOLDER/run", "--prompt=the ", "--continuation=time")[0] == 0
    assert own("evaluate", "--workdir=FOLDER/run")[0] == 0


@pytest.mark.slow
def test_it_is_inspected(own, folder):
    own(*TRAIN)
    code, out, _ = own("inspect", "--workdir=FOLDER/run", "--window=4")
    assert code == 0 and "The spectral radius of W_hh" in out
    spectra = json.loads((folder / "run" / "inspect.json").read_text())["jacobians"]["w_hh"]
    assert [gate["gate"] for gate in spectra] == ["1", "2"]


@pytest.mark.slow
def test_it_is_swept_and_the_command_for_the_best_names_the_file(own, folder):
    code, out, _ = own("sweep", "--config=FOLDER/config.py", "--workdir=FOLDER/sweep")
    assert code == 0 and out.count(f"--import={folder / 'mgu.py'}") == 2  # to generate, and to train a copy further


@pytest.mark.slow
def test_it_is_compared_with_the_others(own, folder):
    code, out, _ = own("compare", "--config=FOLDER/config.py", "--workdir=FOLDER/compare")
    assert code == 0 and out.count("mgu") >= 2
    names = [row["name"] for row in json.loads((folder / "compare" / "compare.json").read_text())["models"]]
    assert names == ["uniform", "unigram", "ngram", "mlp", "elman", "gru", "lstm", "mgu"]


def test_without_its_file_one_line_says_which_one_is_missing(own, folder):
    own(*TRAIN)
    code, out, err = own("generate", "--workdir=FOLDER/run", imports=())
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "the cell 'mgu' is not registered" in err and f"give --import={folder / 'mgu.py'}" in err
    code, _, err = own(*TRAIN, "--workdir=FOLDER/other", imports=())
    assert code == 2 and "unknown config.model.cell 'mgu'" in err and "--import=MODULE_OR_FILE" in err
    assert not (folder / "other").exists()


def test_options_that_it_does_not_take_are_refused(own):
    code, _, err = own(*TRAIN, "--config.model.layer_norm=true")
    assert code == 2 and "the mgu cell has no option layer_norm; leave out config.model.layer_norm" in err
