"""The first lines of training: what is trained, on which text, by which means, and where."""

from collections.abc import Iterator

import jax

from rnn_lm.data.corpus import Corpus
from rnn_lm.data.vocabulary import KINDS
from rnn_lm.nn import native
from rnn_lm.runs.origin import Origin
from rnn_lm.training.loop import Trainer


def text_lines(corpus: Corpus, origin: Origin | None = None) -> Iterator[str]:
    """The text, its splits and its vocabulary, and the weights to start from."""
    train, valid, test = (f"{len(split.ids):,}" for split in (corpus.train, corpus.valid, corpus.test))
    yield f"text: {corpus.name}"
    yield f"tokens: {train} for training, {valid} validation, {test} test"
    yield f"vocabulary: {len(corpus.vocabulary):,} tokens ({KINDS[corpus.vocabulary.kind]} and <unk>)"
    if origin:
        yield origin.line(corpus)


def model_lines(trainer: Trainer) -> Iterator[str]:
    """The model, the device, the machine code, and where the run is kept."""
    model, [run] = trainer.config.model, trainer.runs
    count = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    if model.kind == "mlp":
        shape = f"mlp over {model.context} tokens, {model.num_hiddens:,} units"
    else:
        layers = "1 layer" if model.num_layers == 1 else f"{model.num_layers} layers"
        shape = f"{model.cell}, {layers} of {model.num_hiddens:,} units"
    yield f"model: {shape}, {count:,} parameters"
    size = trainer.mesh.size
    yield f"device: {jax.devices()[0].device_kind}" if size == 1 else f"devices: {size}, {jax.devices()[0].device_kind}"
    yield f"machine code (C++ kernels): {machine_code(trainer)}"
    yield f"folder: {run.workdir}, {f'resumed at step {run.first_step:,}' if run.first_step else 'a new run'}"


def machine_code(trainer: Trainer) -> str:
    """Whether the program of a trainer uses machine code, or why it does not."""
    if jax.default_backend() != "cpu":
        return "not used, the device is not a CPU"
    if native.cpu is None:
        return "not used, the package has none"
    if reason := native.cpu.why_not():
        return f"not used, {reason}"
    program = str(trainer.traced().jaxpr)
    parts = [part for part in ("recurrence", "output layer") if native.cpu.is_in(program, part)]
    if not parts:
        return "not used, there is none for this model"
    return "used" if len(parts) == 2 else f"used for the {parts[0]} alone"
