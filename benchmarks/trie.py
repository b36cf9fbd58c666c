"""A trie of 100,000 passages of 48 tokens: our sorted arrays against dicts in dicts.

    python benchmarks/trie.py [--passages 100000] [--tokens 48] [--repeats 5]

Random rows: the number of a title, then Zipf tokens below 49,152. Five passages a title; half of them open as
another of their title does, for up to 12 tokens, and one in a hundred is a copy. Memory is what a process of
its own grows by (Linux), with every page of the opened trie touched; the dicts share the objects of equal
tokens. The trie is opened in fresh processes, its files in the page cache.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from memory import resident

from mmgem.self_retrieval.trie import Node, Trie

VOCABULARY = 49_152


def random_rows(passages: int, tokens: int) -> np.ndarray:
    """Rows int32 (passages, 1 + tokens), in no order."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / (np.arange(VOCABULARY) + 2.7))
    drawn = np.searchsorted(shares, rng.uniform(0, shares[-1], passages * tokens))
    rows = np.empty((passages, 1 + tokens), np.int32)
    rows[:, 0] = rng.integers(0, max(1, passages // 5), passages)
    rows[:, 1:] = drawn.reshape(passages, tokens)
    rows = rows[np.argsort(rows[:, 0])]
    follows = np.flatnonzero(rows[1:, 0] == rows[:-1, 0]) + 1
    for row in follows[rng.random(len(follows)) < 0.5]:
        shared = 1 + rng.integers(1, 13)
        rows[row, :shared] = rows[row - 1, :shared]
    copies = rng.permutation(passages)[: passages // 100]
    rows[copies] = rows[rng.integers(0, passages, len(copies))]
    return rng.permutation(rows)


def grown_by_trie(folder: Path) -> int:
    before = resident()
    trie = Trie.open(folder)
    for part in (trie.tokens, trie.offsets, trie.ids):
        part.max()
    for row in range(0, len(trie), 10):
        trie.find(trie.row(row)[:8].tolist())
    return resident() - before


def grown_by_dicts(file: Path, width: int) -> int:
    gc.disable()
    count = file.stat().st_size // (4 * width)
    shared = list(range(max(VOCABULARY, count)))
    before = resident()
    top: dict[int, Any] = {}
    for row in range(count):
        at = top
        tokens = np.fromfile(file, np.int32, width, offset=row * width * 4).tolist()
        *path, last = [shared[token] for token in tokens]
        for token in path:
            if (child := at.get(token)) is None:
                child = at[token] = {}
            at = child
        at[last] = row
    return resident() - before


def seconds_to_open(folder: Path) -> float:
    began = time.perf_counter()
    Trie.open(folder)
    return time.perf_counter() - began


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def nodes_to(trie: Trie, row: int) -> list[Node]:
    """The nodes from the root to the place where ``row`` is the only one left."""
    nodes = [trie.root]
    for token in trie.row(row).tolist():
        if trie.is_path(nodes[-1]):
            break
        nodes.append(trie.child(nodes[-1], token))
    return nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    count, repeats = options.passages, options.repeats
    rows = random_rows(count, options.tokens)
    lists = rows.tolist()
    built = float(np.median([timed(lambda: Trie.build(rows)) for _ in range(repeats)]))
    from_lists = float(np.median([timed(lambda: Trie.build(lists)) for _ in range(repeats)]))
    new = max(1, count // 100)
    most = Trie.build(rows[:-new])
    ids = list(range(count - new, count))
    merged = float(np.median([timed(lambda: most.merged(rows[-new:], ids)) for _ in range(repeats)]))
    with tempfile.TemporaryDirectory() as place:
        folder, plain = Path(place, "trie"), Path(place, "rows")
        Trie.build(rows).save(folder)
        rows.tofile(plain)
        size = sum(file.stat().st_size for file in folder.iterdir())
        opened = float(np.median([alone(seconds_to_open, folder) for _ in range(repeats)]))
        trie = Trie.open(folder)
        first = timed(lambda: trie.children(trie.root))
        chosen = np.random.default_rng(1).integers(0, count, 2000).tolist()
        nodes = [node for row in chosen for node in nodes_to(trie, row)]
        again = timed(lambda: trie.children(trie.root))
        call = timed(lambda: [trie.children(node) for node in nodes]) / len(nodes)
        forced = timed(lambda: [trie.forced(node) for node in nodes]) / len(nodes)
        ours = alone(grown_by_trie, folder)
        dicts = alone(grown_by_dicts, plain, rows.shape[1])
    distinct = len({tuple(row) for row in lists})
    print(f"{count:,} passages x (title + {options.tokens} tokens), {distinct:,} distinct rows")
    print(f"build from an array        {built:8.2f} s")
    print(f"build from lists           {from_lists:8.2f} s")
    print(f"merge {new:,} new rows       {merged:8.2f} s")
    print(f"on the disk                {size / 1e6:8.1f} MB")
    print(f"open, in a fresh process   {opened * 1e3:8.2f} ms")
    print(f"children of the root       {first * 1e3:8.2f} ms at first, {again * 1e6:.1f} us again")
    print(f"children, along {len(nodes):,} nodes {call * 1e6:5.1f} us a call")
    print(f"forced, along the same     {forced * 1e6:8.1f} us a call")
    print(f"memory: dicts in dicts     {dicts / 1e6:8.1f} MB")
    print(f"memory: opened trie        {ours / 1e6:8.1f} MB   {dicts / ours:.1f}x less")


if __name__ == "__main__":
    main()
