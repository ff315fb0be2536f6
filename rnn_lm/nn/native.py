"""The door to machine code. Without the folder `cpu` there is none, and the scan does everything."""

from collections.abc import Callable
from typing import Any

from rnn_lm.nn.arrays import Tree
from rnn_lm.nn.cell import Cell

cpu: Any
try:
    from rnn_lm.nn import cpu
except ImportError:
    cpu = None


def is_wanted() -> bool:
    """Whether programs traced now may call machine code. Cheap, asked at each call of `unroll`."""
    return cpu is not None and cpu.is_wanted()


def is_available() -> bool:
    """Whether machine code is there and wanted; compiles and loads it the first time."""
    return cpu is not None and cpu.is_available()


def is_for(cell: Cell, arguments: tuple[Tree, ...]) -> bool:
    """Whether machine code runs this cell on these arguments of `accelerated`."""
    return cpu is not None and cpu.is_for(cell, arguments)


def accelerated(reference: Callable, cell: Cell, reverse: bool) -> Callable:
    """`reference(small, w_hh, carry, projected) → carries` and its gradient, by machine code."""
    return cpu.accelerated(reference, cell, reverse)
