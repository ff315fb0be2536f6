import jax
import pytest

from rnn_lm.data.corpus import load_corpus
from rnn_lm.nn import native
from rnn_lm.program import batches_of
from rnn_lm.training.loop import Trainer
from rnn_lm.training.opening import machine_code, model_lines, text_lines
from rnn_lm.training.run import Run
from tests.conftest import small_config

needs_compiler = pytest.mark.skipif(not native.is_available(), reason="no C++ compiler here, or RNN_LM_NATIVE=0")


@pytest.fixture
def trainer_of(text_file, tmp_path):
    """A trainer of a new run."""
    opened = []

    def of(**changes):
        config = small_config(text_file, **changes)
        corpus = load_corpus(**config.corpus)
        run = Run(config, tmp_path / str(len(opened)), corpus)
        opened.append(Trainer([run], batches_of(run.program, corpus)))
        return opened[-1]

    yield of
    for trainer in opened:
        trainer.close()


@needs_compiler
def test_the_first_lines_are_those_of_the_run(text_file, tmp_path, trainer_of):
    trainer = trainer_of(model__cell="gru", model__num_layers=2)
    corpus = trainer.runs[0].corpus
    total = len(text_file.read_text())
    assert [*text_lines(corpus)] == [
        f"text: {text_file}",
        f"tokens: {total - 2 * (total // 10):,} for training, {total // 10:,} validation, {total // 10:,} test",
        "vocabulary: 21 tokens (characters and <unk>)",
    ]
    gates = 3 * 16
    layers = sum(inputs * gates + 16 * gates + gates + 16 for inputs in (21, 16))
    assert [*model_lines(trainer)] == [
        f"model: gru, 2 layers of 16 units, {layers + 16 * 21 + 21:,} parameters",
        f"device: {jax.devices()[0].device_kind}",
        "machine code (C++ kernels): used",
        f"folder: {tmp_path / '0'}, a new run",
    ]
    trainer.runs[0].first_step = 1200
    assert [*model_lines(trainer)][-1] == f"folder: {tmp_path / '0'}, resumed at step 1,200"
    mlp = trainer_of(model__kind="mlp", model__context=4)
    assert next(model_lines(mlp)).startswith("model: mlp over 4 tokens, 16 units, ")


@needs_compiler
def test_why_there_is_no_machine_code(trainer_of, monkeypatch):
    plain, other = trainer_of(), trainer_of(model__layer_norm=True)
    assert machine_code(other) == "used for the output layer alone"
    half = trainer_of(model__layer_norm=True, model__dtype="bfloat16")
    assert machine_code(half) == "not used, there is none for this model"
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert machine_code(plain) == "not used, the device is not a CPU"
    for name, value, why in [
        ("RNN_LM_NATIVE", "0", "RNN_LM_NATIVE is 0"),
        ("CXX", "no-such-compiler -x", "there is no C++ compiler no-such-compiler"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert machine_code(plain) == f"not used, {why}"
    with monkeypatch.context() as patch:
        patch.setattr("rnn_lm.nn.cpu.library._loaded", False)
        assert machine_code(plain) == "not used, it could not be compiled or loaded"
    with monkeypatch.context() as patch:
        patch.setattr(native, "cpu", None)
        assert machine_code(plain) == "not used, the package has none"
    assert machine_code(plain) == "used"
