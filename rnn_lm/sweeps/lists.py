"""What a config file's `sweep()` is made of: lists of overrides, from small pure functions.

An override is a dict, dotted field name → value; a sweep is a list of them, one for each member. All functions here
take and return plain lists, so anything that Python does to lists serves as well.

>>> product(choice("model.cell", ["gru", "lstm"]), seeds(2))  # doctest: +NORMALIZE_WHITESPACE
[{'model.cell': 'gru', 'seed': 0}, {'model.cell': 'gru', 'seed': 1},
 {'model.cell': 'lstm', 'seed': 0}, {'model.cell': 'lstm', 'seed': 1}]
"""

import builtins
import itertools
import math
import random
from collections.abc import Iterable
from typing import Any

Sweep = list[dict[str, Any]]


def choice(name: str, values: Iterable[Any]) -> Sweep:
    """One field, value by value.

    >>> choice("batch_size", [16, 32])
    [{'batch_size': 16}, {'batch_size': 32}]
    """
    return [{name: value} for value in values]


def seeds(count: int) -> Sweep:
    """The seeds 0, 1, … `count` − 1: repetitions, over which results get a mean and a standard error."""
    return choice("seed", range(count))


def log_uniform(name: str, low: float, high: float, count: int, *, seed: int = 0) -> Sweep:
    """One field, `count` values drawn at random, their logarithms uniformly from ln `low` to ln `high`.

    The same seed draws the same values; more of them leave the first ones as they are. They have four digits.

    >>> log_uniform("optimizer.learning_rate", 1e-4, 1e-1, 2)
    [{'optimizer.learning_rate': 0.03414}, {'optimizer.learning_rate': 0.01879}]
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"log_uniform({name!r}) draws from {low} to {high}; it takes 0 < low ≤ high")
    draw = random.Random(seed).uniform
    return choice(name, [float(f"{math.exp(draw(math.log(low), math.log(high))):.4g}") for _ in range(count)])


def product(*sweeps: Sweep) -> Sweep:
    """Each member of each sweep with each of all others; the last one changes fastest."""
    return [_merged(members) for members in itertools.product(*sweeps)]


def zip(*sweeps: Sweep) -> Sweep:
    """The first members together, the second ones, and so on; all sweeps must be of one length.

    >>> zip(choice("batch_size", [16, 32]), choice("steps", [2000, 1000]))
    [{'batch_size': 16, 'steps': 2000}, {'batch_size': 32, 'steps': 1000}]
    """
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip takes sweeps of one length; these have {', '.join(map(str, lengths))} members")
    return [_merged(members) for members in builtins.zip(*sweeps, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """One sweep after the other.

    >>> chain([{}], choice("model.cell", ["gru"]))
    [{}, {'model.cell': 'gru'}]
    """
    return [dict(member) for member in itertools.chain(*sweeps)]


def _merged(members: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for member in members:
        if twice := merged.keys() & member.keys():
            raise ValueError(f"{min(twice)} is set by two of the sweeps that are put together")
        merged |= member
    return merged
