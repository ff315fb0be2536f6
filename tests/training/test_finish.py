"""The picture at the end of a run."""

import json

import numpy as np
import pytest

from rnn_lm.data.corpus import load_corpus
from rnn_lm.ngram import NGramLM, unigram_nll
from rnn_lm.runs.record import read_metrics
from rnn_lm.training.train import train
from tests.conftest import small_config
from tests.pictures import caption_of, check, title_of


@pytest.mark.parametrize("eval_tokens", [500, 0])
def test_the_curve_and_the_baselines_are_of_one_text(eval_tokens, figures, text_file, tmp_path):
    config = small_config(text_file, steps=20, eval_every=10, eval_tokens=eval_tokens)
    summary = train(config, tmp_path / "run")
    corpus = load_corpus(**config.corpus)
    ids, ngram = corpus.valid.ids[: eval_tokens + 1 if eval_tokens else None], NGramLM.load(tmp_path / "run/ngram.npz")
    size = len(corpus.vocabulary)
    wanted = [size, np.exp(unigram_nll(corpus.train.ids, ids, size)), np.exp(ngram.nll(ids))]
    [figure] = figures
    [axes] = figure.axes
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_transform() != axes.transData]
    assert levels == pytest.approx(wanted)
    drawn = [line.get_ydata().tolist() for line in axes.lines if line.get_label().startswith("validation")]
    assert drawn == [[line["perplexity"] for line in read_metrics(tmp_path / "run") if line["split"] == "valid"]]
    assert ("the first 500 tokens of the validation" in caption_of(figure)) == bool(eval_tokens)
    assert str(round(wanted[2], 2)) in caption_of(figure) and "test" not in caption_of(figure)
    assert title_of(figure) == f"Learning curve: Elman of 16 units on {text_file}, seed 0"
    whole = summary["valid_baselines"]["ngram"]["perplexity"]
    assert (whole == pytest.approx(wanted[2], rel=1e-9)) == (not eval_tokens)
    assert json.loads((tmp_path / "run/summary.json").read_text())["valid_baselines"]["ngram"]["perplexity"] == whole
    check(figure)
