"""Small language models of other libraries, their weights and logits, as committed files.

pip install torch && python -m tests.references.make_exchange pytorch
pip install keras && python -m tests.references.make_exchange keras linen
"""

import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "exchange"
V, E, H, T, B = 12, 6, 8, 5, 3
TOKENS = np.random.default_rng(0).integers(0, V, (T, B))


def pytorch_models():
    """What people write in PyTorch, with names of their own."""
    import torch
    from torch import nn

    class LM(nn.Module):
        def __init__(self, layer, *, tie=False):
            super().__init__()
            size = layer.input_size
            self.tok_emb = nn.Embedding(V, size) if size != V else None
            self.body, self.head = layer, nn.Linear(H, V)
            if tie:
                self.head.weight = self.tok_emb.weight

        def forward(self, tokens):
            one_hot = self.tok_emb is None
            x = nn.functional.one_hot(tokens, V).float() if one_hot else self.tok_emb(tokens)
            return self.head(self.body(x)[0])

    class MLP(nn.Sequential):
        def forward(
            self, tokens
        ):  # each token from itself and the two before it; the first two of the text are context
            return torch.stack([super(MLP, self).forward(tokens[t : t + 3].T) for t in range(T - 2)])

    torch.manual_seed(0)
    yield "lstm", LM(nn.LSTM(E, H, num_layers=2))
    yield "gru_one_hot", LM(nn.GRU(V, H))
    yield "relu_tied", LM(nn.RNN(H, H, nonlinearity="relu"), tie=True)
    yield "mlp", MLP(nn.Embedding(V, E), nn.Flatten(), nn.Linear(3 * E, H), nn.Tanh(), nn.Linear(H, V))


def of_pytorch():
    import torch

    for name, model in pytorch_models():
        with torch.no_grad():
            logits = model(torch.tensor(TOKENS)).numpy()
        yield name, {key: tensor.numpy() for key, tensor in model.state_dict().items()}, logits


def of_keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras import layers

    stacks = {
        "lstm": [layers.LSTM(H, return_sequences=True) for _ in range(2)],
        "gru": [layers.GRU(H, return_sequences=True)],
        "gru_reset_before": [layers.GRU(H, return_sequences=True, reset_after=False) for _ in range(2)],
        "simple": [layers.SimpleRNN(H, return_sequences=True)],
    }
    for seed, (name, stack) in enumerate(stacks.items()):
        model = keras.Sequential([keras.Input((T,), dtype="int32"), layers.Embedding(V, E), *stack, layers.Dense(V)])
        rng = np.random.default_rng(seed)
        for variable in model.weights:
            variable.assign(rng.normal(size=variable.shape) / 2)
        logits = np.asarray(model(TOKENS.T)).swapaxes(0, 1)
        yield name, {variable.path: np.asarray(variable.value) for variable in model.weights}, logits


def of_linen():
    import jax
    from flax import linen as nn
    from flax.traverse_util import flatten_dict

    class LM(nn.Module):
        cells: tuple[nn.RNNCellBase, ...]

        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(V, E)(tokens)
            for cell in self.cells:
                x = nn.RNN(cell, time_major=True)(x)
            return nn.Dense(V)(x)

    stacks = {
        "simple": (nn.SimpleCell(H),),
        "gru": (nn.GRUCell(H), nn.GRUCell(H)),
        "lstm": (nn.LSTMCell(H),),
        "optimized_lstm": (nn.OptimizedLSTMCell(H), nn.OptimizedLSTMCell(H)),
    }
    for seed, (name, stack) in enumerate(stacks.items()):
        model, rng = LM(stack), np.random.default_rng(seed)
        params = model.init(jax.random.key(0), TOKENS)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(np.float32) / 2, params)
        yield name, flatten_dict(params, sep="/"), np.asarray(model.apply(params, TOKENS))


def write(library, models):
    HERE.mkdir(exist_ok=True)
    for name, arrays, logits in models:
        path = HERE / f"{library}_{name}.npz"
        weights = {f"weights {key}": array for key, array in arrays.items()}
        np.savez_compressed(path, tokens=TOKENS, logits=logits, **weights)
        print(path)


def read(name):
    """Weights by their library's names, tokens [T, B] and logits [T, B, V]."""
    with np.load(HERE / f"{name}.npz") as file:
        weights = {key.removeprefix("weights "): file[key] for key in file if key.startswith("weights ")}
        return weights, file["tokens"], file["logits"]


if __name__ == "__main__":
    for library in sys.argv[1:]:
        write(library, {"pytorch": of_pytorch, "keras": of_keras, "linen": of_linen}[library]())
