"""Random cells, shapes and options: is `unroll` what a Python loop over the cell is, in values and in gradients?

    python -m benchmarks.fuzz [--seconds=3600] [--seed=0] [--case=N]

The loop runs in float64; `unroll` in float64 too, or in float32, where machine code may run it. A case that differs or
raises is printed as the command that runs it alone; then the exit status is 1.
"""

# ruff: noqa: E402 — XLA reads its flags when JAX is first imported
import os

# A case compiles much and computes little.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rnn_lm.nn.cell import Cell
from rnn_lm.nn.cells import ElmanCell, GRUCell, LSTMCell, LSTMState, sigmoid
from rnn_lm.nn.recurrence import unroll
from rnn_lm.nn.stack import Stack
from rnn_lm.nn.truncation import RandomizedTruncation, SegmentTruncation, WindowTruncation

TOLERANCES = {"float64": 1e-8, "float32": 1e-3}


def is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def of_floats(f: Any, tree: Any, *others: Any) -> Any:
    """`f` of the floating-point leaves of carries; whole numbers stay those of the first."""
    return jax.tree.map(lambda a, *b: f(a, *b) if is_float(a) else a, tree, *others)


class Gated(Cell):
    num_gates = 2

    def gates(self, carry, projected, recurrent):
        f, z = jnp.split(projected + recurrent, 2, axis=-1)
        return sigmoid(f) * carry + (1 - sigmoid(f)) * jnp.tanh(z)


class Memoryless(nnx.RNNCellBase):
    num_feature_axes = 1

    def __init__(self, in_features, hidden_features, *, rngs, param_dtype):
        self.w = nnx.Param(rngs.normal((in_features, hidden_features), param_dtype))
        self.hidden_features = hidden_features

    def __call__(self, carry, inputs):
        return carry, jnp.tanh(inputs @ self.w[...])

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return ()


class Extended:
    """Parameters that methods below read, or not."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        h, dtype = sizes[1], self.param_dtype
        self.h0, self.scale = nnx.Param(jnp.linspace(-1, 1, h, dtype=dtype)), nnx.Param(jnp.ones(h, dtype))
        self.inner = nnx.Linear(h, h, rngs=options["rngs"], param_dtype=dtype)
        if isinstance(self, Projected):
            self.w_p = nnx.Param(jnp.eye(h, max(1, h - 1), dtype=dtype))
            self.w_hh = nnx.Param(self.w_hh[...][: self.w_p.shape[1]])
        if isinstance(self, Buffered):
            self.shift = nnx.Variable(jnp.linspace(0, 0.3, h * self.num_gates, dtype=dtype))
            self.order = nnx.Variable(jnp.arange(h * self.num_gates)[::-1])
        if isinstance(self, Changing):
            self.decay, self.steps = nnx.Variable(jnp.ones((), dtype)), nnx.Variable(jnp.zeros((), jnp.int32))


class Leaky(Extended):
    def step(self, carry, projected):
        return of_floats(lambda n, c: 0.6 * n + 0.4 * c, super().step(carry, projected), carry)


class Masked(Extended):
    def recur(self, carry):
        return self.product(self.output(carry), jnp.tril(self.w_hh[...]))


class Squashed(Extended):
    def product(self, x, w):
        return super().product(jnp.tanh(x), w)


class Clipped(Extended):
    def __call__(self, carry, inputs):
        carry, h = super().__call__(carry, inputs)
        return of_floats(lambda c: jnp.clip(c, -0.3, 0.3), carry), 2 * h


class Changing(Extended):
    """Changes its own state at each step."""

    def __call__(self, carry, inputs):
        self.decay[...], self.steps[...] = self.decay[...] * 0.9, self.steps[...] + 1
        carry, h = super().__call__(carry, inputs)
        return of_floats(lambda c: self.decay[...] * c, carry), h * self.steps[...].astype(h.dtype)


class Learned(Extended):
    """A learned initial state, which looks at the recurrent weights too."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        h0 = jnp.tanh(self.h0[...] + (self.w_hh[...].mean() if hasattr(self, "w_hh") else 0))
        return of_floats(lambda c: c + h0, super().initialize_carry(input_shape, rngs, carry_init))


