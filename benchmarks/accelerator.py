"""What an accelerator does with this package, in seven parts that each end within eight minutes on one H100.

    python -m benchmarks.accelerator [--part=N] [--seconds=390] [--out=DIR] [--small]

1 training steps beside nnx.RNN, Haiku, Keras and PyTorch, 2 an LSTM layer beside cuDNN's, 3 resets, 4 many models
beside one alone, 5 sampling, 6 the time to the first step, 7 whether the bits are the same again. Without --part all
run, each in a process of its own. It needs jax, flax, optax, numpy and jaxtyping; peers that are not installed are left
out, and tokens are random. Each part writes accelerator-N.json anew as each case begins and ends, so what is stopped
loses nothing; the cases that matter most come first, and those that the seconds do not reach are noted as out of time.
RNN_LM_GPU_KERNELS=1 measures the package's kernels for GPUs. On a CPU it tests itself with small sizes.
"""

import argparse
import faulthandler
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import rnn

from benchmarks.common import Shape, interleaved, machine, save, table
from benchmarks.contenders import JAX_CONTENDERS, JaxTrainer, TorchSampler, TorchTrainer, products
from rnn_lm.data.batches import Batches
from rnn_lm.fields import FIELDS, parent_of
from rnn_lm.inference.generate import generate
from rnn_lm.members import Members
from rnn_lm.nn.cells import GRUCell, LSTMCell
from rnn_lm.nn.models import RNNLM
from rnn_lm.nn.recurrence import unroll
from rnn_lm.program import Numbers, program_of
from rnn_lm.training.step import TrainState, new_state, train_steps

CELLS = ("gru", "lstm", "elman")
PEERS = {name: find_spec(name) is not None for name in ("haiku", "keras", "torch")}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
PRECISIONS = ("high", "highest")  # of float32 products on a GPU: TF32, which is XLA's default, and float32
GRACE = 75  # seconds that the last case of a part, or a child, may take before the process is ended


@dataclass(frozen=True)
class Sizes:
    """All that is small in the test of the benchmark itself."""

    measuring: float = 0.8  # seconds for each case, all its contenders together
    calls: int = 4  # of a layer in one timing
    vocab: int = 256
    hidden: tuple[int, ...] = (256, 64, 512, 1024, 2048)  # 1
    batch_steps: tuple[int, int] = (64, 64)
    dispatch: int = 8  # training steps in one dispatch
    square: int = 8192  # rows of the product that stands for the device's limit
    layers: tuple[tuple[int, int], ...] = ((64, 256), (16, 64), (64, 1024), (64, 64), (16, 256), (16, 1024))  # 2: B, T
    layer_hidden: tuple[int, ...] = (256, 1024, 64, 2048, 512)
    resets: tuple[int, int, int] = (2048, 256, 128)  # 3: B, T, H
    cells: tuple[str, ...] = CELLS  # 4 to 7
    members: tuple[int, ...] = (32, 64)  # 4
    member: tuple[int, int, int, int] = (64, 64, 32, 32)  # V, H, B, T
    member_steps: int = 50  # in one dispatch
    texts: tuple[int, ...] = (1, 16, 256)  # 5: B
    length: int = 500
    start: tuple[int, int, int, int] = (256, 256, 64, 64)  # 6 and 7, and 5's V, H: V, H, B, T
    start_steps: int = 20


LARGE = Sizes()
SMALL = Sizes(
    measuring=0.05, calls=1, vocab=16, hidden=(8,), batch_steps=(4, 8), dispatch=2, square=64, layers=((2, 8),),
    layer_hidden=(8,), resets=(4, 8, 8), members=(2, 3), member=(16, 8, 2, 8), member_steps=2, texts=(1, 2), length=8,
    start=(16, 8, 2, 8), start_steps=4, cells=("gru",),
)  # fmt: skip


def measured(makers: Mapping[str, Callable[[], Callable]], seconds: float, per: int = 1) -> dict[str, Any]:
    """Milliseconds of each contender, made ready one after the other and then timed in turn; `per` things in a call.

    `ratio` is to the first one's time. Of another one that fails there is the error.
    """
    ready: dict[str, Callable] = {}
    errors = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
        except Exception as error:
            if not ready:
                raise
            errors[name] = one_line(error)
        else:
            ready[name] = run
    timings = interleaved(ready, seconds)
    first, *others = timings
    ms = {
        name: {"best": 1e3 * t.best / per, "median": 1e3 * t.median / per, "repetitions": len(t.seconds)}
        for name, t in timings.items()
    }
    ratio = {name: {which: ms[name][which] / ms[first][which] for which in ("best", "median")} for name in others}
    return {"ms": ms, "ratio": ratio, "errors": errors}


