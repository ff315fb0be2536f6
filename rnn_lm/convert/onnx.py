"""A language model → model.onnx, which ONNX Runtime and others read. Needs the package onnx, but no jax."""

from collections.abc import Sequence
from itertools import count
from typing import Any, TypeAlias

import numpy as np

import rnn_lm
from rnn_lm.convert.weights import Weights
from rnn_lm.errors import UserError
from rnn_lm.files import Json

try:
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UserError("model.onnx needs the package onnx: pip install onnx") from error

OPSET, IR_VERSION = 17, 8  # of 2022: what runtimes of the years since then read
MAX_BYTES = 2**31 - 2**20  # of arrays; with all else a file may have 2 GiB
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LAST = np.iinfo(np.int64).max  # a slice's end
# Each cell's operator, and where our gates stand in its order: z r h in place of r z n, i o f c in place of i f g o.
OPERATORS = {"elman": ("RNN", [0]), "gru": ("GRU", [1, 0, 2]), "lstm": ("LSTM", [0, 3, 1, 2])}
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "identity": "Identity"}
DOC = """A language model of rnn_lm: token ids -> logits of the next token.

Inputs: tokens int64 [T, B], T >= 1 steps of B sequences, and the state before the first of them, {states}.
Outputs: logits float32 [T, B, V], entry t for the token after token t, and the state after the last token, under the
same names with the ending _after. Give it back to read on; one token at a time (T = 1) gives the same as all at once.
Before a text, the state is {start}."""
Arrays: TypeAlias = dict[str, np.ndarray]
Input: TypeAlias = str | np.ndarray | Sequence[int]  # the name of a value, or a new array


def to_onnx(weights: Weights) -> bytes:
    """The model as a serialized ONNX file that reads sequences of any length T ≥ 1, in batches of any size B.

    Inputs are `tokens` int64 [T, B] and the state before the first token, outputs `logits` float32 [T, B, V] and the
    state after the last one. Layer N's state is `h_N` [B, H], of an LSTM also `c_N` [B, H]; an MLP's is `context` int64
    [B, n−1], the tokens before, or −1 before the first. The outputs are named `h_0_after` and so on.

    All is float32. A model of dtype bfloat16 rounds the factors of its products in JAX, but not here.

    Raises:
      UserError: for a cell other than elman, gru and lstm, or arrays of 2 GiB.
    """
    model, arrays, vocabulary = weights.model, weights.arrays, weights.vocabulary
    is_mlp, size = model["kind"] == "mlp", sum(4 * array.size for array in arrays.values())
    if not is_mlp and model["cell"] not in OPERATORS:
        raise UserError(f"model.onnx has no operator for the cell {model['cell']!r}; it has {', '.join(OPERATORS)}")
    if size > MAX_BYTES:
        raise UserError(f"model.onnx can have 2 GiB; the model's arrays have {size / 2**30:.1f} GiB")
    graph = _Graph()
    h = (_mlp if is_mlp else _rnn)(graph, weights)
    tied = "w_hq" not in arrays  # transposed here, so that the file has it once
    w_hq = graph.op("Transpose", "embedding") if tied else graph.array(arrays["w_hq"], "w_hq")
    graph.op("Add", graph.op("MatMul", h, w_hq), graph.array(arrays["b_q"], "b_q"), output="logits")

    values = [("tokens", INT64, ["T", "B"]), *graph.states]
    results: list[tuple] = [("logits", FLOAT, ["T", "B", len(arrays["b_q"])])]
    results += [(_after(name), dtype, shape) for name, dtype, shape in graph.states]
    states = ", ".join(f"{name} [B, {shape[1]}]" for name, _, shape in graph.states)
    proto = helper.make_model(
        graph.proto("language_model", values, results, list(graph.arrays.values())),
        producer_name="rnn_lm",
        producer_version=rnn_lm.__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        doc_string=DOC.format(states=states, start="-1" if is_mlp else "zeros"),
    )
    helper.set_model_props(proto, {"tokens": vocabulary.kind, "normalize": vocabulary.normalize})
    return proto.SerializeToString(deterministic=True)


