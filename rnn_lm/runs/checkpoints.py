"""Checkpoints by orbax: the three latest and the best, every array verified by its SHA-256.

All of orbax that the project uses is used here, because its API changes between releases.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rnn_lm.errors import UserError
from rnn_lm.files import FORMAT, check_format
from rnn_lm.nn.arrays import named_leaves

KEEP_LATEST = 3


class Checkpoints:
    """The folder `checkpoints/STEP/` of a run.

    A checkpoint is a pytree of arrays and a small JSON dictionary, its `notes`, saved in one atomic step. The notes
    name the best step so far under "best": {"step": …}; that one is kept for as long as it is the best.
    """

    # Orbax counts what it does in one number a process, by which its threads find each other: two of them that save at
    # once wait for ever, or write where there is no folder yet.
    _one_at_a_time = threading.RLock()

    def __init__(self, folder: Path, *, read_only: bool = False, background: bool = True):
        """`background`: saving goes on while the caller does, which only one in a process may want."""
        self.folder = folder
        self._best: int | None = None  # as of the last save
        verbosity = logging.get_verbosity()
        logging.set_verbosity(min(verbosity, logging.ERROR))  # it warns of read_only, which is what we want
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self, read_only=read_only, create=not read_only, enable_async_checkpointing=background
        )
        with self._one_at_a_time:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        logging.set_verbosity(verbosity)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's `PreservationPolicy`: which of the checkpoints, in order of step, are to stay."""
        del context
        latest = len(checkpoints) - KEEP_LATEST
        return [i >= latest or checkpoint.step == self._best for i, checkpoint in enumerate(checkpoints)]

    def save(self, step: int, tree: Any, notes: dict[str, Any]) -> None:
        """Copies the arrays and writes them."""
        arrays = {name: np.array(array) for name, array in named_leaves(tree).items()}
        sha256 = {name: _sha256(array) for name, array in arrays.items()}
        self._best = notes["best"]["step"]
        record: dict[str, Any] = {"format": FORMAT, "notes": notes, "sha256": sha256}
        record["sha256_of_notes"] = _sha256_of_json(record)
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(record))
        with self._failures_told():
            self._manager.save(step, args=items)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int:
        """The step that the latest checkpoint names the best; itself, where none was evaluated or that one is gone."""
        *_, latest = steps = self.steps()
        best = self._notes(latest)["notes"]["best"]["step"]
        return best if best in steps else latest

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of a checkpoint by name, and its notes.

        Raises:
          UserError: where a file is missing or damaged, or an array is not the one that was saved.
        """
        notes = self._notes(step)
        restored = self._restore(step, arrays=ocp.args.StandardRestore())["arrays"]
        arrays = {name: np.asarray(array) for name, array in restored.items()}
        if notes["sha256"] != {name: _sha256(array) for name, array in arrays.items()}:
            raise self._damaged(step, "an array is not what was saved, by its SHA-256")
        return arrays, notes["notes"]

    def close(self) -> None:
        """Waits for what is still being written."""
        with self._failures_told():
            self._manager.close()

    def _notes(self, step: int) -> dict[str, Any]:
        notes = dict(self._restore(step, notes=ocp.args.JsonRestore())["notes"])
        check_format(self.folder / str(step), notes.get("format", 0))
        if notes.pop("sha256_of_notes", None) != _sha256_of_json(notes):
            raise self._damaged(step, "the notes are not what was saved, by their SHA-256")
        return notes

    def _restore(self, step: int, **args: Any) -> Any:
        try:
            with self._one_at_a_time:
                return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # orbax, tensorstore and json each have their own
            raise self._damaged(step, type(error).__name__) from error

    def _damaged(self, step: int, why: str) -> UserError:
        return UserError(
            f"{self.folder / str(step)}: the checkpoint is damaged ({why}); "
            "delete that folder to go on from the one before it"
        )

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """What fails while orbax writes, perhaps in the background, is something that cannot be written."""
        try:
            with self._one_at_a_time:
                yield
        except Exception as error:
            raise UserError(f"{self.folder}: a checkpoint cannot be written: {str(error)[:200]}") from error


def fill_tree(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The restored arrays in the structure of `template`, whose leaves say what shapes they must have."""
    leaves = []
    for name, leaf in named_leaves(template).items():
        if name not in arrays or (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype):
            raise UserError(f"the checkpoint does not fit this model: {name} is missing or of another shape or type")
        leaves.append(jax.numpy.asarray(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _sha256(array: np.ndarray) -> str:
    header = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _sha256_of_json(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