def calls(function: Callable, *args: Any, count: int) -> Callable[[], Any]:
    """A compiled function, called so many times before it is waited for. Returns the last result."""

    def run() -> Any:
        for _ in range(count):
            result = function(*args)
        return jax.block_until_ready(result)

    return run


def difference(a: Any, b: Any) -> float:
    """The largest difference between the leaves of two trees, relative to each leaf's largest number."""
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)) for x, y in pairs)


def training(sizes: Sizes, hidden: int, dtype: str, cell: str) -> dict[str, Any]:
    """Whole steps: gradient, clipping, Adam; several in one dispatch. On a GPU, products of float32 are of TF32 here.

    `share_of_product` is a step's products a second by those of one large product.
    """
    shape = Shape(cell, sizes.vocab, hidden, *sizes.batch_steps, dtype=dtype)
    given = np.random.default_rng(0).integers(0, shape.vocab_size, (2, sizes.dispatch, shape.steps, shape.batch))
    given = given.astype(np.int32)
    trainers: dict[str, Any] = {}

    def make(name: str) -> Callable[[], float]:
        contender = JAX_CONTENDERS.get(name)
        trainers[name] = JaxTrainer(contender, shape, *given) if contender else TorchTrainer(shape, *given)
        first = trainers[name].run()  # as good as guessing: all do the same work
        if not abs(first - np.log(shape.vocab_size)) < 1:
            raise ValueError(f"starts with a loss of {first}")
        return trainers[name].run

    names = ["rnn_lm", "nnx.RNN"]
    if dtype == "float32":
        names += [name for name, there in PEERS.items() if there]
    result = measured({name: partial(make, name) for name in names}, sizes.measuring, per=sizes.dispatch)
    seconds = result["ms"]["rnn_lm"]["best"] / 1e3
    flops = sum(2 * np.prod(sides, dtype=float) for sides in products(shape))
    return result | {
        "tokens_per_second": shape.steps * shape.batch / seconds,
        "share_of_product": flops / seconds / flops_of_product(sizes.square, dtype),
        "compile_s": {name: t.compile_seconds for name, t in trainers.items() if hasattr(t, "compile_seconds")},
    }


@cache
def flops_of_product(rows: int, dtype: str) -> float:
    """Floating-point operations a second of one large square matrix product, the best of several."""
    a = jnp.ones((rows, rows), dtype)
    run = calls(jax.jit(jnp.matmul), a, a, count=4)
    run()
    return 4 * 2 * rows**3 / interleaved({"": run}, seconds=0.3)[""].best


def lstm_layer(sizes: Sizes, batch: int, steps: int, hidden: int, precision: str) -> dict[str, Any]:
    """A layer, D = H, forward and backward to parameters, state and inputs, beside cuDNN's with the same weights."""
    cell = LSTMCell(hidden, hidden, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell, nnx.Param)
    x, h = jax.random.normal(jax.random.key(0), (steps, batch, hidden)), jnp.zeros((1, batch, hidden))
    results = {}

    def own(params: Any, carry: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(unroll(nnx.merge(graphdef, params), carry, x)[1] ** 2)

    def cudnn(weights: jax.Array, carry: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(cudnn_lstm(weights, carry, x) ** 2)

    def make(name: str, loss: Callable, *args: Any) -> Callable[[], Any]:
        if loss is cudnn and jax.default_backend() != "gpu":
            raise RuntimeError("needs a GPU with cuDNN")
        run = calls(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))), *args, count=sizes.calls)
        results[name] = run()
        return run

    with jax.default_matmul_precision(precision):
        makers = {
            "rnn_lm": lambda: make("rnn_lm", own, params, cell.initialize_carry((batch, hidden)), x),
            "cuDNN": lambda: make("cuDNN", cudnn, packed(params), (h, h), x.swapaxes(0, 1)),
        }
        result = measured(makers, sizes.measuring, per=sizes.calls)
    if "cuDNN" in results:
        (loss, (d_params, _, d_x)), (its_loss, (d_weights, _, its_d_x)) = results.values()
        biases = -4 * hidden  # cuDNN's second bias has the same gradient once more
        ours = loss, packed(d_params)[:biases], d_x.swapaxes(0, 1)
        result["difference"] = difference(ours, (its_loss, d_weights[:biases], its_d_x))
    return result


