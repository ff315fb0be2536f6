"""The axis of members: several models of one program, computed at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Members:
    """How many there are. Of several, each array has an axis in front, the members; of one, arrays are as they are.

    A vmap over one member would have other bits than the plain function, and be slower.
    """

    count: int

    def map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one member's trees as one of all members'."""
        return function if self.count == 1 else jax.vmap(function)

    def stack(self, trees: Sequence[Tree]) -> Tree:
        """The trees of all members as one."""
        return trees[0] if self.count == 1 else jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)

    def unstack(self, tree: Tree) -> list[Tree]:
        """Each member's tree."""
        return [self.member(tree, i) for i in range(self.count)]

    def member(self, tree: Tree, i: int) -> Tree:
        """The tree of member number i."""
        return tree if self.count == 1 else jax.tree.map(lambda array: array[i], tree)
