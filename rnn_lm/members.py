"""The axis of members: computing several models of one program at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Members:
    """The number of members. If there are several, each array has a leading axis of members; one has no such axis.

    A vmap over one member would be slower than the plain function, and round differently.
    """

    count: int

    @property
    def axes(self) -> int:
        """The number of axes that each array has before its own."""
        return int(self.count > 1)

    def map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a function of one member's trees a function of all members'."""
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


ONE = Members(1)