class _Graph:
    """Nodes in order, and arrays by name. The body of a loop shares the arrays of the graph around it."""

    def __init__(self, outer: "_Graph | None" = None):
        self.nodes: list[Any] = []
        self.states: list[tuple[str, int, Any]] = []
        self.arrays: dict[str, Any] = outer.arrays if outer else {}
        self.numbers: count = outer.numbers if outer else count()

    def array(self, value: Input, name: str = "") -> str:
        """The name of a new array: int64 or, whatever the type of its numbers, float32."""
        name = name or f"array_{next(self.numbers)}"
        value = np.asarray(value)
        value = value.astype(np.int64 if value.dtype.kind == "i" else np.float32)
        self.arrays[name] = numpy_helper.from_array(value, name)
        return name

    def op(self, kind: str, *inputs: Input, output: str = "", **attributes: Any) -> str:
        """The name of an operator's one output."""
        (name,) = self.ops(kind, *inputs, names=[output] if output else None, **attributes)
        return name

    def ops(
        self, kind: str, *inputs: Input, outputs: int = 1, names: list[str] | None = None, **attributes: Any
    ) -> list[str]:
        """The names of an operator's outputs."""
        names = names or [f"{kind}_{next(self.numbers)}" for _ in range(outputs)]
        given = [x if isinstance(x, str) else self.array(x) for x in inputs]
        self.nodes.append(helper.make_node(kind, given, names, **attributes))
        return names

    def state(self, name: str, dtype: int, size: int) -> str:
        """A new part of the state, [B, size]: an input, and an output of the name `_after(name)`."""
        self.states.append((name, dtype, ["B", size]))
        return name

    def proto(self, name: str, inputs: Sequence[tuple], outputs: Sequence[tuple], arrays: Sequence[Any] = ()) -> Any:
        """What onnx calls a graph; inputs and outputs are (name, type, shape)."""
        read, written = ([helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs))
        return helper.make_graph(self.nodes, name, read, written, arrays)


def _after(state: str) -> str:
    return f"{state}_after"


def _rnn(graph: _Graph, weights: Weights) -> str:
    """The recurrent layers: H_t [T, B, H]."""
    model, x = weights.model, None
    if "embedding" in weights.arrays:
        x = graph.op("Gather", graph.array(weights.arrays["embedding"], "embedding"), "tokens")
    for number, layer in enumerate(weights.layers):
        letters = "hc" if model["cell"] == "lstm" else "h"
        states = [graph.state(f"{letter}_{number}", FLOAT, len(layer["w_hh"])) for letter in letters]
        x = (_normalized_layer if model["layer_norm"] else _layer)(graph, model, layer, x, states)
    assert x is not None
    return x


def _layer(graph: _Graph, model: Json, layer: Arrays, x: str | None, states: list[str]) -> str:
    """A layer by ONNX's operator. Without `x [T, B, D]`, it reads one-hot vectors of the tokens."""
    operator, order = OPERATORS[model["cell"]]
    w_xh, w_hh, b_xh = (
        np.concatenate([np.split(layer[name], len(order), axis=-1)[i] for i in order], axis=-1)
        for name in ("w_xh", "w_hh", "b_h")
    )
    b_hh = np.zeros_like(b_xh)  # the operators have two biases
    options: dict[str, Any] = {"hidden_size": len(w_hh)}
    if operator == "RNN" and model["activation"] == "identity":
        options |= {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}
    elif operator == "RNN":
        options |= {"activations": [ACTIVATIONS[model["activation"]]]}
    elif operator == "GRU":
        options |= {"linear_before_reset": int(model["reset_after"])}
    if "b_hn" in layer:
        b_hh[-len(w_hh) :] = layer["b_hn"]

    x, w = (x, graph.array(w_xh.T)) if x else _one_hot(graph, w_xh)
    w, r, b = graph.op("Unsqueeze", w, [0]), w_hh.T[None], np.concatenate([b_xh, b_hh])[None]
    before = [graph.op("Unsqueeze", state, [0]) for state in states]
    y, *after = graph.ops(operator, x, w, r, b, "", *before, outputs=1 + len(states), **options)
    for state, name in zip(states, after, strict=True):
        graph.op("Squeeze", name, [0], output=_after(state))
    return graph.op("Squeeze", y, [1])


def _one_hot(graph: _Graph, w_xh: np.ndarray) -> tuple[str, str]:
    """Vectors for the tokens and a matrix [G·H, D] to multiply them with, which give the tokens' rows of w_xh [V, G·H].

    The operators insist on a product. The narrower pair is taken: rows of the identity [V, V] with w_xh or, in a large
    vocabulary, where one-hot vectors would be as large as logits, rows of w_xh with the identity [G·H, G·H].
    """
    size = min(w_xh.shape)
    identity = graph.op("EyeLike", graph.op("ConstantOfShape", [size, size]))  # made when the file is loaded
    rows, w = (identity, graph.array(w_xh.T)) if len(w_xh) == size else (graph.array(w_xh), identity)
    return graph.op("Gather", rows, "tokens"), w