class Shown(Extended):
    def output(self, carry):
        return super().output(carry) * self.scale[...].mean() + self.w_hh[...].mean()


class Nested(Extended):
    """Gates through a module inside the cell."""

    def gates(self, carry, projected, recurrent):
        return of_floats(lambda n: n + jnp.tanh(self.inner(n)), super().gates(carry, projected, recurrent))


class Reading(Extended):
    """Gates that read what has its own way through the fused scan."""

    def gates(self, carry, projected, recurrent):
        mean = jnp.tanh(self.w_hh[...].mean() + self.w_xh[...].mean() + self.b_h[...].mean())
        return of_floats(lambda n, c: n + mean * c, super().gates(carry, projected, recurrent), carry)


class Buffered(Extended):
    """Gates that read numbers that are no parameters, some of them whole."""

    def gates(self, carry, projected, recurrent):
        return super().gates(carry, projected + self.shift[...], recurrent[..., self.order[...]])


class Normed(Extended):
    def project(self, x):
        z = super().project(x)
        return z / (1 + jnp.square(z).mean(-1, keepdims=True)) + self.w_hh[...].mean()


class Projected(Extended):
    """Shows, and multiplies by `w_hh`, fewer units than it has."""

    def output(self, carry):
        return super().output(carry) @ self.w_p[...]


class Counted(NamedTuple):
    state: Any
    count: jax.Array


class Counting(Extended):
    """A carry with a whole number in it."""

    def gates(self, carry, projected, recurrent):
        return Counted(super().gates(carry.state, projected, recurrent), carry.count + 1)

    def output(self, carry):
        h = super().output(carry.state)
        return h / (jnp.abs(carry.count) + 1).astype(h.dtype)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        state = super().initialize_carry(input_shape, rngs, carry_init)
        return Counted(state, jnp.zeros((*input_shape[:-1], 1), jnp.int32))


BASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "elman": (ElmanCell, [{}, {"layer_norm": True}, {"activation": "relu"}, {"activation": "identity"}]),
    "gru": (GRUCell, [{}, {"layer_norm": True}, {"reset_after": False}]),
    "lstm": (LSTMCell, [{}, {"layer_norm": True}]),
    "gated": (Gated, [{}]),
    "flax gru": (nnx.GRUCell, [{}]),
    "flax lstm": (nnx.LSTMCell, [{}]),
    "memoryless": (Memoryless, [{}]),
}
OF_ANY = [Clipped, Learned, Changing]
OF_CELLS = [*OF_ANY, Leaky, Masked, Squashed, Shown, Nested, Reading, Buffered, Normed]
OF_THOSE_THAT_SHOW_H = [*OF_CELLS, Projected, Counting]  # all but the GRU that resets before the product


class Layer(NamedTuple):
    """How a cell is made."""

    base: str
    options: dict[str, Any]
    mixins: list[type]
    sizes: tuple[int, int]

    def make(self, dtype: str) -> nnx.RNNCellBase:
        base = BASES[self.base][0]
        cls = type(base)("Mixed", (*self.mixins, base), {}) if self.mixins else base
        return cls(*self.sizes, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype), **self.options)

    @property
    def shown(self) -> int:
        return max(1, self.sizes[1] - 1) if Projected in self.mixins else self.sizes[1]

    def words(self) -> list[str]:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return [self.base, *options, *(mixin.__name__ for mixin in self.mixins)]


