import re

import pytest

from rnn_lm import sweeps
from rnn_lm.data.corpus import load_corpus
from rnn_lm.errors import UserError
from rnn_lm.runs.folder import Hashes, write_identity
from rnn_lm.runs.lock import locked
from rnn_lm.sweeps.members import check_members, members_of, name_of, shown
from tests.conftest import small_config


def test_names_say_what_sets_a_member_apart_whatever_the_order():
    assert name_of({"seed": 1, "optimizer.learning_rate": 3e-3}) == "learning_rate=0.003,seed=1"
    assert name_of({"optimizer.learning_rate": 3e-3, "seed": 1}) == "learning_rate=0.003,seed=1"
    assert name_of({"steps": 5, "truncation.steps": 4}) == "steps=5,truncation.steps=4"  # two fields of that name
    spaced = name_of({"model.tie": True, "corpus.path": "../my texts/a.txt"})
    assert re.fullmatch(r"path=..-my-texts-a.txt,tie=true-[0-9a-f]{8}", spaced)
    assert len({name_of({"corpus.path": path}) for path in ("a/b", "a b", "a-b", "äb")}) == 4
    assert name_of({}) == "base"
    long = [name_of({"corpus.path": x * 300}) for x in "ab"]
    assert len(set(long)) == 2 and all(len(name) < 200 for name in long)


@pytest.mark.parametrize("value", [0.1, 1e-5, 1 / 3, 0.30000000000000004, 1e9, 2.0, 7, True, "x"])
def test_values_are_shown_so_that_a_flag_reads_them_back(value):
    text = shown(value)
    assert (text if isinstance(value, str) else {"true": True}[text] if value is True else type(value)(text)) == value


def test_members_have_their_overrides_a_folder_and_one_corpus(tmp_path, text_file):
    config = small_config(text_file)
    members = members_of(config, [{"optimizer.learning_rate": 1, "seed": 3}, {"batch_size": 2}], tmp_path)
    first, second = members
    other_order = members_of(config, [{"seed": 3, "optimizer.learning_rate": 1}], tmp_path)[0]
    assert list(other_order.overrides.items()) == list(first.overrides.items())
    assert first.config.optimizer.learning_rate == 1.0 and first.config.seed == 3 and first.config.batch_size == 4
    assert second.config.batch_size == 2 and second.config.seed == 0 and config.batch_size == 4
    assert first.workdir == tmp_path / "learning_rate=1,seed=3"
    assert first.corpus is second.corpus
    cut = members_of(config, [{"corpus.max_tokens": 900}, {"corpus.max_tokens": 900, "seed": 1}, {}], tmp_path)
    assert cut[0].corpus is cut[1].corpus is not cut[2].corpus and len(cut[0].corpus.train.ids) == 900


@pytest.mark.parametrize(
    "sweep, message",
    [
        ([{}, {"optimizer.lerning_rate": 1e-3}], "member 2 of .*: unknown config field 'optimizer.lerning_rate'"),
        ([{"workdir": "runs/mine"}], "workdir cannot be overridden: each member has a folder"),
        ([{"sweep.mode": "vmap"}], "sweep.mode cannot be overridden"),
        ([{"seed": 1.5}], "config.seed is 1.5; it takes a whole number"),
        ([{"seed": -1}], "member 1 .*: config.seed is -1"),
        ([{"model.cell": "elmen"}], "did you mean 'elman'"),
        ([{"seed": 1}, {"seed": 1}], "two members of the sweep have the name seed=1"),
        ([{"corpus.path": "a/b"}, {"corpus.path": "a b"}], "a/b: no such file"),
        ([{"optimizer.learning_rate": 1}, {"optimizer.learning_rate": 1.0}], "two members .* the name learning_rate=1"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_member_is_told_in_its_words(tmp_path, text_file, sweep, message):
    with pytest.raises(UserError, match=message):
        members_of(small_config(text_file), sweep, tmp_path)


def test_what_would_stop_a_member_later_is_told_at_once(tmp_path, text_file):
    config, corpus = small_config(text_file), load_corpus(**small_config(text_file).corpus)
    for sweep, message in [
        (sweeps.choice("batch_size", [4, 10_000]), "batch_size=10000: the training text has"),
        (sweeps.choice("model.num_hiddens", [16, 10**7]), "num_hiddens=10000000: out of memory"),
    ]:
        with pytest.raises(UserError, match=message):
            check_members(members_of(config, sweep, tmp_path), tmp_path)
    members = members_of(config, sweeps.seeds(2), tmp_path)
    check_members(members, tmp_path)
    assert not list(tmp_path.iterdir())
    with locked(members[1].workdir):
        write_identity(
            members[1].workdir, small_config(text_file, seed=1, steps=99), corpus.vocabulary, Hashes(corpus.sha256)
        )
    with pytest.raises(UserError, match="trains for 99 steps; set --config.steps to at least that"):
        check_members(members, tmp_path)
    other = members_of(small_config(text_file, batch_size=2), sweeps.seeds(2), tmp_path)
    with pytest.raises(UserError, match="belongs to another config: batch_size is 4 there, 2 here"):
        check_members(other, tmp_path)
