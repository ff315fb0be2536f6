"""Recurrent neural network language models in JAX and Flax.

Shapes in the whole package: T time steps, B batch, D inputs, H hidden units, V vocabulary, G gates.
What stands in the table below is loaded when it is first used, so `import rnn_lm` costs nothing.
"""

import importlib
import time
from typing import Any

STARTED = time.perf_counter()  # as near to the start of the process as we can see
__version__ = "0.1.0"

_HOMES = {
    "ElmanCell": "rnn_lm.nn.cells",
    "GRUCell": "rnn_lm.nn.cells",
    "LSTMCell": "rnn_lm.nn.cells",
    "LSTMState": "rnn_lm.nn.cells",
    "Cell": "rnn_lm.nn.cell",
    "register_cell": "rnn_lm.nn.registry",
    "Stack": "rnn_lm.nn.stack",
    "unroll": "rnn_lm.nn.recurrence",
    "SegmentTruncation": "rnn_lm.nn.truncation",
    "WindowTruncation": "rnn_lm.nn.truncation",
    "RandomizedTruncation": "rnn_lm.nn.truncation",
    "RNNLM": "rnn_lm.nn.models",
    "MLPLM": "rnn_lm.nn.models",
    "cross_entropy": "rnn_lm.nn.losses",
    "NGramLM": "rnn_lm.ngram",
    "Batches": "rnn_lm.data.batches",
    "Vocabulary": "rnn_lm.data.vocabulary",
    "load_corpus": "rnn_lm.data.corpus",
    "evaluate": "rnn_lm.inference.evaluate",
    "generate": "rnn_lm.inference.generate",
    "score": "rnn_lm.inference.score",
    "default_config": "rnn_lm.training.config",
    "train": "rnn_lm.training.loop",
    "sweep": "rnn_lm.training.sweep",
    "load": "rnn_lm.training.run_folder",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
