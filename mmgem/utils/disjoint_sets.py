"""Sets of numbers that are joined two by two."""

from __future__ import annotations

from collections.abc import Iterable


class DisjointSets:
    """The numbers 0 to ``count - 1`` in sets, at first each in one of its own (union-find with path halving).
    ``parents``: what each is joined to at the start, a number not above it."""

    def __init__(self, count: int, parents: Iterable[int] | None = None):
        self._parents = list(range(count) if parents is None else parents)

    def root(self, number: int) -> int:
        """The least number of the set that ``number`` is in."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    def join(self, one: int, two: int) -> None:
        """Make the sets of two numbers one."""
        first, second = sorted((self.root(one), self.root(two)))
        self._parents[second] = first
