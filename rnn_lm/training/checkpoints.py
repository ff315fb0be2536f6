"""Checkpoints by orbax: the three latest and the best, every array verified by its SHA-256.

All of orbax that the project uses is used here, because its API changes between releases.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rnn_lm.errors import UserError

KEEP_LATEST = 3


class Checkpoints:
    """The folder `checkpoints/STEP/` of a run.

    A checkpoint is a pytree of arrays and a small JSON dictionary, its `notes`, saved in one atomic step. The notes
    name the best step so far under "best": {"step": …}; that one is kept for as long as it is the best.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self, read_only=read_only, create=not read_only, enable_async_checkpointing=True
        )
        self._best: int | None = None
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's `PreservationPolicy`: which of the checkpoints, in order of step, are to stay."""
        del context
        latest = len(checkpoints) - KEEP_LATEST
        return [i >= latest or checkpoint.step == self._best for i, checkpoint in enumerate(checkpoints)]

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, notes: dict[str, Any]) -> None:
        """Copies the arrays and writes them while the caller goes on."""
        arrays = {name: np.array(array) for name, array in _named_leaves(tree).items()}
        sha256 = {name: _sha256(array) for name, array in arrays.items()}
        self._best = notes["best"]["step"]
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                notes=ocp.args.JsonSave({"notes": notes, "sha256": sha256, "sha256_of_notes": _sha256_of_notes(notes)}),
            ),
        )

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of a checkpoint by name, and its notes.

        Raises:
          UserError: where a file is missing or damaged, or an array is not the one that was saved.
        """
        damaged = f"{self.folder / str(step)}: the checkpoint is damaged"
        advice = "delete that folder to go on from the one before it"
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore())
            )
            arrays = {name: np.asarray(array) for name, array in restored["arrays"].items()}
            notes, expected = restored["notes"]["notes"], restored["notes"]["sha256"]
            whole = restored["notes"]["sha256_of_notes"] == _sha256_of_notes(notes)
        except Exception as error:  # orbax, tensorstore and json each have their own
            raise UserError(f"{damaged} ({type(error).__name__}); {advice}") from error
        if not whole or expected != {name: _sha256(array) for name, array in arrays.items()}:
            raise UserError(f"{damaged} (not what was saved, by its SHA-256); {advice}")
        self._best = notes["best"]["step"]
        return arrays, notes

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def fill_tree(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The restored arrays in the structure of `template`, whose leaves say what shapes they must have."""
    for name, leaf in _named_leaves(template).items():
        if name not in arrays or arrays[name].shape != np.shape(leaf):
            raise UserError(f"the checkpoint does not fit this model: {name} is missing or has another shape")
    leaves = [jax.numpy.asarray(arrays[name]) for name in _named_leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Every array by its path, such as `params.cell.w_hh`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {name.removesuffix(".value"): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _sha256(array: np.ndarray) -> str:
    header = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def _sha256_of_notes(notes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()