class Case(NamedTuple):
    layers: list[Layer]
    tied: bool  # the second layer is the third one too
    dtype: str
    inputs: np.ndarray  # NaN, or ids out of range, past the ends
    valid: np.ndarray  # [T, *batch]
    masks: dict[str, np.ndarray]  # lengths, resets
    options: dict[str, Any]  # all others of `unroll`
    draws: dict[str, Any]  # of a random truncation: how often to keep, the seed of its key
    dropout: bool
    pairs: bool  # plain tuples as carries of LSTM cells
    jit: bool
    seed: int  # of the numbers

    def tags(self) -> list[str]:
        """What it is, to be counted and shown."""
        x, truncation = self.inputs, type(self.options.get("truncation")).__name__
        kind = "ids" if x.ndim == self.valid.ndim else f"{x.dtype} vectors"
        words = [w for layer in self.layers for w in layer.words()] + [f"{len(self.layers)} layers", self.dtype, kind]
        words += [f"{self.valid.ndim - 1} batch axes", "jit" if self.jit else "no jit", *self.masks]
        words += [truncation if name == "truncation" else name for name in self.options]
        words += ["RandomizedTruncation"] if self.draws else []
        return words + [name for name in ("tied", "dropout", "pairs") if getattr(self, name)]


def draw_layer(rng: np.random.Generator, size: int, bare: bool) -> Layer:
    names = ["elman", "gru", "lstm"] if bare else [*BASES, "elman", "gru", "lstm", "lstm"]
    name = names[rng.integers(len(names))]
    base, all_options = BASES[name]
    options = all_options[rng.integers(len(all_options))]
    possible = OF_THOSE_THAT_SHOW_H if issubclass(base, Cell) else OF_ANY
    possible = OF_CELLS if options.get("reset_after", True) is False else possible
    possible = [Learned] if bare else possible
    count = 0 if base is Memoryless else [0, 0, 0, 1][rng.integers(4)] if bare else [0, 0, 1, 1, 2, 3][rng.integers(6)]
    mixins = [possible[i] for i in rng.permutation(len(possible))[:count]]
    return Layer(name, {} if bare and "layer_norm" in options else options, mixins, (size, int(rng.integers(1, 6))))


def draw(seed: int, number: int) -> Case:
    """The case of this number."""
    rng = np.random.default_rng((seed, number))
    chance = lambda p: bool(rng.random() < p)  # noqa: E731
    pick = lambda *things: things[rng.integers(len(things))]  # noqa: E731
    dtype, steps = pick("float64", "float64", "float32"), int(pick(1, 2, 3, 3, 4, 4, 5, 7))
    size = int(rng.integers(1, 6))
    bare = dtype == "float32" and chance(0.6)  # what machine code runs
    batch = tuple(0 if chance(0.07) else int(rng.integers(1, 4)) for _ in range(1 if bare else pick(0, 1, 1, 1, 2)))
    layers: list[Layer] = []
    for _ in range(pick(1, 1, 1, 1, 2, 2, 3)):
        layers.append(draw_layer(rng, layers[-1].shown if layers else size, bare))
    if tied := len(layers) == 3 and not {Projected, Changing} & {*layers[1].mixins} and chance(0.5):
        square = layers[1]._replace(sizes=(layers[1].sizes[0],) * 2)
        layers = [layers[0], square, square]
    mixins, jit = {mixin for layer in layers for mixin in layer.mixins}, chance(0.85)
    masks, valid = {}, np.ones((steps, *batch), bool)
    if chance(0.4):
        masks["lengths"] = rng.integers(0, steps + 1, batch).astype(pick("int32", "int8", "int16"))
        valid = np.arange(steps).reshape(-1, *(1 for _ in batch)) < masks["lengths"]
    if chance(0.4):
        masks["resets"] = rng.random((steps, *batch)) < 0.3
    return Case(
        layers, tied, dtype, draw_inputs(rng, valid, layers[0], dtype, jit), valid, masks,
        *draw_options(rng, steps, mixins), len(layers) > 1 and chance(0.3),
        chance(0.2) and any("lstm" == layer.base for layer in layers), jit, int(rng.integers(99)),
    )  # fmt: skip


