"""What `benchmarks.against` asks of one checkout: `python -P against_child.py CHECKOUT`, then a JSON list a line.

The checkout may be much older than this file, so nothing is imported from its `benchmarks`, and each thing that a
measurement needs is imported by it alone: what has moved since fails there and nowhere else.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Work = Callable[[int], None]  # does so many units of work and waits for them


def training(vocab_size: int, hidden: int, batch: int, steps: int, **options: Any) -> Work:
    """Training steps on one minibatch; the model has the `options`."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from rnn_lm.nn.models import RNNLM

    model = RNNLM(vocab_size, hidden, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    inputs, labels = np.random.default_rng(0).integers(0, vocab_size, (2, steps, batch), dtype=np.int32)

    def loss(params, carry):
        model = nnx.merge(graphdef, params)
        carry, h = model.hidden(carry, inputs)
        return model.mean_nll(h, labels), carry

    def step(_, state):
        params, opt_state, carry = state
        (_, carry), grads = jax.value_and_grad(loss, has_aux=True)(params, jax.lax.stop_gradient(carry))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry

    many = jax.jit(lambda count, state: jax.lax.fori_loop(0, count, step, state), donate_argnums=1)
    # A copy, as an initial carry may be one array twice, which cannot be donated twice.
    state = jax.tree.map(jax.numpy.array, (params, optimizer.init(params), model.initialize_carry(batch)))

    def run(count: int) -> None:
        nonlocal state
        state = jax.block_until_ready(many(np.int32(count), state))

    return run


def experiment(path: str, text: str) -> Work:
    """The training steps of a config file on a text of one's own, by what trains there."""
    import jax
    import jax.numpy as jnp

    try:
        state, steps = _steps_of_programs(path, text)
    except ImportError:
        state, steps = _steps_of_configs(path, text)
    step = 0

    def run(count: int) -> None:
        nonlocal state, step
        step += count
        state, report = jax.block_until_ready(steps(state, jnp.int32(step)))
        if not report["finite"]:
            raise FloatingPointError("training diverged")  # and would take no further steps

    return run


def _steps_of_programs(path: str, text: str) -> tuple[Any, Callable[..., Any]]:
    from rnn_lm.config import load_config
    from rnn_lm.data.corpus import load_corpus
    from rnn_lm.program import batches_of
    from rnn_lm.training.run import Run
    from rnn_lm.training.step import new_state, train_steps

    config = load_config(path)
    config.corpus.path = text
    its = Run(config, Path(), load_corpus(**config.corpus))
    given = {"batches": batches_of(its.program, its.corpus), "numbers": its.numbers, "program": its.program}
    return new_state(its.program, its.numbers), partial(train_steps, **given)


def _steps_of_configs(path: str, text: str) -> tuple[Any, Callable[..., Any]]:
    """Until version 0.1 had `rnn_lm.program`."""
    import jax.numpy as jnp
    from rnn_lm.training.config import load_config  # type: ignore[import-not-found]

    from rnn_lm.data.corpus import load_corpus
    from rnn_lm.training.loop import batches_of, static_of  # type: ignore[attr-defined]
    from rnn_lm.training.run import Run, new_state  # type: ignore[attr-defined]
    from rnn_lm.training.step import train_steps

    config = load_config(path)
    config.corpus.path = text
    corpus = load_corpus(**config.corpus)
    its: Any = Run(config, Path(), corpus)
    numbers = {name: jnp.float32(value) for name, value in its.numbers().items()}
    given = {"batches": batches_of(config, corpus), "numbers": numbers, "keys": its.keys(), **static_of(its)}
    return new_state(config, len(corpus.vocabulary)), partial(train_steps, **given)


def sampling(cell: str, vocab_size: int, hidden: int, texts: int, length: int) -> Work:
    """New texts from a new model."""
    import jax
    import numpy as np
    from flax import nnx

    from rnn_lm.inference.generate import generate
    from rnn_lm.nn.models import RNNLM

    model = RNNLM(vocab_size, hidden, cell=cell, rngs=nnx.Rngs(0))
    draw = partial(generate, model, np.ones(1, np.int32), length, key=jax.random.key(0), num_samples=texts)

    def run(count: int) -> None:
        for _ in range(count):
            draw()

    return run


class Server:
    """Answers; what it has been told to `make` is what it measures from then on."""

    def __init__(self) -> None:
        self.run: Work = lambda count: None

    def make(self, kind: str, arguments: dict[str, Any]) -> float:
        """Compiles. Returns the seconds of one unit."""
        self.run = {"training": training, "experiment": experiment, "sampling": sampling}[kind](**arguments)
        self.run(1)
        return self.turn(1, 0)[0]

    def turn(self, count: int, seconds: float) -> list[float]:
        """Works for about so many seconds. Returns those of a unit, in each dispatch of `count`."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.run(count)
            times.append((time.perf_counter() - start) / count)
        return times

    def digest(self, workdir: str) -> str:
        """A hash of the parameters that a run has kept."""
        import jax
        from flax import nnx

        import rnn_lm

        leaves = jax.tree.leaves(jax.device_get(nnx.state(rnn_lm.load(workdir)[0], nnx.Param)))
        return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()[:16]


def main() -> None:
    checkout, server = sys.argv[1], Server()
    sys.path.insert(0, checkout)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import rnn_lm

    if not Path(rnn_lm.__file__).is_relative_to(checkout):
        sys.exit(f"imported another rnn_lm, {rnn_lm.__file__}")
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(server, name)(*arguments)}
        except Exception as error:
            answer = {"error": type(error).__name__, "words": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
