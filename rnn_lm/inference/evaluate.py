"""The loss of a model on a text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rnn_lm.inference.reading import MAX_LOGITS, Window, read, read_and_learn
from rnn_lm.mesh import ONE_DEVICE, DataMesh
from rnn_lm.nn.models import LanguageModel

MAX_WINDOWS = 256  # read side by side
MAX_NLL = 709.0  # nats; the perplexity of a larger loss is not finite


@dataclass(frozen=True)
class Evaluation:
    """Total nats, number of tokens, and the largest |h| (and |c|). Evaluations of parts of a text can be added."""

    nats: float
    tokens: int
    max_abs: dict[str, float] = field(default_factory=dict)  # by name, "h" or "c"

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats per token."""
        return self.nats / self.tokens

    def __add__(self, other: "Evaluation") -> "Evaluation":
        letters = {**self.max_abs, **other.max_abs}
        largest = {x: max(self.max_abs.get(x, 0.0), other.max_abs.get(x, 0.0)) for x in letters}
        return Evaluation(self.nats + other.nats, self.tokens + other.tokens, largest)


def runs_away(carried: Evaluation, reset: Evaluation) -> bool:
    """Whether the state diverges over a text: carrying it costs 0.1 nats more than resets do.

    Context longer than in training should help a little. In an LSTM trained briefly, a memory cell can instead grow
    with every token until the input no longer changes it.
    """
    return not carried.nll <= reset.nll + 0.1  # nan too


def figures(nll: float, tokens_per_character: float) -> dict[str, float]:
    """A mean loss as nats per token, perplexity (its exp) and bits per character of text."""
    try:
        perplexity = math.exp(nll)
    except OverflowError:
        perplexity = math.inf
    return {"nll": nll, "perplexity": perplexity, "bits_per_char": nll / math.log(2) * tokens_per_character}


def evaluate(
    model: LanguageModel,
    ids: np.ndarray,
    *,
    reset_every: int = 0,
    dynamic: bool = False,
    on_progress: Callable[[int], object] = lambda tokens: None,
) -> Evaluation:
    """Scores every token of ids [N] but the first, each once.

    The state is carried through the text, or reset every `reset_every` tokens if that is not 0; windows between resets
    are computed side by side. With `dynamic` a copy of the model keeps training on the text while reading it
    (`rnn_lm.inference.dynamic`). `on_progress` is called with the number of tokens scored since the last call.
    """
    if dynamic and reset_every:
        raise ValueError("reset_every cannot be used with dynamic")
    if dynamic:
        return _totals([model], partial(read_and_learn, model), ids, 0, on_progress)[0]
    return evaluate_members([model], ids, reset_every=reset_every, on_progress=on_progress)[0]


def evaluate_members(
    models: Sequence[LanguageModel],
    ids: np.ndarray,
    *,
    reset_every: int = 0,
    mesh: DataMesh = ONE_DEVICE,
    on_progress: Callable[[int], object] = lambda tokens: None,
) -> list[Evaluation]:
    """`evaluate` for models that share a program. Several are computed at once, which rounds differently.

    The devices of a mesh, which have the models, divide the windows between resets.
    """
    return _totals(models, partial(read, models, mesh=mesh), ids, reset_every, on_progress, mesh.size)


def _totals(
    models: Sequence[LanguageModel],
    reader: Callable[..., Iterator[tuple[slice, list[Window]]]],
    ids: np.ndarray,
    reset_every: int,
    on_progress: Callable[[int], object],
    multiple: int = 1,
) -> list[Evaluation]:
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens: the first is context only, so at least 2 are needed")
    totals = [Evaluation(0.0, 0) for _ in models]
    for window in _cut(ids, reset_every, len(models) * models[0].vocab_size, multiple):
        for part, windows in reader(*window):
            tokens = int(window[-1][part].sum())
            new = [
                Evaluation(float(w.nats.sum()), tokens, {k: float(x) for k, x in w.max_abs.items()}) for w in windows
            ]
            totals = [total + each for total, each in zip(totals, new, strict=True)]
            on_progress(tokens)
    return totals


def _cut(ids: np.ndarray, reset_every: int, numbers: int, multiple: int) -> Iterator[list[np.ndarray]]:
    """Windows of `reset_every` tokens (0: all): inputs, labels and the mask of real tokens, all [T, B].

    B is a multiple of `multiple`, and limited by `MAX_LOGITS`; one token takes `numbers` logits.
    """
    scored = len(ids) - 1
    length = min(reset_every or scored, scored)
    count = -(-scored // length)
    width = max(1, min(count, MAX_WINDOWS, MAX_LOGITS // numbers))
    width = -(-width // multiple) * multiple
    filled = np.pad(ids, (0, -(-count // width) * width * length + 1 - len(ids)))
    for start in range(0, count * length, width * length):
        stop = start + width * length
        valid = np.arange(start, stop) < scored
        yield [a.reshape(width, length).T for a in (filled[start:stop], filled[start + 1 : stop + 1], valid)]
