"""Recurrent cells by name: the package's three, and registered ones. Needs no jax."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

CELLS: dict[str, type] = {}
_BUILT_IN = {"elman": "ElmanCell", "gru": "GRUCell", "lstm": "LSTMCell"}  # whose module may not be loaded yet
# What a cell's constructor gets besides in_features and hidden_features; the optional ones only if it takes them.
REQUIRED = ("rngs", "dtype", "recurrent_init")
OPTIONAL = ("activation", "layer_norm", "reset_after")
Class = TypeVar("Class", bound=type)


def register_cell(name: str) -> Callable[[Class], Class]:
    """Makes a class of recurrent cells a value of `model.cell`, and of `RNNLM`'s `cell`.

    The class, any `flax.nnx.RNNCellBase`, is called with `in_features, hidden_features, rngs, dtype, recurrent_init`,
    and with `activation`, `layer_norm` and `reset_after` where its constructor has them. Registering a class of the
    same qualified name again, as a notebook does, replaces it.

    >>> @register_cell("mgu")  # doctest: +SKIP
    ... class MGUCell(rnn_lm.Cell): ...

    Raises:
      ValueError: where another class has that name.
      TypeError: where the constructor lacks one of these parameters.
    """

    def register(cls: Class) -> Class:
        owner = _BUILT_IN.get(name) or (CELLS[name].__qualname__ if name in CELLS else cls.__qualname__)
        if owner != cls.__qualname__ or (name in _BUILT_IN and cls.__module__ != "rnn_lm.nn.cells"):
            raise ValueError(f"the name {name!r} already belongs to the cell {owner}; choose another")
        check_constructor(cls)
        CELLS[name] = cls
        return cls

    return register


def check_constructor(cls: type) -> None:
    """Raises TypeError if the constructor lacks a required parameter."""
    if missing := [option for option in REQUIRED if not takes(cls, option)]:
        raise TypeError(f"{cls.__qualname__}: its constructor must take {', '.join(missing)}")


def takes(cls: type, option: str) -> bool:
    """Whether a class's constructor has a parameter of that name; `**kwargs` are looked up in its parents."""
    for parent in cls.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(vars(parent)["__init__"]).parameters
            if option in parameters or not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return option in parameters
    return False


def cell_class(name: str) -> Any:
    """The class of that name.

    Raises:
      ValueError: if there is none.
    """
    if name not in CELLS:
        raise ValueError(f"unknown cell {name!r}; known: {', '.join(CELLS)} (register_cell adds one)")
    return CELLS[name]