def packed(params: Any) -> jax.Array:
    """An `LSTMCell`'s parameters as cuDNN's one vector: gates in the same order, a second bias of zeros."""
    w_xh, w_hh, b_h = (params[name][...] for name in ("w_xh", "w_hh", "b_h"))
    return jnp.concatenate([w_xh.T.ravel(), w_hh.T.ravel(), b_h, jnp.zeros_like(b_h)])


def cudnn_lstm(weights: jax.Array, carry: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """The layer of cuDNN: carry (h, c), each [1, B, H], x [B, T, D] → y [B, T, H]."""
    batch, steps, size = x.shape
    y, _, _ = rnn.lstm(
        x, *carry, weights, seq_lengths=jnp.full((batch,), steps, jnp.int32), input_size=size,
        hidden_size=carry[0].shape[-1], num_layers=1, dropout=0.0, bidirectional=False,
    )  # fmt: skip
    return y


def resets(sizes: Sizes, precision: str, dtype: str) -> dict[str, Any]:
    """A GRU layer, D = H, forward and backward to parameters and inputs, by the share of steps that are reset.

    Beside it a plain scan with a `where`, with which values and gradients are compared, and nnx.RNN without resets.
    """
    batch, steps, hidden = sizes.resets
    cell = GRUCell(hidden, hidden, dtype=dtype, rngs=nnx.Rngs(0))
    theirs = nnx.RNN(nnx.GRUCell(hidden, hidden, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), time_major=True)
    x = jax.random.normal(jax.random.key(0), (steps, batch, hidden))
    h = jnp.zeros((batch, hidden))
    drawn = np.random.default_rng(0).random((steps, batch))
    masks = {f"{share:.0%}": jnp.asarray(drawn < share) for share in (0, 0.01, 0.1)}

    def own(cell: Any, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return unroll(cell, h, x, resets=mask)[1]

    def plain(cell: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, at: cell(jnp.where(at[1][:, None], 0, h), at[0]), h, (x, mask))[1]

    def peer(layer: Any, x: jax.Array) -> jax.Array:
        return layer(x, initial_carry=h.astype(dtype))

    def compiled(function: Callable, module: nnx.Module) -> Callable:
        graphdef, params, rest = nnx.split(module, nnx.Param, ...)

        def loss(params: Any, x: jax.Array, *mask: jax.Array) -> jax.Array:
            return jnp.mean(function(nnx.merge(graphdef, params, rest), x, *mask).astype(jnp.float32) ** 2)

        return partial(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), params)

    with jax.default_matmul_precision(precision):
        ours, scanned, flax = compiled(own, cell), compiled(plain, cell), compiled(peer, theirs)
        runs = {"no resets": calls(ours, x, count=sizes.calls)}
        runs |= {name: calls(ours, x, mask, count=sizes.calls) for name, mask in masks.items()}
        runs["plain scan, 1%"] = calls(scanned, x, masks["1%"], count=sizes.calls)
        runs["nnx.RNN, no resets"] = calls(flax, x, count=sizes.calls)
        result = measured({name: lambda run=run: run for name, run in runs.items()}, sizes.measuring, per=sizes.calls)
        if "plain scan, 1%" in result["ms"]:
            result["difference"] = difference(runs["1%"](), runs["plain scan, 1%"]())
    return result


def training_run(shape: Shape, members: int = 1) -> tuple[TrainState, Callable[..., Any]]:
    """A new state, and `steps(state, until)`: training on minibatches of random tokens."""
    given: dict[str, Any] = {}
    for name, field in FIELDS.items():
        parent_of(given, name, create=True)[name.rpartition(".")[2]] = field.default
    given |= {"batch_size": shape.batch, "segment_length": shape.steps}
    given["model"] |= {"cell": shape.cell, "num_hiddens": shape.hidden}
    program, numbers = program_of(given, shape.vocab_size)
    ids = np.random.default_rng(0).integers(1, shape.vocab_size, 100 * shape.batch * shape.steps)
    batches = Batches.of(ids, batch_size=shape.batch, segment_length=shape.steps, partition="sequential")
    axis = Members(members)
    each: list[Numbers] = [numbers._replace(seed=seed).arrays() for seed in range(members)]
    start = new_state(program, each[0])
    stacked = axis.stack(each)

    def steps(state: TrainState, until: int) -> Any:
        return train_steps(state, jnp.int32(until), batches, stacked, program=program, members=axis)

    return axis.stack(members * [start]), steps


def population(sizes: Sizes, cell: str) -> dict[str, Any]:
    """Runs side by side as one program beside one alone: milliseconds of a step of all of them."""
    shape = Shape(cell, *sizes.member)
    losses = {}

    def make(members: int) -> Callable[[], Any]:
        state, steps = training_run(shape, members)
        now: list[Any] = [state, 0]

        def run() -> Any:
            now[1] += sizes.member_steps
            now[0], report = steps(now[0], now[1])
            return jax.block_until_ready(report)

        losses[members] = np.ravel(run()["means"].values["nll"])[0]
        return run

    makers = {"alone": lambda: make(1)} | {f"{count} members": partial(make, count) for count in sizes.members}
    result = measured(makers, sizes.measuring, per=sizes.member_steps)
    return result | {"difference": {f"{m} members": difference(losses[m], losses[1]) for m in losses if m > 1}}


def sampling(sizes: Sizes, texts: int, cell: str) -> dict[str, Any]:
    """New texts, token by token: milliseconds of a step of all of them."""
    vocab, hidden, _, _ = sizes.start
    model = RNNLM(vocab, hidden, cell=cell, rngs=nnx.Rngs(0))
    prompt, key = np.ones(1, np.int32), jax.random.key(0)
    makers: dict[str, Callable] = {
        "rnn_lm": lambda: partial(generate, model, prompt, sizes.length, key=key, num_samples=texts)
    }
    if PEERS["torch"]:
        makers["torch"] = lambda: TorchSampler(Shape(cell, vocab, hidden, texts, sizes.length)).run
    result = measured(makers, sizes.measuring, per=sizes.length)
    result["tokens_per_second"] = {name: 1e3 * texts / ms["best"] for name, ms in result["ms"].items()}
    likeliest = generate(model, prompt, sizes.length, key=key, temperature=0)[0]
    _, logits = model(model.initialize_carry(1), jnp.asarray([*prompt, *likeliest[:-1]])[:, None])
    result["as_forward"] = float(np.mean(likeliest == 1 + np.argmax(logits[:, 0, 1:], axis=-1)))  # never id 0
    return result


def started(shape: Shape, steps: int, **environment: str) -> dict[str, Any]:
    """What `child` finds out in a process that starts now."""
    what = json.dumps({"shape": asdict(shape), "steps": steps, "started": time.time()})
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--child={what}"]
    process = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError("in the child: " + (process.stderr.strip().splitlines() or ["no word"])[-1])
    return json.loads(process.stdout.splitlines()[-1])


def child(shape: dict[str, Any], steps: int, started: float) -> None:
    """Takes training steps; prints the seconds from `started` (Unix time) to the first two, and a hash of the end."""
    faulthandler.dump_traceback_later(GRACE, exit=True)
    state, steps_until = training_run(Shape(**shape))
    seconds = []
    for until in (1, 2, steps):
        state, report = jax.block_until_ready(steps_until(state, until))
        seconds.append(time.time() - started)
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(state.params))))
    nll = float(report["means"].values["nll"])
    print(json.dumps({"first": seconds[0], "second": seconds[1], "bits": digest.hexdigest()[:16], "nll": nll}))


