"""Functions for the `sweep()` of a config file. They make lists of overrides.

An override is a dict, dotted field name → value; a sweep is a list of overrides, one for each member. As sweeps are
plain lists, list methods work too.

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

Override = dict[str, Any]
Sweep = list[Override]


def choice(name: str, values: Iterable[Any]) -> Sweep:
    """One field with each of the values.

    >>> choice("batch_size", [16, 32])
    [{'batch_size': 16}, {'batch_size': 32}]
    """
    return [{name: value} for value in values]


def seeds(count: int) -> Sweep:
    """The seeds 0, 1, … `count` − 1; results are averaged over them, with standard errors."""
    return choice("seed", range(count))


def log_uniform(name: str, low: float, high: float, count: int, *, seed: int = 0) -> Sweep:
    """One field with `count` random values, whose logarithms are uniform from ln `low` to ln `high`.

    The values have four digits. A larger `count` adds values after the same first ones.

    >>> log_uniform("optimizer.learning_rate", 1e-4, 1e-1, 2)
    [{'optimizer.learning_rate': 0.03414}, {'optimizer.learning_rate': 0.01879}]
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"log_uniform({name!r}) has low = {low} and high = {high}; it needs 0 < low ≤ high")
    draw = random.Random(seed).uniform
    return choice(name, [float(f"{math.exp(draw(math.log(low), math.log(high))):.4g}") for _ in range(count)])


def product(*sweeps: Sweep) -> Sweep:
    """All combinations of the members of the sweeps; the last sweep varies fastest."""
    return [_merged(members) for members in itertools.product(*sweeps)]


def zip(*sweeps: Sweep) -> Sweep:
    """The first members of the sweeps combined, the second members combined, and so on.

    >>> zip(choice("batch_size", [16, 32]), choice("steps", [2000, 1000]))
    [{'batch_size': 16, 'steps': 2000}, {'batch_size': 32, 'steps': 1000}]
    """
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip takes sweeps of the same length; these have {', '.join(map(str, lengths))} members")
    return [_merged(members) for members in builtins.zip(*sweeps, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """The members of one sweep after the other.

    >>> chain([{}], choice("model.cell", ["gru"]))
    [{}, {'model.cell': 'gru'}]
    """
    return [dict(member) for member in itertools.chain(*sweeps)]


def _merged(members: Iterable[Override]) -> Override:
    merged: Override = {}
    for member in members:
        if twice := merged.keys() & member.keys():
            raise ValueError(f"{min(twice)} is set by two of the combined sweeps")
        merged |= member
    return merged
