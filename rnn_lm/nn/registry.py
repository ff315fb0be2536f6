"""Recurrent cells by name: the three of this package, and those that others register. No jax here."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

CELLS: dict[str, type] = {}
# What a cell's constructor is called with, and what only where its signature has it.
REQUIRED = ("in_features", "hidden_features", "rngs", "dtype", "recurrent_init")
OPTIONAL = ("activation", "layer_norm")
Class = TypeVar("Class", bound=type)


def register_cell(name: str) -> Callable[[Class], Class]:
    """Makes a class of recurrent cells a value of `model.cell`, and of `RNNLM`'s `cell`.

    The class, any `flax.nnx.RNNCellBase`, is called with `in_features, hidden_features, rngs, dtype, recurrent_init`,
    and with `activation` and `layer_norm` where its constructor has them. Registering a class of the same qualified
    name again, as a notebook does, replaces it.

    >>> @register_cell("mgu")  # doctest: +SKIP
    ... class MGUCell(rnn_lm.Cell): ...

    Raises:
      ValueError: where another class has that name.
      TypeError: where the constructor lacks one of these parameters.
    """

    def register(cls: Class) -> Class:
        if name in CELLS and CELLS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"a cell {name!r} is registered already, {CELLS[name].__qualname__}; take another name")
        if missing := [option for option in REQUIRED if not takes(cls, option)]:
            raise TypeError(f"{cls.__qualname__}: its constructor must take {', '.join(missing)}")
        CELLS[name] = cls
        return cls

    return register


def takes(cls: type, option: str) -> bool:
    """Whether a class's constructor has a parameter of that name, or takes any."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def cell_class(name: str) -> Any:
    """The class of that name.

    Raises:
      ValueError: where there is none.
    """
    if name not in CELLS:
        raise ValueError(f"unknown cell {name!r}; known: {', '.join(CELLS)} (register_cell adds one)")
    return CELLS[name]
