"""Which array outside the recurrent layers is the embedding, which the output layer: what fits by shape."""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np

from rnn_lm.convert.layers import Arrays, Layer, Library
from rnn_lm.errors import MAX_LISTED, UserError

ROLES = ("w_hq", "embedding", "b_q", "w_xh", "b_h")  # our names; the last two are an MLP's
# Our name → theirs, or "": without an embedding the input is one-hot, without a bias it is zero. Where embedding and
# w_hq have the same name, they are tied.
Roles: TypeAlias = dict[str, str]


class Rest(NamedTuple):
    """The arrays outside the recurrent layers, by what they may be."""

    tables: Arrays  # embeddings, [V, E]
    linears: Arrays  # weights of linear layers, [in, out]
    vectors: Arrays  # biases
    layers: list[Layer]  # from the bottom up; none in an MLP

    @classmethod
    def of(cls, library: Library, arrays: Arrays, layers: list[Layer]) -> "Rest":
        vectors, matrices = ({name: array for name, array in arrays.items() if array.ndim == axes} for axes in (1, 2))
        if library.transposed:  # a matrix may be either
            return cls(matrices, {name: array.T for name, array in matrices.items()}, vectors, layers)
        tables = {name: array for name, array in matrices.items() if not name.endswith("kernel")}
        linears = {name: array for name, array in matrices.items() if not name.endswith(("embedding", "embeddings"))}
        return cls(tables, linears, vectors, layers)

    def roles(self, size: int, mapping: Mapping[str, str]) -> Roles:
        """Who is who in a model of `size` tokens, given those in `mapping`.

        Raises:
          UserError: the shapes fit no model of ours, or several, or an array is left over.
        """
        best = self._best(size, mapping)
        if not best:
            raise self._misfit(size, mapping)
        if unused := self._unused(best[0]):
            raise not_ours(unused)
        for role in ROLES:
            names = sorted({roles[role] for roles in best if role in roles})
            if len(names) > 1:
                flags = [f"--map={role}={name}" if name else f"--map=w_hq={best[0]['w_hq']}" for name in names]
                found = " and ".join(name or "none (one-hot input)" for name in names)
                raise UserError(f"{found} fit as {role}; say which it is with {' or '.join(flags)}")
        return best[0]

    def is_tied(self, roles: Roles) -> bool:
        """Whether the output weights are the embedding: the same array, or its bits."""
        table, w_hq = roles["embedding"], roles["w_hq"]
        return table != "" and (table == w_hq or np.array_equal(self.tables[table].T, self.linears[w_hq]))

    def _unused(self, roles: Roles) -> set[str]:
        return {*self.tables, *self.linears, *self.vectors} - {*roles.values()}

    def _best(self, size: int, mapping: Mapping[str, str]) -> list[Roles]:
        """The readings that leave the fewest arrays over; of these, those in which biases are beside their weights."""

        def flaws(roles: Roles) -> tuple[int, int, int]:
            pairs = [(roles[b], roles[w]) for b, w in (("b_q", "w_hq"), ("b_h", "w_xh")) if roles.get(b)]
            apart = sum(len({re.sub("[^./]*$", "", name) for name in pair}) > 1 for pair in pairs)
            # An array that is mapped to one role has that role only, unless nothing else fits.
            reused = sum(their in mapping.values() and mapping.get(our) != their for our, their in roles.items())
            return len(self._unused(roles)), apart, reused

        readings = [roles for roles in self._readings(size) if mapping.items() <= roles.items()]
        least = min(map(flaws, readings), default=None)
        best = [roles for roles in readings if flaws(roles) == least]
        return best[:1] if all(map(self.is_tied, best)) else best  # of two equal arrays either may be either

    def _readings(self, size: int) -> Iterator[Roles]:
        """All that the shapes allow."""

        def biases(length: int) -> list[str]:
            return ["", *(name for name, array in self.vectors.items() if len(array) == length)]

        for table in ["", *(name for name, array in self.tables.items() if len(array) == size)]:
            inputs = self.tables[table].shape[1] if table else size
            outputs = {name: len(array) for name, array in self.linears.items() if array.shape[1] == size}
            outputs |= {table: inputs} if table else {}  # tied
            for (w_hq, units), b_q in product(outputs.items(), biases(size)):
                ends: Roles = {"embedding": table, "w_hq": w_hq, "b_q": b_q}
                if self.layers:
                    if (inputs, units) == (len(self.layers[0].w_xh), len(self.layers[-1].w_hh)):
                        yield ends
                    continue
                hidden = (
                    name for name, array in self.linears.items() if array.shape[1] == units and len(array) % inputs == 0
                )
                for w_xh, b_h in product(hidden, biases(units)):
                    if w_xh not in (table, w_hq):
                        yield ends | {"w_xh": w_xh, "b_h": b_h}

    def _misfit(self, size: int, mapping: Mapping[str, str]) -> UserError:
        """Why no reading fits: the vocabulary has another length, or something else."""
        for other in sorted({array.shape[1] for array in self.linears.values()} | {*map(len, self.tables.values())}):
            best = self._best(other, mapping)
            if best and not self._unused(best[0]):
                return UserError(f"the vocabulary has {size} tokens, {best[0]['w_hq']} has {other}")
        if self.layers:
            bottom, top = self.layers[0], self.layers[-1]
            ends = f"a first layer of {len(bottom.w_xh)} inputs and a last one of {len(top.w_hh)} units"
        else:
            ends = "an MLP (no name is that of a recurrent layer of PyTorch, Keras or Flax)"
        found = [f"{name} {[*array.shape]}" for name, array in {**self.linears, **self.tables, **self.vectors}.items()]
        flags = "".join(f", --map={our}={their}" for our, their in mapping.items())
        return UserError(f"nothing fits {ends} with {size} tokens{flags}; left are {_listed(found)}")


def not_ours(names: Collection[str]) -> UserError:
    return UserError(f"no model of ours has {_listed(sorted(names))}: theirs computes something else")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED] + ["…"] * (len(names) > MAX_LISTED)) or "no arrays"
