"""The rows that may be decoded, as sorted arrays: a node of the trie is a range of rows.

    tokens.npy    int32, the tokens of all rows one after the other, rows in lexicographic order
    offsets.npy   int64 (N + 1,), row i is tokens[offsets[i] : offsets[i + 1]]
    ids.npy       int32 (N,), the caller's number of row i

Notable choices. Nothing is stored but the rows: the children of a node are the changes along one column of
its range. So a trie opens without being read, and its pages are shared by all processes. Rows have their own
lengths, and none may begin with another whole row: a path ends where its row ends. Equal rows are ordered by
id, so the files depend on what is in the trie and not on the order it came in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmgem.errors import CheckpointError
from mmgem.utils.checksums import verify_file, write_checksums
from mmgem.utils.files import create_file, write_folder

_DTYPES = {"tokens": np.dtype(np.int32), "offsets": np.dtype(np.int64), "ids": np.dtype(np.int32)}
_MAX_INT32 = np.iinfo(np.int32).max
# Nodes of at least _CACHED_MIN_ROWS rows are cached. Each row leaves them by one child only, so the children
# of all of them together are hardly more than the rows.
_CACHED_MIN_ROWS = 256
_CACHED_NODES = 4096
_MAX_COMPARED = 1 << 20
"""Most tokens compared at once."""


class Node(NamedTuple):
    """The rows ``lo`` to ``hi - 1``, which are all those that share their first ``depth`` tokens."""

    lo: int
    hi: int
    depth: int


class Trie:
    """Rows of token ids to walk along; made by :meth:`build`, :meth:`from_flat` or :meth:`open`."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, ids: np.ndarray):
        """The arrays of the module's docstring, taken as they are."""
        self.tokens, self.offsets, self.ids = tokens, offsets, ids
        self._cached_children = lru_cache(_CACHED_NODES)(partial(_children, tokens, offsets))

    @classmethod
    def build(cls, rows: Sequence[Sequence[int]] | np.ndarray, ids: Sequence[int] | None = None) -> Trie:
        """Sort ``rows``, perhaps an integer array ``(N, L)``; ``ids`` are 0, 1, … if not given.

        Raises ``ValueError`` as :meth:`from_flat` does.
        """
        if isinstance(rows, np.ndarray):
            if rows.ndim != 2:
                raise ValueError(f"an array of rows has two dimensions, not {rows.ndim}")
            return cls.from_flat(rows.ravel(), np.arange(len(rows) + 1) * rows.shape[1], ids)
        offsets = _offsets(np.fromiter(map(len, rows), np.int64, len(rows)))
        return cls.from_flat(np.fromiter(chain.from_iterable(rows), np.int64, int(offsets[-1])), offsets, ids)

    @classmethod
    def from_flat(
        cls, tokens: npt.ArrayLike, offsets: npt.ArrayLike, ids: npt.ArrayLike | None = None
    ) -> Trie:
        """Sort N rows, row i being ``tokens[offsets[i] : offsets[i + 1]]`` (any integer types).

        Raises ``ValueError`` if a row is empty or the beginning of another, if a token or id is no int32 or
        a token negative, or if the arrays do not fit together; rows are named by their ids.
        """
        tokens = _integers(tokens, "tokens")
        offsets = _integers(offsets, "offsets").astype(np.int64, copy=False)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets do not ascend from 0 to {len(tokens)}, the number of tokens")
        count = len(offsets) - 1
        ids = np.arange(count) if ids is None else _integers(ids, "ids")
        if len(ids) != count:
            raise ValueError(f"{len(ids)} ids for {count} rows")
        if count and (ids.max() > _MAX_INT32 or ids.min() < -_MAX_INT32 - 1):
            raise ValueError("an id does not fit into 32 bits")
        if (empty := np.flatnonzero(np.diff(offsets) == 0)).size:
            raise ValueError(f"the row of id {ids[empty[0]]} is empty")
        if count and (tokens.min() < 0 or tokens.max() > _MAX_INT32):
            position = np.flatnonzero((tokens < 0) | (tokens > _MAX_INT32))[0]
            row = offsets.searchsorted(position, "right") - 1
            raise ValueError(f"the row of id {ids[row]} has the token {tokens[position]}")
        tokens, ids = tokens.astype(np.int32, copy=False), ids.astype(np.int32, copy=False)
        order = _lexicographic_order(tokens, offsets, ids)
        trie = cls(*_gather_rows(tokens, offsets, order), ids[order])
        trie._refuse_prefixes(np.arange(count - 1))
        return trie

    def save(self, folder: Path) -> None:
        """Write the three files, replacing ``folder`` as a whole."""

        def fill(new: Path) -> None:
            for name in _DTYPES:
                with create_file(new / f"{name}.npy") as file:
                    np.save(file, getattr(self, name))
            write_checksums(new)

        write_folder(folder, fill)

    @classmethod
    def open(cls, folder: Path) -> Trie:
        """Memory-map what :meth:`save` wrote.

        Raises ``CheckpointError`` if a file is missing, cut or damaged, or if they do not fit together."""
        arrays = {}
        for name, dtype in _DTYPES.items():
            path = folder / f"{name}.npy"
            verify_file(path, "train or copy the corpus again")
            try:
                # A plain view of the map: slices of np.memmap are slow.
                arrays[name] = np.asarray(np.lib.format.open_memmap(path, "r"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read as part of a trie ({error})") from error
            if arrays[name].ndim != 1 or arrays[name].dtype != dtype:
                raise CheckpointError(f"{path}: not a list of {dtype}")
        tokens, offsets, ids = arrays["tokens"], arrays["offsets"], arrays["ids"]
        if len(offsets) != len(ids) + 1 or offsets[0] != 0 or offsets[-1] != len(tokens):
            raise CheckpointError(f"{folder}: tokens, offsets and ids of the trie do not fit together")
        if (np.diff(offsets) <= 0).any():
            raise CheckpointError(f"{folder / 'offsets.npy'}: does not ascend")
        return cls(tokens, offsets, ids)

    @property
    def root(self) -> Node:
        """The node of all rows."""
        return Node(0, len(self), 0)

    def __len__(self) -> int:
        """Number of rows, equal ones counted each."""
        return len(self.ids)

    def children(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that may follow ``node``, ascending, int32 ``(c,)``, and starts, int64 ``(c + 1,)``: child i
        is the rows ``starts[i]`` to ``starts[i + 1] - 1``. Both empty at the end of a row. Read-only."""
        if node.hi - node.lo >= _CACHED_MIN_ROWS:
            return self._cached_children(node)
        return _children(self.tokens, self.offsets, node)

    def child(self, node: Node, token: int) -> Node:
        """The node behind ``token``. Raises ``KeyError`` if no row of ``node`` goes on with it."""
        tokens, starts = self.children(node)
        i = bisect_left(tokens, token)
        if i == len(tokens) or tokens[i] != token:
            raise KeyError(token)
        return Node(int(starts[i]), int(starts[i + 1]), node.depth + 1)

    def find(self, tokens: Sequence[int]) -> Node | None:
        """The node of all rows that begin with ``tokens``; None if there is none."""
        node = self.root
        try:
            for token in tokens:
                node = self.child(node, token)
        except KeyError:
            return None
        return node

    def forced(self, node: Node) -> tuple[list[int], Node]:
        """The tokens all rows of ``node`` go on with, and the node behind them: one with a choice, or the end
        of a row."""
        if node.lo == node.hi:
            return [], node
        first, last = self.row(node.lo)[node.depth :], self.row(node.hi - 1)[node.depth :]
        length = min(len(first), len(last))
        differ = first[:length] != last[:length]
        count = int(differ.argmax()) if differ.any() else length
        return first[:count].tolist(), Node(node.lo, node.hi, node.depth + count)

    def is_path(self, node: Node) -> bool:
        """Whether only one row, or several equal ones, is left."""
        return node.hi - node.lo == 1 or (
            node.lo < node.hi and np.array_equal(self.row(node.lo), self.row(node.hi - 1))
        )

    def ids_of(self, node: Node) -> np.ndarray:
        """The ids of the rows of ``node``, int32 ``(hi - lo,)``, in the order of the rows."""
        return self.ids[node.lo : node.hi]

    def row(self, i: int) -> np.ndarray:
        """The tokens of row ``i`` of the sorted ones, int32. Raises ``IndexError``."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def merged(self, rows: Sequence[Sequence[int]] | np.ndarray, ids: Sequence[int]) -> Trie:
        """A trie of these rows and of ``rows``, equal to one built of all at once.

        Only the new rows are sorted; their places among the others are searched, and both copied once.
        Raises ``ValueError`` as :meth:`from_flat` does.
        """
        new = Trie.build(rows, ids)
        is_new = np.zeros(len(self) + len(new), bool)
        is_new[_insertion_points(self, new) + np.arange(len(new))] = True
        lengths = _interleave(is_new, np.diff(self.offsets), np.diff(new.offsets))
        tokens = _interleave(np.repeat(is_new, lengths), self.tokens, new.tokens)
        trie = Trie(tokens, _offsets(lengths), _interleave(is_new, self.ids, new.ids))
        trie._refuse_prefixes(np.flatnonzero(is_new[1:] | is_new[:-1]))
        return trie

    def without(self, first: Iterable[int]) -> Trie:
        """A trie of the rows whose first token is none of ``first``."""
        removed = np.isin(self.tokens[self.offsets[:-1]], np.fromiter(first, np.int64))
        remaining = np.flatnonzero(~removed)
        return Trie(*_gather_rows(self.tokens, self.offsets, remaining), self.ids[remaining])

    def renumbered(self, ids: np.ndarray, first: np.ndarray | None = None) -> Trie:
        """A trie of the same rows under other ids, and perhaps with other first tokens: id or first token n
        becomes ``ids[n]`` or ``first[n]``, -1 leaves a row out; int64 arrays ``(N,)``.

        Equal to one built of these rows. Raises ``ValueError`` as :meth:`from_flat` does.
        """
        places = [ids] if first is None else [ids, first]
        if all(np.array_equal(x, np.arange(len(x))) for x in places):
            return self
        remaining = np.flatnonzero(ids[self.ids] >= 0)
        tokens, offsets = _gather_rows(self.tokens, self.offsets, remaining)
        if first is not None:
            tokens[offsets[:-1]] = first[tokens[offsets[:-1]]]
        return Trie.from_flat(tokens, offsets, ids[self.ids[remaining]])

    def _refuse_prefixes(self, rows: np.ndarray) -> None:
        """Raise ``ValueError`` if one of ``rows`` is the beginning of the row after it. Rows between a
        beginning and its continuation begin alike, so neighbours tell of all."""
        starts, lengths = self.offsets, np.diff(self.offsets)
        shorter = rows[lengths[rows] < lengths[rows + 1]]
        starts_of_pairs = self.tokens, starts[shorter], self.tokens, starts[shorter + 1]
        prefixes = shorter[_common_prefix_lengths(*starts_of_pairs, lengths[shorter]) == lengths[shorter]]
        if prefixes.size:
            short, long = self.ids[prefixes[0] : prefixes[0] + 2]
            raise ValueError(f"the row of id {short} is the beginning of the row of id {long}")


def _integers(values: npt.ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} are no list of integers")
    return array if array.size else array.astype(np.int64)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _children(tokens: np.ndarray, offsets: np.ndarray, node: Node) -> tuple[np.ndarray, np.ndarray]:
    lo, hi, depth = node
    if lo == hi or offsets[lo + 1] - offsets[lo] == depth:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    column = tokens[offsets[lo:hi] + depth]
    boundaries = (column[1:] != column[:-1]).nonzero()[0]
    starts = np.empty(len(boundaries) + 2, np.int64)
    starts[0], starts[-1] = lo, hi
    np.add(boundaries, lo + 1, out=starts[1:-1])
    child_tokens = column[starts[:-1] - lo]
    child_tokens.flags.writeable = starts.flags.writeable = False
    return child_tokens, starts


def _lexicographic_order(tokens: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The order (N,) of rows by tokens, then by id. Column by column, of the rows still tied."""
    order = np.argsort(ids, kind="stable")
    unsettled = np.arange(len(order))  # places in the order that are not settled
    tie_group = np.zeros(len(order), np.int64)  # which of them are tied with which, ascending
    depth = 0
    while len(unsettled):
        rows = order[unsettled]
        key = np.zeros(len(unsettled), np.int64)  # 0: the row has ended
        longer = offsets[rows] + depth < offsets[rows + 1]
        key[longer] = tokens[offsets[rows[longer]] + depth].astype(np.int64) + 1
        key |= tie_group << 32
        if (key[1:] < key[:-1]).any():
            by_key = np.argsort(key, kind="stable")
            order[unsettled], key, longer = rows[by_key], key[by_key], longer[by_key]
        new = np.concatenate([[True], key[1:] != key[:-1]])
        tied = longer & ~(new & np.concatenate([new[1:], [True]]))
        unsettled, tie_group = unsettled[tied], np.cumsum(new)[tied]
        depth += 1
    return order


def _gather_rows(tokens: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and offsets of ``rows`` alone, in this order."""
    lengths = offsets[rows + 1] - offsets[rows]
    new = _offsets(lengths)
    return tokens[np.repeat(offsets[rows] - new[:-1], lengths) + np.arange(new[-1])], new


def _interleave(is_new: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """``new`` where ``is_new``, ``old`` elsewhere, each in its order."""
    interleaved = np.empty(len(is_new), old.dtype)
    interleaved[is_new], interleaved[~is_new] = new, old
    return interleaved


def _insertion_points(old: Trie, new: Trie) -> np.ndarray:
    """How many rows of ``old`` go before each row of ``new``, (M,): a binary search for all at once."""
    low, high = np.zeros(len(new), np.int64), np.full(len(new), len(old))
    while (open_rows := np.flatnonzero(low < high)).size:
        middle = (low[open_rows] + high[open_rows]) // 2
        before = _is_before(old, middle, new, open_rows)
        low[open_rows[before]] = middle[before] + 1
        high[open_rows[~before]] = middle[~before]
    return low


def _is_before(a: Trie, a_rows: np.ndarray, b: Trie, b_rows: np.ndarray) -> np.ndarray:
    """Whether each row of ``a`` goes before its row of ``b``, bool (m,)."""
    a_starts, b_starts = a.offsets[a_rows], b.offsets[b_rows]
    a_lengths, b_lengths = a.offsets[a_rows + 1] - a_starts, b.offsets[b_rows + 1] - b_starts
    limits = np.minimum(a_lengths, b_lengths)
    common = _common_prefix_lengths(a.tokens, a_starts, b.tokens, b_starts, limits)
    before = np.where(a_lengths == b_lengths, a.ids[a_rows] < b.ids[b_rows], a_lengths < b_lengths)
    differing = np.flatnonzero(common < limits)
    before[differing] = (
        a.tokens[a_starts[differing] + common[differing]] < b.tokens[b_starts[differing] + common[differing]]
    )
    return before


def _common_prefix_lengths(
    a: np.ndarray, a_starts: np.ndarray, b: np.ndarray, b_starts: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """How many tokens from ``a_starts`` and ``b_starts`` on are equal, ``limits`` at most; all (m,)."""
    common = limits.copy()
    open_rows = np.flatnonzero(limits > 0)
    compared, width = 0, 8
    while open_rows.size:
        width = max(1, min(width, _MAX_COMPARED // open_rows.size))
        columns = compared + np.arange(width)
        inside = columns < limits[open_rows, None]
        columns = np.where(inside, columns, 0)
        differ = (a[a_starts[open_rows, None] + columns] != b[b_starts[open_rows, None] + columns]) & inside
        has_difference = differ.any(1)
        common[open_rows[has_difference]] = compared + differ[has_difference].argmax(1)
        compared += width
        width *= 2
        open_rows = open_rows[~has_difference]
        open_rows = open_rows[limits[open_rows] > compared]
    return common