def draw_inputs(rng: np.random.Generator, valid: np.ndarray, first: Layer, dtype: str, jit: bool) -> np.ndarray:
    kinds = ["vectors", "vectors", "ids", "whole"] if issubclass(BASES[first.base][0], Cell) else ["vectors"]
    kind, size, beyond = kinds[rng.integers(len(kinds))], first.sizes[0], ~valid
    if kind == "ids":
        x = rng.integers(0, size, valid.shape).astype(["int32", "uint8"][rng.integers(2)])
        return np.where(beyond & jit, 100, x).astype(x.dtype)
    if kind == "whole":
        return rng.integers(-2, 3, (*valid.shape, size)).astype(["int32", "int8", "bool"][rng.integers(3)])
    return np.where(beyond[..., None], np.nan, rng.normal(size=(*valid.shape, size)).astype("float32")).astype(dtype)


def draw_options(rng: np.random.Generator, steps: int, mixins: set[type]) -> tuple[dict, dict]:
    options: dict[str, Any] = {name: True for name in ("reverse", "return_carries") if rng.random() < 0.4}
    truncation = ["", "", "segment", "randomized", "window"][rng.integers(5)]
    if truncation == "window" and not {Counting, Changing} & mixins:
        return options | {"truncation": WindowTruncation(int(rng.integers(1, steps + 2)))}, {}
    if rng.random() < 0.3:
        options["backward"] = "autodiff"
    if Changing not in mixins and rng.random() < 0.4:
        options["remat"] = [*range(1, 9), "sqrt", "sqrt"][rng.integers(10)]
    if truncation == "segment":
        options["truncation"] = SegmentTruncation(int(rng.integers(1, steps + 2)))
    keep = rng.uniform(0.3, 1.0, [(), (steps,)][rng.integers(2)]).astype("float32")
    return options, {"keep": keep, "seed": int(rng.integers(99))} if truncation == "randomized" else {}


def beside(mask: Any, x: Any) -> Any:
    return jnp.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))


def scaled(x: Any, factor: Any) -> Any:
    """The same value, its gradient multiplied by the factor."""
    return factor * x + (1 - factor) * jax.lax.stop_gradient(x)


def loop(
    case: Case, factors: list[Any], cell: Any, carry: Any, x: Any, passed: Any, resets: Any = None, **_: Any
) -> Any:
    """What `unroll` is to be; `passed [T, *batch]` multiplies the gradient of the state that a step starts from."""
    steps, (_, *batch) = order_of(case), case.valid.shape
    initial = jax.tree.leaves(cell.initialize_carry((*batch, 1), nnx.Rngs(0)))
    carries, outputs = [carry] * len(steps), [x] * len(steps)
    for t in steps:

        def where(mask: Any, a: Any, b: Any, t: int = t) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(beside(mask[t], a), a, b), a, b)

        entered = of_floats(lambda c, xi=passed[t]: scaled(c, beside(xi, c)), carry)
        if resets is not None:
            entered = where(resets, jax.tree.unflatten(jax.tree.structure(carry), initial), entered)
        new, y = step(cell, entered, where(case.valid, x[t], jnp.zeros_like(x[t])), [f[t] for f in factors])
        carries[t] = carry = where(case.valid, new, carry)
        outputs[t] = where(case.valid, y, jnp.zeros_like(y))
    made = jax.tree.map(lambda *c: jnp.stack(c), *carries) if "return_carries" in case.options else carry
    return made, jnp.stack(outputs)


def step(cell: Any, carry: Any, x: Any, factors: list[Any]) -> tuple[Any, Any]:
    """One step, with what dropout multiplies the inputs of upper layers by."""
    if not factors:
        return cell(carry, x)
    carries = []
    for layer, (below, state) in enumerate(zip(cell.cells, carry, strict=True)):
        state, x = below(state, x * factors[layer - 1] if layer else x)
        carries.append(state)
    return tuple(carries), x


def order_of(case: Case) -> list[int]:
    return list(range(len(case.valid)))[:: -1 if "reverse" in case.options else 1]


