"""What users add: modules by `--import`, and optimizers. Needs no jax."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rnn_lm.errors import UserError, place_of, reason_of
from rnn_lm.fields import FIELDS
from rnn_lm.files import path_of

IMPORTED: list[str] = []  # module names and absolute paths; saved with runs
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {}  # besides those of the package
Function = TypeVar("Function", bound=Callable[[Any], Any])


def register_optimizer(name: str) -> Callable[[Function], Function]:
    """Makes a function a value of `optimizer.name`.

    The function gets the numbers of a config, such as `numbers.weight_decay` (scalars, traced by jit), and returns an
    `optax.GradientTransformation` from the clipped gradient to a direction. The step is the direction times the
    learning rate, which follows `optimizer.schedule`. Registering a function of the same qualified name again, as a
    notebook does, replaces it.

    >>> @register_optimizer("lion")  # doctest: +SKIP
    ... def lion(numbers):
    ...     return optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(numbers.weight_decay))

    Raises:
      ValueError: where the name is one of the package's, or another function's.
    """

    def register(function: Function) -> Function:
        there = OPTIMIZERS.get(name, function)
        if name in FIELDS["optimizer.name"].names or _named(there) != _named(function):
            raise ValueError(f"the name {name!r} already belongs to another optimizer; choose another")
        OPTIMIZERS[name] = function
        return function

    return register


def _named(function: Callable[[Any], Any]) -> object:
    """Its module and name, which a cell of a notebook that is run again keeps; itself if it has no name."""
    name = getattr(function, "__qualname__", None)
    return (function.__module__, name) if name else function


def import_module_or_file(name: str) -> None:
    """Imports a module by its dotted name or a Python file by its path, once; raises UserError if that fails."""
    path = path_of(name)
    is_file = path.suffix == ".py" or path.is_file()
    noted = str(path.resolve()) if is_file else name
    if noted in IMPORTED:
        return
    if is_file and not path.is_file():
        raise UserError(f"--import={name}: no such file")
    try:
        if is_file:
            _run_file(path.resolve())
        else:
            sys.path.insert(0, "")  # as `python` does, but not the script `rnn-lm`
            importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place_of(error, str(path)) or f'--import={name}'}: {reason_of(error, str(path))}") from error
    finally:
        if not is_file:
            sys.path.remove("")
    IMPORTED.append(noted)


def _run_file(path: Path) -> None:
    """Runs a file as a module with a unique name. It can import modules from its own folder."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
