"""The trie of sorted rows does what nested dicts do, and its files are safe to trust."""

from __future__ import annotations

import tracemalloc
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.errors import CheckpointError
from mmgem.self_retrieval.trie import Node, Trie

END = 0
TOKENS = st.sampled_from([1, 2, 7, 49_151, 2**31 - 1])
ROWS = st.lists(st.lists(TOKENS, max_size=5).map(lambda row: [*row, END]), min_size=1, max_size=30)
FILES = ["tokens.npy", "offsets.npy", "ids.npy"]
BAD_ROWS: list[tuple[list[list[int]], str]] = [
    ([[1, 2], [], [3]], "id 1 is empty"),
    ([[1, 2], [3, -1]], "id 1 has the token -1"),
    ([[1, 2], [3, 2**31]], "id 1 has the token 2147483648"),
    ([[5], [1, 2, 3], [1, 3], [1, 2]], "id 3 is the beginning of the row of id 1"),
    ([[1, 2], [1, 2], [1, 2, 0, 4]], "is the beginning of the row of id 2"),
]


def nested(rows: list[list[int]], ids: list[int]) -> dict[int, Any]:
    """The same rows as dicts in dicts; a leaf is a dict of nothing but its ids under -1."""
    top: dict[int, Any] = {}
    for row, id in zip(rows, ids, strict=True):
        at = top
        for token in row:
            at = at.setdefault(token, {})
        at.setdefault(-1, []).append(id)
    return top


def leaves(at: dict[int, Any]) -> list[list[int]]:
    """The ids of each distinct row below, in the order of the rows."""
    if -1 in at:
        return [sorted(at[-1])]
    return [own for token in sorted(at) for own in leaves(at[token])]


def check(trie: Trie, node: Node, at: dict[int, Any], path: list[int]) -> None:
    """``node`` and all below it are as ``at`` says."""
    below = leaves(at)
    options = sorted(set(at) - {-1})
    tokens, starts = trie.children(node)
    assert (tokens.dtype, starts.dtype) == (np.int32, np.int64)
    assert tokens.tolist() == options
    assert trie.find(path) == node
    assert trie.ids_of(node).tolist() == list(chain(*below))
    assert trie.is_path(node) == (len(below) == 1)
    for i in range(node.lo, node.hi):
        assert trie.row(i)[: node.depth].tolist() == path
    run, ahead = [], at
    while len(ahead) == 1 and -1 not in ahead:
        run += ahead
        (ahead,) = ahead.values()
    assert trie.forced(node) == (run, Node(node.lo, node.hi, node.depth + len(run)))
    for absent in {-1, 1, 7, 2**31 - 1, 2**40} - set(options):
        with pytest.raises(KeyError):
            trie.child(node, absent)
        assert trie.find([*path, absent]) is None
    if not options:
        assert trie.row(node.lo).tolist() == path
        assert starts.tolist() == []
        return
    assert (starts[0], starts[-1]) == (node.lo, node.hi)
    for i, token in enumerate(options):
        child = trie.child(node, token)
        assert child == Node(starts[i], starts[i + 1], node.depth + 1)
        check(trie, child, at[token], [*path, token])


def same(a: Trie, b: Trie) -> None:
    for name in ("tokens", "offsets", "ids"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def many(seed: int, count: int) -> np.ndarray:
    """Rows that branch widely at first and often agree for long."""
    rng = np.random.default_rng(seed)
    openings = rng.integers(0, 500, (40, 12))
    rows = np.concatenate([openings[rng.integers(0, 40, count)], rng.integers(0, 3, (count, 4))], 1)
    rows[:, 0] = rng.integers(0, 4, count)
    return rows


@settings(deadline=None, max_examples=150)
@given(ROWS, st.data())
def test_agrees_with_nested_dicts(rows: list[list[int]], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 50), min_size=len(rows), max_size=len(rows)))
    trie = Trie.build(rows, ids)
    assert len(trie) == len(rows)
    check(trie, trie.root, nested(rows, ids), [])
    assert [trie.row(i).tolist() for i in range(len(rows))] == sorted(rows)


def test_wide_nodes_agree_with_nested_dicts() -> None:
    rows = many(0, 1200)
    trie = Trie.build(rows)
    check(trie, trie.root, nested(rows.tolist(), list(range(1200))), [])
    tokens, starts = trie.children(trie.root)
    assert not tokens.flags.writeable and not starts.flags.writeable


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(0, 2**32 - 1))
def test_walks_end_in_rows(rows: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.build(rows)
    node, path = trie.root, []
    while not trie.is_path(node):
        tokens, _ = trie.children(node)
        path.append(int(rng.choice(tokens)))
        node = trie.child(node, path[-1])
    path += trie.forced(node)[0]
    assert [i for i, row in enumerate(rows) if row == path] == trie.ids_of(node).tolist()


@settings(deadline=None, max_examples=150)
@given(ROWS, st.data())
def test_merged_is_built_of_all(rows: list[list[int]], data: st.DataObject) -> None:
    ids = data.draw(st.permutations(range(len(rows))))
    whole = Trie.build(rows, ids)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    trie = Trie.build(rows[:0])
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        before = trie.tokens.copy()
        grown = trie.merged(rows[start:stop], ids[start:stop])
        np.testing.assert_array_equal(trie.tokens, before)
        trie = grown
    same(trie, whole)


def test_merged_large() -> None:
    rows = many(1, 3000)
    same(Trie.build(rows[:2000]).merged(rows[2000:], list(range(2000, 3000))), Trie.build(rows))


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sets(TOKENS))
def test_without(rows: list[list[int]], first: set[int]) -> None:
    kept = [i for i, row in enumerate(rows) if row[0] not in first]
    same(Trie.build(rows).without(first), Trie.build([rows[i] for i in kept], kept))