def truncated(case: Case, truncation: Any) -> tuple[np.ndarray, np.ndarray]:
    """What `loop` is told of truncation, and which steps' losses go by it: once, or for a window once for each loss."""
    order, valid = order_of(case), case.valid
    passed, one = np.ones((len(order), *valid.shape)), np.eye(len(order))[order]
    if isinstance(truncation, WindowTruncation):
        for (i, s), j in itertools.product(enumerate(order), range(len(order))):
            passed[j, s] = ~((sum(valid[order[i : j + 1]]) == truncation.steps) & valid[s] & (i <= j))
        return passed, one
    if isinstance(truncation, SegmentTruncation):
        seams = [i % truncation.steps == 0 and 0 < i < len(order) for i in range(len(order) + 1)]
        passed[0].T[..., :] = 1.0 - np.array(seams[1:] if order[0] else seams[:-1])
    if isinstance(truncation, RandomizedTruncation):
        passed[0].T[..., :] = truncation.passed(len(order), reverse="reverse" in case.options)
    passed[0][valid & (valid[order].cumsum(0)[order] == 1)] = 1.0  # no step of a sequence is before its first one
    return passed[:1], np.ones((1, len(order)))


def make(case: Case, dtype: str) -> Any:
    """The cell without its numbers, which would take a second to draw."""

    def cell() -> Any:
        cells = [layer.make(dtype) for layer in case.layers]
        cells[2:] = [cells[1]] if case.tied else cells[2:]
        return Stack(cells, dropout=0.4 * case.dropout) if len(cells) > 1 else cells[0]

    return nnx.eval_shape(cell)


def numbers_of(case: Case) -> tuple[list[np.ndarray], Any]:
    """Parameters and a carry, the same in both precisions."""
    rng, cell, batch = np.random.default_rng(case.seed), make(case, "float64"), case.valid.shape[1:]

    def drawn(kind: Any) -> np.ndarray:
        if is_float(kind):
            return rng.normal(scale=0.5, size=kind.shape).astype("float32")
        return np.flip(np.arange(kind.size, dtype=kind.dtype).reshape(kind.shape))

    def start(state: Any) -> Any:
        carry = nnx.merge(graphdef, state).initialize_carry((*batch, 1), nnx.Rngs(0))
        is_pair = lambda c: case.pairs and isinstance(c, LSTMState)  # noqa: E731
        return jax.tree.map(lambda c: tuple(c) if is_pair(c) else c, carry, is_leaf=is_pair)

    graphdef, state = nnx.split(cell)
    return [drawn(leaf) for leaf in jax.tree.leaves(state)], jax.tree.map(drawn, jax.eval_shape(start, state))


def results(run: Any, case: Case, dtype: str, numbers: Any, jit: bool, passed: Any, losses: Any) -> dict[str, Any]:
    """Values, and gradients of sums of them with random weights, all by name."""
    graphdef, state = nnx.split(make(case, dtype))
    arguments = jax.tree.unflatten(jax.tree.structure(state), numbers[0]), numbers[1], case.inputs, case.masks
    paths, tree = jax.tree.flatten_with_path(arguments)
    leaves = {jax.tree_util.keystr(path): jnp.asarray(a, dtype if is_float(a) else None) for path, a in paths}
    last = order_of(case)[-1]

    def loss(floats: dict, rest: dict, passed: Any, of_step: Any) -> tuple[Any, Any]:
        state, carry, x, masks = jax.tree.unflatten(tree, [(floats | rest)[name] for name in leaves])
        cell = nnx.merge(graphdef, state)
        carry, y = run(cell, carry, x, passed, **masks)
        rng, total = np.random.default_rng(7), 0.0
        of_carry = of_step if "return_carries" in case.options else of_step[last]
        for a, of in [(y, of_step), *((c, of_carry) for c in jax.tree.leaves(carry))]:
            if is_float(a):
                total += jnp.sum(a * beside(of, a) * rng.normal(size=a.shape).astype(dtype))
        return total, {"carry": carry, "outputs": y, "state": jax.tree.leaves(nnx.state(cell))}

    def summed(floats: dict, rest: dict) -> tuple[Any, Any]:
        if len(passed) == 1:
            return loss(floats, rest, passed[0], losses[0])
        totals, made = jax.vmap(partial(loss, floats, rest))(passed, losses)
        return totals.sum(), jax.tree.map(lambda a: a[0], made)

    floats = {name: leaf for name, leaf in leaves.items() if is_float(leaf)}
    rest = {name: leaf for name, leaf in leaves.items() if not is_float(leaf)}
    of = jax.value_and_grad(summed, has_aux=True)
    (_, made), gradients = (jax.jit(of) if jit else of)(floats, rest)
    return made | {"gradients": gradients}


