import numpy as np
import pytest
from flax import nnx

from rnn_lm.config import check_config, complete_config, tokens_per_step
from rnn_lm.errors import UserError
from rnn_lm.fields import FIELDS, get_field
from rnn_lm.mlp import MLPLM
from rnn_lm.nn.models import RNNLM
from rnn_lm.sweeps import rivals as module
from rnn_lm.sweeps.rivals import NETWORKS, config_of, num_params_by_order, use_of_context
from tests.reference import forward, nats, numpy_params


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"model": {"cell": "elman", "activation": "relu", "num_layers": 2, "layer_norm": True}, "remat": 4},
        {"truncation": {"kind": "tbptt", "steps": 64, "update_every": 16}},
        {"truncation": {"kind": "window", "steps": 8}},
    ],
)
def test_each_network_has_the_same_budget_and_a_config_that_can_be(given):
    config = complete_config(given)
    mlps = {f"model.{name}" for name in ("kind", "embed_dim", "num_layers", "layer_norm")}
    mlps |= {"segment_length", "remat", *(field for field in FIELDS if field.startswith("truncation."))}
    gated = {"model.cell", "model.activation"}
    may_change = {"mlp": mlps, "elman": {"model.cell"}, "gru": gated, "lstm": gated}
    for name in NETWORKS:
        member = config_of(config, name)
        check_config(member)
        assert tokens_per_step(member) == tokens_per_step(config)
        changed = {field for field in FIELDS if get_field(member, field) != get_field(config, field)}
        assert changed <= may_change[name]
    assert config_of(config, "mlp").model.kind == "mlp" and config_of(config, "lstm").model.cell == "lstm"
    assert config_of(config, "elman").model.activation == config.model.activation


def test_networks_do_not_stop_early(tmp_path):
    with pytest.raises(UserError, match="config.stop_patience is not for compare: all networks get the same budget"):
        module.compare(complete_config({"stop_patience": 2}), tmp_path / "compare")
    assert not (tmp_path / "compare").exists()


def test_parameters_over_the_context():
    config = complete_config({"model": {"num_hiddens": 5}})
    counts = num_params_by_order({name: config_of(config, name) for name in NETWORKS}, vocab_size=7)
    assert counts["order"] == list(range(1, 11)) and counts["possible"] == [7**n for n in range(1, 11)]
    assert counts["elman"] == [7 * 5 + 5 * 5 + 5 + 5 * 7 + 7] * 10
    assert counts["lstm"] == [4 * (7 * 5 + 5 * 5 + 5) + 5 * 7 + 7] * 10
    assert counts["mlp"] == [None, *(7 * 32 + 32 * 5 * (n - 1) + 5 + 5 * 7 + 7 for n in range(2, 11))]


@pytest.mark.parametrize("limits", [(2**22, 2**30), (6 * 8 * 5, 2**30), (2**22, 6 * 8 * 20)])
def test_the_use_of_context_equals_a_numpy_loop(limits, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", limits[0])
    monkeypatch.setattr(module, "MAX_SCORES", limits[1])
    model, ids = RNNLM(6, 8, rngs=nnx.Rngs(0)), np.random.default_rng(0).integers(0, 6, 60)
    result = use_of_context(model, ids, longest=8)
    count = min(60 - 8, limits[1] // 48)
    starts = np.linspace(0, 51, count // min(count, limits[0] // 48) * min(count, limits[0] // 48)).astype(int)
    windows = ids[starts + np.arange(9)[:, None]]
    _, logits = forward(numpy_params(model), np.zeros((len(starts), 8)), windows[:-1])
    expected = nats(logits, windows[1:]).mean(1)
    assert result["context"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert result["nll"] == pytest.approx(expected, rel=1e-5)


def test_what_is_beyond_an_mlps_context_is_worth_nothing():
    """Read in steps of one token that repeats, so that only what a model looks at can make a difference."""
    result = use_of_context(MLPLM(6, 8, context=3, rngs=nnx.Rngs(0)), np.full(200, 2), longest=128)
    assert result["context"][:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9.5] and 110 < result["context"][-1] < 128
    assert result["nll"][3:] == pytest.approx([result["nll"][2]] * (len(result["nll"]) - 3), rel=1e-5)
    assert result["nll"][0] != pytest.approx(result["nll"][2], rel=1e-3)


def test_a_short_text_has_shorter_contexts():
    result = use_of_context(RNNLM(6, 8, rngs=nnx.Rngs(0)), np.array([1, 2, 3]), longest=128)
    assert result["context"] == [1, 2]