def test_forms_of_rows() -> None:
    rows = [[3, 1, 2], [1, 2, 3], [1, 2, 2]]
    trie = Trie.build(rows)
    assert trie.ids.tolist() == [2, 1, 0]
    same(trie, Trie.build(np.array(rows, np.uint16)))
    same(trie, Trie.from_flat(list(chain(*rows)), [0, 3, 6, 9]))
    same(trie, Trie.build([np.array(row) for row in rows]))  # type: ignore[misc]


def test_one_row() -> None:
    trie = Trie.build([[4, 4, 9]], [17])
    assert trie.is_path(trie.root)
    assert trie.forced(trie.root) == ([4, 4, 9], Node(0, 1, 3))
    assert trie.ids_of(trie.root).tolist() == [17]
    with pytest.raises(IndexError):
        trie.row(1)


def test_no_rows(tmp_path: Path) -> None:
    Trie.build([]).save(tmp_path / "trie")
    trie = Trie.open(tmp_path / "trie")
    assert len(trie) == 0
    assert not trie.is_path(trie.root)
    assert trie.forced(trie.root) == ([], trie.root)
    assert [len(part) for part in trie.children(trie.root)] == [0, 0]
    assert trie.find([1]) is None


def test_a_long_row_among_short_ones_costs_only_itself() -> None:
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(1, 30, rng.integers(2, 8)).tolist(), END] for _ in range(5000)]
    long = rng.integers(1, 30, 5000).tolist()
    rows += [[*long, 30, END], [*long, 29, END], [*long, 29, END]]
    tracemalloc.start()
    trie = Trie.build(rows)
    grown = trie.merged([[*long, 29, 29, END]], [5003])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # 5003 rows of 5003 int32 are 100 MB
    assert [trie.row(i).tolist() for i in range(len(trie))] == sorted(rows)
    node = trie.find(long)
    assert node is not None and trie.children(node)[0].tolist() == [29, 30]
    assert trie.ids_of(node).tolist() == [5001, 5002, 5000]
    assert grown.ids_of(grown.find(long)).tolist() == [5001, 5002, 5003, 5000]  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS)
def test_bad_rows_are_named(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(rows)
    with pytest.raises(ValueError, match=message):
        Trie.build(rows[:1]).merged(rows[1:], list(range(1, len(rows))))


def test_bad_arrays() -> None:
    for tokens, offsets, ids in (
        ([1, 2, 3], [0, 2], None),
        ([1, 2, 3], [1, 3], None),
        ([1, 2, 3], [0, 2, 1, 3], None),
        ([1, 2, 3], [], None),
        ([1.5, 2], [0, 2], None),
        ([1, 2, 3], [0, 3], [1, 2]),
        ([1, 2, 3], [0, 3], [2**31]),
    ):
        with pytest.raises(ValueError):
            Trie.from_flat(tokens, offsets, ids)
    with pytest.raises(ValueError):
        Trie.build(np.arange(3))


def test_opens_as_saved(tmp_path: Path) -> None:
    trie = Trie.build(many(2, 1000))
    trie.save(tmp_path / "trie")
    opened = Trie.open(tmp_path / "trie")
    same(opened, trie)
    assert all(isinstance(part.base, np.memmap) for part in (opened.tokens, opened.offsets, opened.ids))
    grown = opened.merged([[9, 9]], [1000])
    grown.save(tmp_path / "trie")  # over what is open
    same(Trie.open(tmp_path / "trie"), grown)
    same(opened, trie)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "other type", "other length"])
def test_damage_is_refused(tmp_path: Path, name: str, harm: str) -> None:
    Trie.build(many(3, 100)).save(tmp_path / "trie")
    file = tmp_path / "trie" / name
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "other type":
        np.save(file, np.load(file).astype(np.int16))
    else:
        np.save(file, np.load(file)[:-1])
    with pytest.raises(CheckpointError, match="trie") as caught:
        Trie.open(tmp_path / "trie")
    assert "\n" not in str(caught.value)
    assert harm == "other length" or name in str(caught.value)


def test_offsets_out_of_order_are_refused(tmp_path: Path) -> None:
    Trie.build([[1, 2], [1, 3], [4, 5]]).save(tmp_path / "trie")
    np.save(tmp_path / "trie" / "offsets.npy", np.array([0, 4, 2, 6]))
    with pytest.raises(CheckpointError, match="offsets"):
        Trie.open(tmp_path / "trie")
