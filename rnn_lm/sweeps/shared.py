"""What members of a sweep share, so that it is made once: a text's n-grams, and its minibatches on a device."""

import hashlib
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rnn_lm.data.batches import Batches
from rnn_lm.data.corpus import Corpus
from rnn_lm.mesh import ONE_DEVICE, DataMesh
from rnn_lm.program import Program, batches_of
from rnn_lm.training.baselines import Baselines


def counts_path(folder: Path, corpus: Corpus) -> Path:
    """The file of a text's n-grams, named by a hash, which takes a second for 100 MB of text."""
    parts = (corpus.train.ids, corpus.valid.ids, corpus.test.ids)
    digest = hashlib.sha256()
    for ids in parts:
        digest.update(np.ascontiguousarray(ids).data)
    return folder / f"{digest.hexdigest()[:16]}-{len(corpus.vocabulary)}.npz"


class SharedBaselines:
    """The baselines of each text, counted once for all members. Threads may use it."""

    def __init__(self, folder: Path, stack: ExitStack):
        self._folder, self._stack = folder, stack
        self._paths: dict[int, Path] = {}  # by the identity of the corpus, which the members keep alive
        self._of: dict[Path, Baselines] = {}
        self._lock = threading.Lock()

    def of(self, corpus: Corpus) -> Baselines:
        with self._lock:
            if id(corpus) not in self._paths:
                self._paths[id(corpus)] = counts_path(self._folder, corpus)
            path = self._paths[id(corpus)]
            if path not in self._of:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._of[path] = self._stack.enter_context(Baselines(path, corpus, shared=True))
            return self._of[path]


class LastBatches:
    """`batches_of` that keeps its last result for the next members of the same text and layout: one copy on a device.

    Members of one program come one after the other (`plan`). The minibatches are on the devices of `mesh`.
    """

    def __init__(self, mesh: DataMesh = ONE_DEVICE) -> None:
        self.mesh = mesh
        self._key: tuple[object, ...] = ()
        self._batches: Batches | None = None

    def of(self, program: Program, corpus: Corpus) -> Batches:
        layout = program.batch_size, program.segment_length, program.partition, program.truncation_update_every
        key = id(corpus), *layout  # the members keep the corpus alive
        if self._batches is None or self._key != key:
            self._batches = None  # frees its memory first
            self._batches, self._key = self.mesh.put(batches_of(program, corpus)), key
        return self._batches
