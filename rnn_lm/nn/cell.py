"""The base class of cells. A time step has three parts, so that `unroll` can treat all cells alike:

1. `project(x)`: the input's part, `x w_xh + b_h`. It needs no state, so all time steps are computed at once.
2. `recur(carry)`: the recurrent product, `h w_hh`, the only product inside the loop.
3. `gates(carry, projected, recurrent)`: the element-wise rest.

docs/own_cell.md shows how to write a cell. Shapes in the whole package: T time steps, B batch, D inputs, H hidden
units, V vocabulary, G gates.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, TypedDict, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int, Shaped

from rnn_lm.nn.activations import standardized
from rnn_lm.nn.arrays import Carry, along_last, product, rows_of
from rnn_lm.nn.initializers import glorot, orthogonal, zeros

AnyClass = TypeVar("AnyClass", bound=type)
State: TypeAlias = Float[Array, "*batch H"]
Gates: TypeAlias = Float[Array, "*batch GH"]
Draws: TypeAlias = nnx.Rngs | Callable[[], Array] | None
OptionalParam: TypeAlias = Any  # nnx.Param | None: whoever reads it knows that it is there


class CellOptions(TypedDict, total=False):
    """The optional arguments of `Cell`, for constructors that pass them on."""

    dtype: Dtype | None
    param_dtype: Dtype
    kernel_init: Initializer
    recurrent_init: Initializer
    bias_init: Initializer


def show_signature(cls: AnyClass) -> AnyClass:
    """Lets `inspect.signature`, and so notebooks, show all parameters of the constructor.

    nnx's metaclass hides them. `**options` is replaced by the keyword parameters of the parent's constructor.
    """
    _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        named = {parameter.name for parameter in parameters}
        of_parent = inspect.signature(cls.__mro__[1]).parameters.values()
        parameters[-1:] = [p for p in of_parent if p.kind is p.KEYWORD_ONLY and p.name not in named]
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return cls


@show_signature
class Cell(nnx.RNNCellBase):
    """The base of all cells, also of your own: parameters, products and the `nnx.RNNCellBase` protocol.

    The parameters are `w_xh [D, G·H]`, `w_hh [H, G·H]` and `b_h [G·H]`, the gates side by side. Parameters, carry and
    output have `param_dtype`. Factors of matrix products are rounded to `dtype`; their sums are not.

    A subclass sets `num_gates`, G, and defines `gates(carry, projected, recurrent)`. It may override any other method:
    `unroll` always computes the same as a loop over `cell(carry, x)`.

    Args:
      in_features: D, the size of an input vector, or the number of token ids.
      hidden_features: H.
      rngs: draws the initial weights.
      dtype: of the factors of matrix products; None means `param_dtype`.
      param_dtype: of parameters, carry and output. For types narrower than float32, initial weights are drawn in
        float32 and then rounded.
      kernel_init: initializer of each gate's [D, H] part of `w_xh`.
      recurrent_init: initializer of each gate's [H, H] part of `w_hh`.
      bias_init: initializer of each gate's [H] part of `b_h`.
    """

    num_gates: ClassVar[int]
    # With layer normalisation, the learned scales of both products, [G·H].
    scale_x: nnx.Param[Array] | None = None
    scale_h: nnx.Param[Array] | None = None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = glorot,
        recurrent_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.param_dtype = param_dtype

        def gate_by_gate(init: Initializer, *shape: int) -> nnx.Param[Array]:
            parts: list[Any] = [self._drawn(init, rngs.params(), shape) for _ in range(self.num_gates)]
            if isinstance(parts[0], nnx.VariableMetadata):  # of nnx.with_partitioning, for example
                value: Any = jnp.concatenate([part.raw_value for part in parts], axis=-1)
                return nnx.Param(replace(parts[0], raw_value=value.astype(param_dtype)))
            return nnx.Param(jnp.concatenate(parts, axis=-1).astype(param_dtype))

        self.w_xh = gate_by_gate(kernel_init, in_features, hidden_features)
        self.w_hh = gate_by_gate(recurrent_init, hidden_features, hidden_features)
        self.b_h = gate_by_gate(bias_init, hidden_features)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        show_signature(cls)

    def _drawn(self, init: Initializer, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Initial values, in at least float32: narrower types cannot be made orthogonal."""
        dtype = jnp.dtype(self.param_dtype)
        return init(key, shape, jnp.float32 if dtype.itemsize < 4 else dtype)

    # Positional-only, so that a subclass may name them as it likes.
    def gates(self, carry: Carry, projected: Gates, recurrent: Gates, /) -> Carry:
        """The next carry. May reduce over units, never over the batch."""
        raise TypeError(f"{type(self).__name__} has no gates(carry, projected, recurrent); docs/own_cell.md shows how")

    def project(self, x: Float[Array, "*batch D"] | Int[Array, "*batch"], /) -> Gates:
        """`x w_xh + b_h`. Integers are token ids: they select rows of `w_xh`."""
        b_h = self.b_h[...]
        if not jnp.issubdtype(x.dtype, jnp.integer):
            z = self._normalized(self.product(x, self.w_xh[...]), self.scale_x)
            return z + along_last(b_h, z)
        w_xh = self.w_xh[...].astype(self.dtype or self.param_dtype).astype(self.param_dtype)
        if not isinstance(x.size, int) or x.size < self.in_features:  # jax.export may leave sizes open
            z = self._normalized(rows_of(w_xh, x), self.scale_x)
            return z + along_last(b_h, z)
        return rows_of(self._normalized(w_xh, self.scale_x) + b_h[None], x)  # V rows to add to are fewer than T·B

    def recur(self, carry: Carry, /) -> Gates:
        """`h w_hh`."""
        return self.product(self.output(carry), self.w_hh[...])

    def step(self, carry: Carry, projected: Gates, /) -> Carry:
        """The next carry, given the input's part."""
        return self.gates(carry, projected, self.recur(carry))

    def output(self, carry: Carry, /) -> State:
        """The cell's output for a carry: h."""
        return carry

    def __call__(self, carry: Carry, inputs: Shaped[Array, "..."]) -> tuple[Carry, Array]:
        """One step of the `nnx.RNNCellBase` protocol: `(carry, inputs) -> (carry, output)`.

        Inputs with as many axes as the carry are vectors; with one fewer they are token ids.
        """
        x, _ = as_inputs(self, carry, inputs)
        carry = self.step(carry, self.project(x))
        return carry, self.output(carry)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Draws = None, carry_init: Initializer | None = None
    ) -> Carry:
        """The state before the first step, `[..., H]` for inputs `[..., D]`: zeros, or drawn by `carry_init`."""
        shape = (*input_shape[:-1], self.hidden_features)
        if carry_init is None:
            return jnp.zeros(shape, self.param_dtype)
        if rngs is None:
            raise ValueError("carry_init draws from rngs; give both")
        key = rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs()
        return self._drawn(carry_init, key, shape).astype(self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def product(self, x: Float[Array, "*batch K"], w: Float[Array, "K N"], /) -> Float[Array, "*batch N"]:
        """`x @ w`, with factors rounded to `dtype` and summed in `param_dtype`."""
        return product(x, w, self.dtype)

    def _add_layer_norm(self) -> None:
        """Learned scales for the normalised x w_xh and h w_hh (Ba et al. 2016, equation 20)."""
        self.scale_x = nnx.Param(jnp.ones_like(self.b_h[...]))
        self.scale_h = nnx.Param(jnp.ones_like(self.b_h[...]))

    def _normalized(self, z: Gates, scale: nnx.Param[Array] | None) -> Gates:
        """Layer normalisation, if there is a scale: over the units of each gate."""
        if scale is None:
            return z
        gates = z.reshape(*z.shape[:-1], self.num_gates, self.hidden_features)
        return standardized(gates).reshape(z.shape) * along_last(scale[...], z)


def are_ids(cell: nnx.RNNCellBase, carry: Carry, inputs: Shaped[Array, "..."], steps: int = 0) -> bool:
    """Whether inputs are token ids: they have one axis fewer than vectors would have with this carry.

    `steps` is 1 if the inputs have a time axis in front. For a `Cell` the rank of its output decides. Floats are never
    ids for other cells. If the carry is empty, the dtype decides.
    """
    ranks = {jnp.ndim(leaf) for leaf in jax.tree.leaves(carry)}
    whole = jnp.issubdtype(inputs.dtype, jnp.integer)
    if not ranks or not (whole or isinstance(cell, Cell)):
        return whole
    if isinstance(cell, Cell) and (len(ranks) > 1 or overrides(cell, "output")):
        ranks = {jax.eval_shape(cell.output, carry).ndim}
    return inputs.ndim - steps < min(ranks)


def as_inputs(
    cell: nnx.RNNCellBase, carry: Carry, inputs: Shaped[Array, "..."], steps: int = 0
) -> tuple[Shaped[Array, "..."], bool]:
    """The inputs as the cell wants them, and whether they are token ids.

    For a `Cell`, ids become int32, and vectors of integers get its `param_dtype`.

    Raises:
      TypeError: if ids are not integers.
    """
    inputs = jnp.asarray(inputs)
    whole, ids = jnp.issubdtype(inputs.dtype, jnp.integer), are_ids(cell, carry, inputs, steps)
    if not isinstance(cell, Cell):
        return inputs, ids
    if ids and not whole:
        shape = list(inputs.shape)
        raise TypeError(f"inputs: expected vectors, or token ids that are integers; got {inputs.dtype} {shape}")
    if ids:
        return inputs.astype(jnp.int32), ids  # an int8 could not count a vocabulary
    return (inputs.astype(cell.param_dtype) if whole or inputs.dtype == jnp.bool_ else inputs), ids


def overrides(module: nnx.Module, *methods: str) -> bool:
    """Whether a cell or a model, or its class, overrides any of these methods of the package.

    Both the class and the function must be ours: classes get patched, and `functools.wraps` copies `__module__`.
    """

    def is_ours(name: str) -> bool:
        home = next(cls for cls in type(module).__mro__ if name in vars(cls))
        places = home.__module__, getattr(vars(home)[name], "__module__", "")
        return name not in vars(module) and all(place.startswith("rnn_lm.nn.") for place in places)

    return not all(map(is_ours, methods))


def is_hoisted(cell: nnx.RNNCellBase) -> bool:
    """Whether a step is `step` of `project`, so that all time steps can be projected at once."""
    return isinstance(cell, Cell) and not overrides(cell, "__call__")
