import pytest

from rnn_lm.config import complete_config
from rnn_lm.training.run import Best


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_the_plateau_lowers_the_rate_after_more_evaluations_than_its_patience(patience):
    optimizer = {"schedule": "plateau", "patience": patience, "decay_factor": 0.5}
    config, best, factors = complete_config({"optimizer": optimizer}), Best(), []
    for step in range(2 * patience + 3):
        is_best = best.update(step, 1.0, config)  # only the first is better than those before it
        assert is_best == (step == 0)
        factors.append(best.plateau_factor)
    assert factors == (patience + 1) * [1.0] + (patience + 1) * [0.5] + [0.25]
    assert best.step == 0


def test_a_new_best_starts_the_wait_anew():
    config, best = complete_config({"optimizer": {"schedule": "plateau", "patience": 1}}), Best()
    for step, nll in enumerate([3.0, 3.0, 2.0, 2.0, 1.0, 1.0]):
        best.update(step, nll, config)
    assert (best.plateau_factor, best.step, best.nll, best.waited) == (1.0, 4, 1.0, 1)
