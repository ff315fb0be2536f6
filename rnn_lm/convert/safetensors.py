"""Arrays by name in a `.safetensors` file, by the package of that name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rnn_lm.errors import Unreadable, UserError
from rnn_lm.files import write_bytes

PICKLES = (b"PK\x03\x04", b"\x80")  # what the files of torch.save and of pickle start with; others may, too


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Those of types that NumPy does not have, such as bfloat16, become float32.

    Raises:
      UserError: it is missing, damaged or no such file, or the package is not installed.
    """
    numpy = _package()
    try:
        with path.open("rb") as file:
            start = file.read(4)
        arrays = numpy.load_file(path)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # SafetensorError, and whatever its header makes of the rest
        if start.startswith(PICKLES):
            raise Unreadable(
                f"{path} is a pickle, which may run code and is not opened; write the weights with "
                'safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
            ) from error
        raise Unreadable(f"{path} is no safetensors file, or is damaged: {str(error)[:200]}") from error
    return {name: array if array.dtype.kind in "fiub" else array.astype(np.float32) for name, array in arrays.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces the file atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, _package().save(contiguous, metadata={"format": "np"}))


def _package():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError("weights are read and written by the package safetensors: pip install safetensors") from error
    return safetensors.numpy
