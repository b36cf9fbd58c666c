"""Exact search in 100,000 vectors of 512 numbers: our index against a sort of every score.

    python benchmarks/search.py [--photos 100000] [--dim 512] [--repeats 30]

Both sides read the same memory-mapped index (made in a temporary folder) and answer the same queries in turn;
the medians and their ratio are printed. "plain" is what one writes without a library: a matrix product, a
full argsort, the first k.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex

K = 10


def build(out: Path, photos: int, dim: int, fingerprint: str = "random", model: str = "") -> None:
    """Write an index of random unit vectors, one photo each, as ``model`` would."""
    rng = np.random.default_rng(0)
    with IndexStore(out, fingerprint) as store:
        store.set_source(out, model)
        for start in range(0, photos, 10_000):
            numbers = range(start, min(start + 10_000, photos))
            vectors = rng.standard_normal((len(numbers), dim), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            digests = [number.to_bytes(16, "big") for number in numbers]
            store.record(
                [
                    NewContent(digest, vector[None], (None,))
                    for digest, vector in zip(digests, vectors, strict=True)
                ],
                [HashedFile(f"{n:07}.jpg", 1, 1, digest) for n, digest in zip(numbers, digests, strict=True)],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        build(Path(place, "idx"), options.photos, options.dim)
        began = time.perf_counter()
        index = PhotoIndex.open(Path(place, "idx"))
        opened = time.perf_counter() - began
        vectors, paths = index.vectors, index.paths

        def plain(query: np.ndarray) -> list[Path]:
            return [paths[row] for row in np.argsort(-(vectors @ query), kind="stable")[:K]]

        def ours(query: np.ndarray) -> list[Path]:
            return [hit.path for hit in index.search(query, K)]

        queries = np.random.default_rng(1).standard_normal((options.repeats, options.dim), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        times: dict[Callable[[np.ndarray], list[Path]], list[float]] = {plain: [], ours: []}
        for query in (queries[0], *queries):  # the first reads the vectors from the disk
            answers = []
            for way, taken in times.items():
                began = time.perf_counter()
                answers.append(way(query))
                taken.append(time.perf_counter() - began)
            assert answers[0] == answers[1]
        began = time.perf_counter()
        index.search_many(queries, K)
        batched = (time.perf_counter() - began) / len(queries)
    slow, fast = (float(np.median(taken[1:])) for taken in times.values())
    print(f"{options.photos:,} photos x {options.dim}, top {K}, median of {options.repeats} queries")
    print(f"open the index        {opened * 1e3:8.1f} ms")
    print(f"plain: full argsort   {slow * 1e3:8.1f} ms a query")
    print(f"mmgem: search         {fast * 1e3:8.1f} ms a query   {slow / fast:.1f}x")
    print(f"mmgem: search_many    {batched * 1e3:8.1f} ms a query   {slow / batched:.1f}x")


if __name__ == "__main__":
    main()
