"""The plots of `compare`: what is drawn, and what is said of it."""

import numpy as np
import pytest

from rnn_lm.plots.rivals import COMPARISON, what_context_brings, where_ngrams_are_larger
from tests.pictures import caption_of, check, labels_of, title_of

NAMES = {"mlp": "MLP", "gru": "GRU"}


def result_of(*, stored, ends):
    """n-grams that gain until order 3, an MLP that gains until 2 tokens, a GRU until `ends`."""
    contexts = [1, 2, 4, 8, 16, 32, 64]
    orders = list(range(1, 6))
    return {
        "ngrams": [{"order": n, "context": n - 1, "perplexity": 4 + 8 / n if n < 3 else 5.0, "num_params": stored**n,
                    "num_possible": 20**n} for n in orders],
        "by_context": {
            "mlp": {"context": contexts, "nll": [np.log(9 - min(k, 2)) for k in contexts]},
            "gru": {"context": contexts, "nll": [np.log(4 + 8 / min(k, ends)) for k in contexts]},
        },
        "corpus": {"vocab_size": 20},
        "num_params_by_order": {"order": orders, "possible": [20**n for n in orders],
                                "mlp": [None, 100, 110, 120, 130], "gru": 5 * [300]},
    }  # fmt: skip


@pytest.mark.parametrize("name", COMPARISON)
def test_everything_can_be_read(name, figures, tmp_path):
    COMPARISON[name](tmp_path / "a.png", result_of(stored=4, ends=32), NAMES, of="networks on a text, test split")
    check(figures[0])
    assert title_of(figures[0]).endswith(": networks on a text, test split")
    [axes] = figures[0].axes
    assert len(labels_of(axes)) == len(axes.lines) == (3 if name == "perplexity_by_context" else 4)


def test_what_is_said_of_context_follows_the_curves(figures, tmp_path):
    result = result_of(stored=4, ends=32)
    assert what_context_brings(result, NAMES).endswith("in parentheses: n-grams 2 (5.00), MLP 2 (7.00), GRU 32 (4.25).")
    assert what_context_brings(result_of(stored=4, ends=4), NAMES).endswith("GRU 4 (6.00).")
    COMPARISON["perplexity_by_context"](tmp_path / "a.png", result, NAMES, of="networks")
    assert caption_of(figures[0]).startswith(what_context_brings(result, NAMES))


def test_what_is_said_of_sizes_follows_the_counts():
    assert where_ngrams_are_larger(result_of(stored=4, ends=8), NAMES) == (
        "From n = 5 on, the text has more n-grams than any network has parameters; the text has 0.00032 of the "
        "possible 5-grams."
    )
    assert where_ngrams_are_larger(result_of(stored=2, ends=8), NAMES).startswith(
        "At n = 5 the largest network still has more parameters than the text has n-grams; the text has 1e-05 of"
    )
