"""PyTorch's numbers for the three cells, as small committed files: torch itself is no dependency of the tests.

pip install torch && python -m tests.references.make_torch
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
T, B, D, H = 6, 3, 4, 5
LENGTHS = np.array([6, 2, 4])
KINDS = {"elman": ("RNN", {}), "relu": ("RNN", {"nonlinearity": "relu"}), "gru": ("GRU", {}), "lstm": ("LSTM", {})}


def reference(kind: str, with_lengths: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights, inputs, outputs, last states and all gradients of one layer, in float64 and PyTorch's layout."""
    import torch

    torch.manual_seed(seed)
    name, options = KINDS[kind]
    layer = getattr(torch.nn, name)(D, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(1, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2 if kind == "lstm" else 1)]
    given = tuple(states) if kind == "lstm" else states[0]
    if with_lengths:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
        y, last = layer(packed, given)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    else:
        y, last = layer(x, given)
    last = list(last) if kind == "lstm" else [last]
    weights = torch.randn_like(y)
    ((y * weights).sum() + sum((i + 2) * state.sum() for i, state in enumerate(last))).backward()
    tensors = dict(layer.named_parameters()) | {"x": x} | {f"state{i}": s for i, s in enumerate(states)}
    arrays = {key: tensor.detach().numpy() for key, tensor in tensors.items()}
    arrays |= {f"grad_{key}": tensor.grad.numpy() for key, tensor in tensors.items()}
    arrays |= {"weights": weights.numpy(), "y": y.detach().numpy()}
    return arrays | {f"last{i}": state.detach().numpy() for i, state in enumerate(last)}


if __name__ == "__main__":
    for kind in KINDS:
        for with_lengths in (False, True):
            path = HERE / f"{kind}{'_lengths' if with_lengths else ''}.npz"
            np.savez_compressed(path, **reference(kind, with_lengths))
            print(path)
