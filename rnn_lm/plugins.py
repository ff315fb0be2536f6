"""`--import`: loads user modules, such as those that register cells."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from rnn_lm.errors import UserError
from rnn_lm.files import path_of

IMPORTED: list[str] = []  # module names and absolute paths; saved with runs


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
        raise UserError(f"--import={name}: {type(error).__name__}: {error}") from error
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