def first_step(sizes: Sizes, cell: str) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first two training steps, by its compilation cache."""
    start = partial(started, Shape(cell, *sizes.start), 2)
    with tempfile.TemporaryDirectory() as folder:
        cached = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        found = {"no cache": start(JAX_ENABLE_COMPILATION_CACHE="false")}
        found |= {name: start(**cached) for name in ("empty cache", "filled cache")}
    return {f"{step}_step_s": {name: its[step] for name, its in found.items()} for step in ("first", "second")}


def same_bits(sizes: Sizes, flags: str, cell: str) -> dict[str, Any]:
    """Whether two processes train to the same parameters, bit by bit."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    runs = [started(Shape(cell, *sizes.start), sizes.start_steps, XLA_FLAGS=flags) for _ in range(2)]
    return {"same": runs[0]["bits"] == runs[1]["bits"], "runs": [f"{run['bits']}, {run['nll']}" for run in runs]}


Cases = Callable[[Sizes], Iterable[tuple]]
PARTS: dict[int, tuple[Callable, Cases]] = {
    1: (training, lambda s: ((h, d, c) for d, h, c in product(("float32", "bfloat16"), s.hidden, CELLS))),
    2: (lstm_layer, lambda s: ((*layer, *rest) for layer, *rest in product(s.layers, s.layer_hidden, PRECISIONS))),
    3: (resets, lambda s: [("high", "float32"), ("high", "bfloat16"), ("highest", "float32")]),
    4: (population, lambda s: product(s.cells)),
    5: (sampling, lambda s: product(s.texts, s.cells)),
    6: (first_step, lambda s: product(s.cells)),
    7: (same_bits, lambda s: product((DETERMINISTIC, ""), s.cells)),
}


