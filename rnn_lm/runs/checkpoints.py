"""Checkpoints by orbax: the three latest and the best, every array verified by its SHA-256.

Only this module uses orbax, whose API changes between releases.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rnn_lm.errors import UserError
from rnn_lm.files import FORMAT, Json, check_format
from rnn_lm.nn.arrays import Tree, named_leaves

KEEP_LATEST = 3


class Checkpoints:
    """The checkpoints of a run, each in `checkpoints/STEP/`.

    A checkpoint is a pytree of arrays and a JSON dictionary, its `notes`, saved atomically. The notes name the best
    step so far as "best": {"step": …}; the best checkpoint is kept.
    """

    # Orbax has one operation counter per process, so saves in two threads can deadlock or miss a folder.
    _one_at_a_time = threading.RLock()

    def __init__(self, folder: Path, *, read_only: bool = False, background: bool = True):
        """`background`: save while the caller goes on; at most one object of a process may do so.

        All processes of a job must save together. Each reads by itself.
        """
        self.folder = folder
        self._best: int | None = None  # at the last save
        verbosity = logging.get_verbosity()
        logging.set_verbosity(min(verbosity, logging.ERROR))  # orbax warns about read_only
        alone = {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}} if read_only else {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            read_only=read_only,
            create=not read_only,
            enable_async_checkpointing=background,
            multiprocessing_options=ocp.options.MultiprocessingOptions(**alone),
        )
        with self._one_at_a_time:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        logging.set_verbosity(verbosity)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's `PreservationPolicy`: whether to keep each of the checkpoints, which are ordered by step."""
        del context
        latest = len(checkpoints) - KEEP_LATEST
        return [i >= latest or checkpoint.step == self._best for i, checkpoint in enumerate(checkpoints)]

    def save(self, step: int, tree: Tree, notes: Json) -> None:
        """Writes a copy of the arrays and of the notes, perhaps later, in the background."""
        arrays = {name: np.array(array) for name, array in named_leaves(tree).items()}
        sha256 = {name: _sha256(array) for name, array in arrays.items()}
        self._best = notes["best"]["step"]
        record: Json = {"format": FORMAT, "notes": deepcopy(notes), "sha256": sha256}
        record["sha256_of_notes"] = _sha256_of_json(record)
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(record))
        with self._writing():
            self._manager.save(step, args=items)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int:
        """The best step, or the latest step if none was evaluated or the best checkpoint is missing."""
        *_, latest = steps = self.steps()
        best = self._notes(latest)["notes"]["best"]["step"]
        return best if best in steps else latest

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], Json]:
        """The arrays of a checkpoint by name, and its notes.

        Raises:
          UserError: a file is missing or damaged, or the SHA-256 of an array differs.
        """
        notes = self._notes(step)
        restored = self._restore(step, arrays=ocp.args.StandardRestore())["arrays"]
        arrays = {name: np.asarray(array) for name, array in restored.items()}
        if notes["sha256"] != {name: _sha256(array) for name, array in arrays.items()}:
            raise self._damaged(step, "the SHA-256 of an array differs")
        return arrays, notes["notes"]

    def delete_after(self, step: int) -> int:
        """Deletes the checkpoints of later steps. Returns the last step that is left, −1 if none is."""
        with self._writing():
            self._manager.wait_until_finished()
            for later in [saved for saved in self.steps() if saved > step]:
                self._manager.delete(later)
        return max(self.steps(), default=-1)

    def close(self) -> None:
        """Finishes pending writes."""
        with self._writing():
            self._manager.close()

    def _notes(self, step: int) -> Json:
        notes = dict(self._restore(step, notes=ocp.args.JsonRestore())["notes"])
        check_format(self.folder / str(step), notes.get("format", 0))
        if notes.pop("sha256_of_notes", None) != _sha256_of_json(notes):
            raise self._damaged(step, "the SHA-256 of its notes differs")
        return notes

    def _restore(self, step: int, **args: Any) -> Any:
        try:
            with self._one_at_a_time:
                return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # of orbax, tensorstore or json
            raise self._damaged(step, type(error).__name__) from error

    def _damaged(self, step: int, why: str) -> UserError:
        return UserError(
            f"{self.folder / str(step)}: the checkpoint is damaged ({why}); "
            "delete that folder to resume from the checkpoint before it"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises UserError if a write fails, perhaps an earlier one in the background."""
        try:
            with self._one_at_a_time:
                yield
        except Exception as error:
            raise UserError(f"{self.folder}: a checkpoint cannot be written: {str(error)[:200]}") from error


def fill_tree(template: Tree, arrays: dict[str, np.ndarray]) -> Tree:
    """The restored arrays in the structure of `template`, whose shapes and types they must have.

    Raises:
      UserError: naming an array that is missing or different, and both shapes.
    """
    leaves = []
    for name, leaf in named_leaves(template).items():
        there = f"{arrays[name].dtype} {list(arrays[name].shape)}" if name in arrays else "missing"
        if there != (here := f"{leaf.dtype} {list(leaf.shape)}"):
            raise UserError(f"the weights do not fit this model: {name} is {there}, it must be {here}")
        leaves.append(jax.numpy.asarray(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _sha256(array: np.ndarray) -> str:
    header = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _sha256_of_json(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