def _normalized_layer(graph: _Graph, model: Json, layer: Arrays, x: str | None, states: list[str]) -> str:
    """A layer with layer normalisation, which ONNX's operators lack: a loop over single steps."""
    hidden, number = len(layer["w_hh"]), len(OPERATORS[model["cell"]][1])
    b_hh = [np.zeros(hidden)] * number
    if "b_hn" in layer:
        b_hh[-1] = layer["b_hn"]
    z = graph.op("MatMul", x, layer["w_xh"]) if x else graph.op("Gather", layer["w_xh"], "tokens")
    projected = _normalized(graph, z, layer["scale_x"], np.split(layer["b_h"], number))

    body = _Graph(graph)
    old, x_t = [f"{state}_t" for state in states], [f"{name}_t" for name in projected]
    recurrent = _normalized(body, body.op("MatMul", old[0], layer["w_hh"]), layer["scale_h"], b_hh)
    new = _gates(body, model, layer, old, x_t, recurrent)
    new.append(body.op("Identity", new[0]))  # the step's output, which needs a name of its own
    inputs, outputs = ([(name, FLOAT, ["B", hidden]) for name in names] for names in (old + x_t, new))
    step = body.proto("step", inputs, outputs)
    *after, y = graph.ops("Scan", *states, *projected, outputs=len(new), body=step, num_scan_inputs=number)
    for state, name in zip(states, after, strict=True):
        graph.op("Identity", name, output=_after(state))
    return y


def _normalized(graph: _Graph, z: str, scale: np.ndarray, biases: Sequence[np.ndarray]) -> list[str]:
    """Layer normalisation over the units of each gate of z [..., G·H]: G times [..., H]."""
    gates = graph.ops("Split", z, outputs=len(biases), axis=-1)
    scales = np.split(scale, len(biases))
    return [graph.op("LayerNormalization", *three) for three in zip(gates, scales, biases, strict=True)]


def _gates(body: _Graph, model: Json, layer: Arrays, states: list[str], x: list[str], u: list[str]) -> list[str]:
    """A cell's equations: the next h, or h and c, given each gate's part x of the input and u of the old h."""

    def act(kind: str, gate: int) -> str:
        return body.op(kind, body.op("Add", x[gate], u[gate]))

    if model["cell"] == "elman":
        return [act(ACTIVATIONS[model["activation"]], 0)]
    if model["cell"] == "gru":
        r, z = act("Sigmoid", 0), act("Sigmoid", 1)
        n = body.op("Tanh", body.op("Add", x[2], body.op("Mul", r, u[2])))
        return [body.op("Add", n, body.op("Mul", z, body.op("Sub", states[0], n)))]
    i, f, g, o = (act(kind, gate) for gate, kind in enumerate(["Sigmoid", "Sigmoid", "Tanh", "Sigmoid"]))
    c = body.op("Add", body.op("Mul", f, states[1]), body.op("Mul", i, g))
    shown = body.op("LayerNormalization", c, layer["scale_c"], layer["b_c"])
    return [body.op("Mul", o, body.op("Tanh", shown)), c]


def _mlp(graph: _Graph, weights: Weights) -> str:
    """The hidden layer over the last n − 1 tokens: H_t [T, B, H]."""
    model, arrays = weights.model, weights.arrays
    width = model["context"]
    context = graph.state("context", INT64, width)
    read = graph.op("Concat", graph.op("Transpose", context), "tokens", axis=0)  # [n−1+T, B]
    graph.op("Transpose", graph.op("Slice", read, [-width], [LAST], [0]), output=_after(context))

    def window(rows: str, i: int) -> str:
        """Step t looks at rows t + 1 to t + n − 1; this is the i-th of them, for each step."""
        return graph.op("Slice", rows, [1 + i], [1 + i - width or LAST], [0])

    # Id −1 takes a table's last row, and so gets a row of zeros.
    if "embedding" in arrays:
        nothing = np.zeros((1, arrays["embedding"].shape[1]))
        table = graph.op("Concat", graph.array(arrays["embedding"], "embedding"), nothing, axis=0)
        vectors = graph.op("Gather", table, read)
        x = graph.op("Concat", *[window(vectors, i) for i in range(width)], axis=-1)
        z = graph.op("MatMul", x, arrays["w_xh"])
    else:  # the rows that the product with one-hot vectors would pick
        tables = [np.pad(table, ((0, 1), (0, 0))) for table in np.split(arrays["w_xh"], width)]
        z = graph.op("Sum", *[graph.op("Gather", table, window(read, i)) for i, table in enumerate(tables)])
    return graph.op(ACTIVATIONS[model["activation"]], graph.op("Add", z, arrays["b_h"]))