def run_part(number: int, sizes: Sizes, seconds: float, out: str) -> None:
    """One part: its file, written anew as each case begins and ends, and its table."""
    measure, cases = PARTS[number]
    end = time.perf_counter() + seconds
    names = list(inspect.signature(measure).parameters)[1:]
    results: list[dict[str, Any]] = []
    about = machine() | {"backend": jax.default_backend(), "devices": jax.device_count()}
    settings = "XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "RNN_LM_GPU_KERNELS"
    about |= {name: os.environ.get(name, "") for name in settings}
    about["not installed"] = [name for name, there in PEERS.items() if not there]
    record = {"part": measure.__name__, "machine": about, "sizes": asdict(sizes), "results": results}
    path = f"{out}/accelerator-{number}.json"
    for case in map(tuple, cases(sizes)):
        result: dict[str, Any] = {"case": dict(zip(names, case, strict=True))}
        results.append(result)
        if time.perf_counter() > end:
            result["skipped"] = "out of time"
        else:
            result["error"] = "the process ended here"
            save(path, record)
            start = time.perf_counter()
            try:
                found = measure(sizes, *case)
            except Exception as error:
                found = {"error": one_line(error)}
            del result["error"]
            result |= found | {"seconds": time.perf_counter() - start}
            print(", ".join(f"{key} {value}" for key, value in flat(result).items()), file=sys.stderr, flush=True)
        save(path, record)
    print(f"\n{measure.__name__}: " + ", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print(report(results), flush=True)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def flat(result: dict[str, Any]) -> dict[str, str]:
    """A case's numbers as text, by the names of columns."""
    texts = {}
    for name, value in result.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, dict):
                number = f"{number['best']:.4g} ({number['median']:.4g})"
            texts[f"{name} {inner}".strip()] = f"{number:.4g}" if isinstance(number, float) else str(number)
    return texts


def report(results: list[dict[str, Any]]) -> str:
    """All cases as a table; best (median)."""
    rows = [flat(result) for result in results]
    head = list(dict.fromkeys(name for row in rows for name in row))
    return table([name.removeprefix("case ") for name in head], [[row.get(name, "") for name in head] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=PARTS, help="one part only")
    parser.add_argument("--seconds", type=float, default=390, help="after which a part begins no further case")
    parser.add_argument("--out", default="benchmarks/results", help="the folder that the numbers go to")
    parser.add_argument("--small", action="store_true", help="small sizes, to test the benchmark itself")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a child and PyTorch need memory as well
    if arguments.child:
        child(**arguments.child)
    elif arguments.part is None:
        command = [sys.executable, "-m", "benchmarks.accelerator", *sys.argv[1:]]
        failed = [number for number in PARTS if subprocess.run([*command, f"--part={number}"]).returncode]
        if failed:
            sys.exit(f"these parts did not end well: {failed}")
    else:
        small = arguments.small or jax.default_backend() == "cpu"
        if small and not arguments.small:
            print("no accelerator: small sizes, which test the benchmark only", file=sys.stderr)
        faulthandler.dump_traceback_later(arguments.seconds + GRACE, exit=True)
        run_part(arguments.part, SMALL if small else LARGE, arguments.seconds, arguments.out)


if __name__ == "__main__":
    main()
