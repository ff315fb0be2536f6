"""How well a model predicts a text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnn_lm.inference.reading import MAX_LOGITS, Window, read, read_and_learn
from rnn_lm.nn.models import LanguageModel

MAX_WINDOWS = 256  # side by side in one call


@dataclass(frozen=True)
class Evaluation:
    """Total nats over a number of tokens, and the largest |h| (and |c|) met. Those of parts merge by addition."""

    nats: float
    tokens: int
    max_abs: dict[str, float] = field(default_factory=dict)  # by the state's letter

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats per token."""
        return self.nats / self.tokens

    def __add__(self, other: "Evaluation") -> "Evaluation":
        letters = {**self.max_abs, **other.max_abs}
        largest = {x: max(self.max_abs.get(x, 0.0), other.max_abs.get(x, 0.0)) for x in letters}
        return Evaluation(self.nats + other.nats, self.tokens + other.tokens, largest)


def runs_away(carried: Evaluation, reset: Evaluation) -> bool:
    """Whether the state, carried through a whole text, does harm: 0.1 nats more than with resets.

    A context longer than any in training should help a little. In a young LSTM a memory cell can grow with every token
    instead, until nothing that is read changes it.
    """
    return not carried.nll <= reset.nll + 0.1  # nan too


def figures(nll: float, tokens_per_character: float) -> dict[str, float]:
    """What every report says of a mean loss: nats per token, perplexity = exp of it, bits per character of text."""
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
    on_progress: Callable[[int], Any] = lambda tokens: None,
) -> Evaluation:
    """Scores every token of ids [N] but the first, N − 1 of them, each once.

    The state starts from its initial value and is carried through the text as one stream, or, where `reset_every` is
    not 0, starts anew with each `reset_every` tokens; such windows are computed side by side. `dynamic`: the model goes
    on learning from what it has read (`rnn_lm.inference.dynamic`); the one that is given stays as it is. `on_progress`
    is told how many more tokens are done.
    """
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens: the first is context only, so at least 2 are needed")
    if dynamic and reset_every:
        raise ValueError("what is learned is not taken back: give either reset_every or dynamic")
    if not dynamic:
        return evaluate_members([model], ids, reset_every=reset_every, on_progress=on_progress)[0]
    total = Evaluation(0.0, 0)
    for window in _cut(ids, 0, model.vocab_size):
        for part, known in read_and_learn(model, *window):
            tokens = int(window[-1][part].sum())
            total += _evaluated(known, tokens)
            on_progress(tokens)
    return total


def evaluate_members(
    models: Sequence[LanguageModel],
    ids: np.ndarray,
    *,
    reset_every: int = 0,
    on_progress: Callable[[int], Any] = lambda tokens: None,
) -> list[Evaluation]:
    """`evaluate` of models that differ in their numbers only; several are one program, which rounds otherwise."""
    totals = [Evaluation(0.0, 0) for _ in models]
    for window in _cut(ids, reset_every, len(models) * models[0].vocab_size):
        carry = models[0].initialize_carry(window[0].shape[1])
        for part, windows in read(models, carry, *window):
            tokens = int(window[-1][part].sum())
            totals = [total + _evaluated(known, tokens) for total, known in zip(totals, windows, strict=True)]
            on_progress(tokens)
    return totals


def _evaluated(window: Window, tokens: int) -> Evaluation:
    return Evaluation(float(window.nats.sum()), tokens, {name: float(x) for name, x in window.max_abs.items()})


def _cut(ids: np.ndarray, reset_every: int, numbers: int) -> Iterator[list[np.ndarray]]:
    """Windows of `reset_every` tokens (0: one of all): inputs, labels and which are real, all [T, B].

    As many are side by side as a call may make logits for; one token takes so many `numbers`.
    """
    scored = len(ids) - 1
    length = min(reset_every or scored, scored)
    count = -(-scored // length)
    width = max(1, min(count, MAX_WINDOWS, MAX_LOGITS // numbers))
    filled = np.pad(ids, (0, -(-count // width) * width * length + 1 - len(ids)))
    for start in range(0, count * length, width * length):
        stop = start + width * length
        valid = np.arange(start, stop) < scored
        yield [a.reshape(width, length).T for a in (filled[start:stop], filled[start + 1 : stop + 1], valid)]
