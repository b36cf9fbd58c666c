"""Search for regions in 10,000 photos of 20 boxes: our index against a sort of every score; and how it grows.

    python benchmarks/region_search.py [--photos 10000] [--boxes 20] [--dim 512] [--repeats 20]

Both sides read the same memory-mapped index (made in a temporary folder, random unit vectors), give the best
box of each of the ten best photos, with and without place words; medians and their ratio are printed. "plain"
is a matrix product, a full argsort, and a walk until ten photos are seen. Then 100 photos are added: the time
beside that of writing the whole index anew, and what a photo takes on the disk. Regions of larger indexes
(from 250,000 rows on) are short, and for region_scale.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmgem.data.records import Box
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex
from mmgem.search.spatial_filter import SpatialFilter, apply_spatial_filter, parse_spatial_filter

K = 10
SIZE = (640, 480)


def write(out: Path, photos: range, boxes: int, dim: int) -> None:
    """Add ``photos``, each a whole and ``boxes`` boxes, to the index ``out``."""
    rng = np.random.default_rng(photos.start)
    with IndexStore(out, "random", boxes) as store:
        store.set_source(out, "")
        for start in range(photos.start, photos.stop, 500):
            numbers = range(start, min(start + 500, photos.stop))
            contents = []
            for number in numbers:
                vectors = rng.standard_normal((1 + boxes, dim), np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                corners = np.sort(rng.uniform(size=(boxes, 2, 2)), axis=1) * SIZE
                places: list[Box | None] = [None, *(tuple(map(float, c.flatten().round(1))) for c in corners)]  # type: ignore[list-item]
                contents.append(NewContent(number.to_bytes(16, "big"), vectors, places, size=SIZE))
            files = [HashedFile(f"{n:07}.jpg", 1, 1, n.to_bytes(16, "big")) for n in numbers]
            store.record(contents, files)


def timed(out: Path, photos: range, boxes: int, dim: int) -> float:
    """Seconds to add ``photos``."""
    began = time.perf_counter()
    write(out, photos, boxes, dim)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "idx")
        whole = timed(out, range(options.photos), options.boxes, options.dim)
        size = sum(file.stat().st_size for file in out.iterdir()) / options.photos
        index = PhotoIndex.open(out)
        vectors, paths, boxes = index.vectors, index.paths, index.boxes
        shares = np.array([box or (0, 0, 1, 1) for box in boxes], np.float32) / np.float32(SIZE * 2)
        is_box = np.array([box is not None for box in boxes])

        def plain(query: np.ndarray, where: SpatialFilter | None) -> list[tuple[Path, Box | None]]:
            scores = vectors @ query
            if where is not None:
                scores = apply_spatial_filter(scores, shares, where)
            best: dict[Path, Box | None] = {}
            for row in np.argsort(-np.where(is_box, scores, -np.inf), kind="stable"):
                best.setdefault(paths[row], boxes[row])
                if len(best) == K:
                    break
            return list(best.items())

        def ours(query: np.ndarray, where: SpatialFilter | None) -> list[tuple[Path, Box | None]]:
            return [(hit.path, hit.box) for hit in index.search_regions(query, K, where)]

        queries = np.random.default_rng(1).standard_normal((options.repeats, options.dim), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        rows = len(vectors)
        print(f"{options.photos:,} photos x {options.boxes} boxes x {options.dim}, {rows:,} rows, top {K}")
        for label, where in (("anywhere", None), ("at the top left", parse_spatial_filter("top left"))):
            times: dict[Callable[..., list[tuple[Path, Box | None]]], list[float]] = {plain: [], ours: []}
            for query in (queries[0], *queries):  # the first reads the vectors from the disk
                answers = []
                for way, taken in times.items():
                    began = time.perf_counter()
                    answers.append(way(query, where))
                    taken.append(time.perf_counter() - began)
                assert answers[0] == answers[1]
            slow, fast = (float(np.median(taken[1:])) for taken in times.values())
            print(f"{label:<16} plain {slow * 1e3:7.1f} ms, mmgem {fast * 1e3:7.1f} ms, {slow / fast:.1f}x")
        more = timed(out, range(options.photos, options.photos + 100), options.boxes, options.dim)
        print(f"all photos written in {whole:.1f} s; 100 more in {more:.2f} s ({whole / more:.0f}x)")
        print(f"on the disk: {size / 1024:.1f} KB a photo")


if __name__ == "__main__":
    main()
