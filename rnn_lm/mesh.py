"""The devices that share each minibatch: every one computes some of its rows, and gradients are averaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rnn_lm.errors import UserError

Tree = TypeVar("Tree")
AXIS = "data"
WHOLE = PartitionSpec()  # each device has all of an array


def rows_at(axis: int) -> PartitionSpec:
    """An array whose given axis, the batch, is divided among the devices."""
    return PartitionSpec(*axis * [None], AXIS)


@dataclass(frozen=True)
class DataMesh:
    """One or several devices. On one, nothing is divided and each method returns what it was given.

    The methods `rows`, `own` and `mean` are for functions that `map` runs.
    """

    mesh: Mesh | AbstractMesh | None = None

    @classmethod
    def of(cls, count: int) -> "DataMesh":
        """`count` devices, as many of each process as of the others.

        Raises:
          UserError: there are fewer, or a process would have none.
        """
        devices, processes = jax.devices(), jax.process_count()
        here = f"{len(devices)} device(s) ({devices[0].device_kind})"
        if count > len(devices):
            more = (
                "; on CPUs, JAX_NUM_CPU_DEVICES in the environment makes more" if jax.default_backend() == "cpu" else ""
            )
            raise UserError(f"config.mesh.data is {count}, but JAX sees {here}{more}")
        if count % processes:
            raise UserError(f"config.mesh.data is {count}; {processes} processes need a multiple of {processes}")
        of_processes = [jax.local_devices(process_index=index)[: count // processes] for index in range(processes)]
        return cls.on([device for own in of_processes for device in own])

    @classmethod
    def on(cls, devices: Sequence[jax.Device]) -> "DataMesh":
        return cls(Mesh(np.array(devices), (AXIS,), (AxisType.Auto,)) if len(devices) > 1 else None)

    @property
    def size(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Runs `function` on all devices. The specs say which arguments and results are divided among them."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def rows(self, batch_size: int) -> Int[Array, " b"]:
        """The numbers of the rows of a minibatch that this device computes."""
        if self.mesh is None:
            return jnp.arange(batch_size)
        count = batch_size // self.size
        return jax.lax.axis_index(AXIS) * count + jnp.arange(count)

    def own(self, params: Tree) -> Tree:
        """The device's own copy of what all have, so that gradients are those of its rows alone."""
        return params if self.mesh is None else jax.lax.pcast(params, AXIS, to="varying")

    def mean(self, tree: Tree) -> Tree:
        """The mean over the devices, as one sum of one array: between processes each sum takes milliseconds."""
        if self.mesh is None:
            return tree
        flat, restored = ravel_pytree(tree)
        return restored(jax.lax.pmean(flat, AXIS))

    def max(self, tree: Tree) -> Tree:
        """The largest values of the devices."""
        return tree if self.mesh is None else jax.lax.pmax(tree, AXIS)

    def put(self, tree: Tree, specs: Any = WHOLE) -> Tree:
        """Places arrays that are the same in all processes on the devices."""
        return self._with_shardings(_placed, tree, specs)

    def shapes(self, tree: Tree, specs: Any = WHOLE) -> Tree:
        """The shapes of arrays, with the places that `put` gives them."""
        return self._with_shardings(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, specs)

    def _with_shardings(self, function: Callable[[Any, NamedSharding], Any], tree: Tree, specs: Any) -> Tree:
        mesh = self.mesh
        if mesh is None:
            return tree

        def of_part(spec: PartitionSpec, part: Tree) -> Tree:
            return jax.tree.map(lambda x: function(x, NamedSharding(mesh, spec)), part)

        return jax.tree.map(of_part, specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def get(self, tree: Tree) -> Tree:
        """Arrays on the host, whole, also where parts of them are in other processes."""
        if self.mesh is None or jax.process_count() == 1:
            return jax.device_get(tree)
        from jax.experimental.multihost_utils import process_allgather

        return process_allgather(tree, tiled=True)

    def first(self, tree: Tree) -> Tree:
        """What all devices have, on the first one of this process alone."""
        return tree if self.mesh is None else jax.tree.map(lambda x: x.addressable_data(0), tree)


def _placed(x: Any, sharding: NamedSharding) -> Array:
    whole = np.asarray(x)
    if whole.ndim < len(sharding.spec):
        raise UserError("config.mesh.data: an array of the carry has no axis of rows, so it cannot be divided")
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


ONE_DEVICE = DataMesh()
