"""Recurrent neural network language models in JAX and Flax.

Shapes: T time steps, B batch, D inputs, H hidden units, V vocabulary, G gates.
Names are imported on first use, so `import rnn_lm` is fast. Type checkers read the imports below.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_lm.config import default_config as default_config
    from rnn_lm.data.batches import Batches as Batches
    from rnn_lm.data.corpus import load_corpus as load_corpus
    from rnn_lm.data.vocabulary import Vocabulary as Vocabulary
    from rnn_lm.inference.evaluate import evaluate as evaluate
    from rnn_lm.inference.generate import generate as generate
    from rnn_lm.inference.score import score as score
    from rnn_lm.mlp import MLPLM as MLPLM
    from rnn_lm.ngram import NGramLM as NGramLM
    from rnn_lm.nn.cell import Cell as Cell
    from rnn_lm.nn.cells import ElmanCell as ElmanCell
    from rnn_lm.nn.cells import GRUCell as GRUCell
    from rnn_lm.nn.cells import LSTMCell as LSTMCell
    from rnn_lm.nn.cells import LSTMState as LSTMState
    from rnn_lm.nn.models import RNNLM as RNNLM
    from rnn_lm.nn.output import cross_entropy as cross_entropy
    from rnn_lm.nn.recurrence import unroll as unroll
    from rnn_lm.nn.registry import register_cell as register_cell
    from rnn_lm.nn.stack import Stack as Stack
    from rnn_lm.nn.truncation import RandomizedTruncation as RandomizedTruncation
    from rnn_lm.nn.truncation import SegmentTruncation as SegmentTruncation
    from rnn_lm.nn.truncation import WindowTruncation as WindowTruncation
    from rnn_lm.plugins import register_optimizer as register_optimizer
    from rnn_lm.runs.load import load as load
    from rnn_lm.runs.save import save as save
    from rnn_lm.sweeps.search import search as search
    from rnn_lm.sweeps.sweep import sweep as sweep
    from rnn_lm.training.train import train as train

STARTED = time.perf_counter()  # close to the start of the process
__version__ = "0.1.0"

_HOMES = {
    "ElmanCell": "rnn_lm.nn.cells",
    "GRUCell": "rnn_lm.nn.cells",
    "LSTMCell": "rnn_lm.nn.cells",
    "LSTMState": "rnn_lm.nn.cells",
    "Cell": "rnn_lm.nn.cell",
    "register_cell": "rnn_lm.nn.registry",
    "register_optimizer": "rnn_lm.plugins",
    "Stack": "rnn_lm.nn.stack",
    "unroll": "rnn_lm.nn.recurrence",
    "SegmentTruncation": "rnn_lm.nn.truncation",
    "WindowTruncation": "rnn_lm.nn.truncation",
    "RandomizedTruncation": "rnn_lm.nn.truncation",
    "RNNLM": "rnn_lm.nn.models",
    "MLPLM": "rnn_lm.mlp",
    "cross_entropy": "rnn_lm.nn.output",
    "NGramLM": "rnn_lm.ngram",
    "Batches": "rnn_lm.data.batches",
    "Vocabulary": "rnn_lm.data.vocabulary",
    "load_corpus": "rnn_lm.data.corpus",
    "evaluate": "rnn_lm.inference.evaluate",
    "generate": "rnn_lm.inference.generate",
    "score": "rnn_lm.inference.score",
    "default_config": "rnn_lm.config",
    "train": "rnn_lm.training.train",
    "sweep": "rnn_lm.sweeps.sweep",
    "search": "rnn_lm.sweeps.search",
    "load": "rnn_lm.runs.load",
    "save": "rnn_lm.runs.save",
}
__all__ = [*_HOMES]


if not TYPE_CHECKING:  # or checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
