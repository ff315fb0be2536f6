import json
import shutil

import numpy as np
import pytest
from flax import nnx

import rnn_lm
from rnn_lm.config import complete_config
from rnn_lm.errors import UserError
from rnn_lm.inference.mixture import Mixture
from rnn_lm.nn.cells import GRUCell
from rnn_lm.nn.registry import CELLS
from rnn_lm.program import new_model, program_of
from rnn_lm.runs import load as module


@pytest.fixture
def workdir(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "mixture.json").unlink(missing_ok=True)
    return tmp_path / "run"


def test_a_mixtures_weights_are_fitted_once_for_each_network(workdir, monkeypatch):
    fitted = []

    def fit_weights(network, ngram, ids):
        fitted.append(len(ids))
        return np.full(ngram.order * 32, 0.25)

    monkeypatch.setattr(module, "fit_weights", fit_weights)
    model, _ = rnn_lm.load(workdir, mix="ngram")
    assert isinstance(model, Mixture) and fitted == [len(module.corpus_of(workdir).valid.ids)]
    again, _ = rnn_lm.load(workdir, mix="ngram")
    assert len(fitted) == 1 and again.fingerprint() == model.fingerprint()
    kept = json.loads((workdir / "mixture.json").read_text())
    bad = [[], [0.5], kept["weights"][:-1], [0.0, *kept["weights"][1:]], ["?", *kept["weights"][1:]], None]
    contents = ["{", "{}", json.dumps(kept | {"network": "another"}), *(json.dumps(kept | {"weights": w}) for w in bad)]
    for content in contents:  # damaged, or of another checkpoint
        (workdir / "mixture.json").write_text(content)
        assert rnn_lm.load(workdir, mix="ngram")[0].fingerprint() == model.fingerprint()
    assert len(fitted) == 1 + len(contents)


def test_a_folder_of_runs_names_one_of_them(workdir):
    with pytest.raises(UserError, match=f"no run .config.json is missing.; give one .*, such as --workdir={workdir}$"):
        rnn_lm.load(workdir.parent)


def test_what_cannot_be_mixed_is_said(workdir):
    with pytest.raises(UserError, match="unknown mix 'gram'"):
        rnn_lm.load(workdir, mix="gram")
    (workdir / "ngram.npz").rename(workdir / "kept.npz")
    with pytest.raises(UserError, match="no n-gram model"):
        rnn_lm.load(workdir, mix="ngram")
    (workdir / "kept.npz").rename(workdir / "ngram.npz")
    config = json.loads((workdir / "config.json").read_text())
    config["corpus"]["valid_fraction"] = 0.0
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no validation text"):
        rnn_lm.load(workdir, mix="ngram")


def test_a_cell_with_state_of_its_own_is_refused(monkeypatch):
    class Dropping(GRUCell):
        def __init__(self, *sizes, rngs, dtype, recurrent_init):
            super().__init__(*sizes, rngs=rngs, dtype=dtype, recurrent_init=recurrent_init)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    monkeypatch.setitem(CELLS, "dropping", Dropping)
    with pytest.raises(UserError, match="'dropping' keeps state in cell.drop.rngs"):
        new_model(*program_of(complete_config({"model": {"cell": "dropping"}}), 7))