def differences(case: Case) -> list[str]:
    """What is not as in the loop, in words."""
    with jax.enable_x64(True):
        numbers = numbers_of(case)
    with jax.enable_x64(case.dtype == "float64"):
        truncation, key = case.options.get("truncation"), jax.random.key(case.seed) if case.dropout else None
        if case.draws:
            truncation = RandomizedTruncation(jnp.asarray(case.draws["keep"]), jax.random.key(case.draws["seed"]))
        passed, losses = truncated(case, truncation)
        shapes = [(*case.valid.shape, layer.shown) for layer in case.layers[:-1]] if case.dropout else []
        stack = make(case, case.dtype)
        factors = [np.asarray(stack.drop(jnp.ones(s, case.dtype), i, key)) for i, s in enumerate(shapes, start=1)]
        options = case.options | {"truncation": truncation, "key": key}
        run = lambda cell, carry, x, _, **masks: unroll(cell, carry, x, **masks, **options)  # noqa: E731
        ones = np.ones((1, len(case.valid)), case.dtype)
        got = results(run, case, case.dtype, numbers, case.jit, ones, ones)
    with jax.enable_x64(True):
        of_loop = partial(loop, case, factors)
        expected = results(of_loop, case, "float64", numbers, True, jnp.asarray(passed), jnp.asarray(losses))
    return compared(got, expected, case.dtype)


def compared(got: Any, expected: Any, dtype: str) -> list[str]:
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return [f"trees: {jax.tree.structure(got)} is not {jax.tree.structure(expected)}"]
    found = []
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name, a, b = jax.tree_util.keystr(path), np.asarray(a), np.asarray(b)
        if a.shape != b.shape or (dtype == "float64" and a.dtype != b.dtype):
            found.append(f"{name}: {a.dtype} {a.shape} is not {b.dtype} {b.shape}")
        elif not np.allclose(a, b, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype] * max(1, np.abs(b).max(initial=0))):
            found.append(f"{name}: off by {np.abs(a - b).max():.1e}, of {np.abs(b).max():.1e}")
    return found


def fuzz(seed: int, numbers: Iterable[int], seconds: float = float("inf")) -> tuple[Counter, list[str]]:
    """How many cases of each kind passed, and a line for each that did not."""
    passed, failed, start = Counter(), [], time.monotonic()
    for number in itertools.takewhile(lambda _: time.monotonic() - start < seconds, numbers):
        case = draw(seed, number)
        try:
            found = differences(case)
        except Exception as error:  # whatever it is, it is what is looked for
            found = [f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        if found:
            command = f"python -m benchmarks.fuzz --seed={seed} --case={number}"
            what = f"{command}  # {', '.join(case.tags())}: {'; '.join(found[:3])}"
            print(what, flush=True)
            failed.append(what)
        passed.update([] if found else {"all", *case.tags()})
        if number % 100 == 99:
            jax.clear_caches()
        if number % 20 == 19:
            print(f"{passed['all']} passed, {len(failed)} failed, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return passed, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600, help="for how long")
    parser.add_argument("--seed", type=int, default=0, help="with the number of a case it makes the case")
    parser.add_argument("--case", type=int, help="this one only")
    given = parser.parse_args(arguments)
    numbers = itertools.count() if given.case is None else [given.case]
    passed, failed = fuzz(given.seed, numbers, given.seconds)
    print(
        "\n".join(f"{count:6}  {name}" for name, count in sorted(passed.items(), key=lambda item: (-item[1], item[0])))
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
