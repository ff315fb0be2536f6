"""Random cells and options: `benchmarks/fuzz.py` finds no case that differs, and would find one."""

import itertools

import jax
import pytest

from benchmarks import fuzz
from rnn_lm.nn import fused

SMALL = {"gated", "1 layers", "float64", "float64 vectors", "1 batch axes", "lengths", "jit"}
OTHERS = {
    "remat",
    "backward",
    "resets",
    "RandomizedTruncation",
    *(mixin.__name__ for mixin in fuzz.OF_THOSE_THAT_SHOW_H),
}


@pytest.mark.slow
def test_random_cases_are_as_in_the_loop():
    passed, failed = fuzz.fuzz(seed=0, numbers=range(30))
    assert not failed
    assert passed["all"] == 30


def one_case():
    """The number of the first case that is small, has padding and takes the fused scan."""
    for number in itertools.count():
        case = fuzz.draw(0, number)
        if set(case.tags()) >= SMALL and OTHERS.isdisjoint(case.tags()) and len({*case.valid.flat}) == 2:
            return number


def without_masks(monkeypatch):
    """States that go on past the ends of sequences."""
    monkeypatch.setattr(fused, "keep", lambda new, old, control: new)


def with_less_gradient(monkeypatch):
    """The right values, and no gradient by the first state."""
    usual = fuzz.unroll
    monkeypatch.setattr(fuzz, "unroll", lambda cell, carry, *a, **o: usual(cell, jax.lax.stop_gradient(carry), *a, **o))


def with_a_small_error(monkeypatch):
    """Outputs that are off by a millionth."""
    usual = fuzz.unroll

    def off(*arguments, **options):
        carry, y = usual(*arguments, **options)
        return carry, y * (1 + 1e-6)

    monkeypatch.setattr(fuzz, "unroll", off)


def with_an_error(monkeypatch):
    monkeypatch.setattr(fuzz, "unroll", lambda *_, **__: 1 / 0)


@pytest.mark.slow  # it clears what other tests have compiled
@pytest.mark.parametrize("broken", [without_masks, with_less_gradient, with_a_small_error, with_an_error])
def test_what_is_broken_is_reported(broken, monkeypatch, capsys):
    arguments = [f"--case={one_case()}"]
    jax.clear_caches()  # of what is not broken
    broken(monkeypatch)
    assert fuzz.main(arguments) == 1
    assert f"python -m benchmarks.fuzz --seed=0 {arguments[0]}  # gated" in capsys.readouterr().out
    monkeypatch.undo()
    jax.clear_caches()
    assert fuzz.main(arguments) == 0
