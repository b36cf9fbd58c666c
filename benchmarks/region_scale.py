"""Short regions of very many photos: disk, time and recall against an exact search of float32 vectors.

    python benchmarks/region_scale.py [--photos 1000000] [--data clusters] [--work /tmp/mmgem-region-scale]

--photos 2000 takes a minute: a small index does as a large one does. Its regions are short, and a query looks
at the same share of its lists and has some 600 candidates; recall is about that at a million.

The index is made in --work and stays there: stopped, the next run goes on. Vectors are made anew for the
exact answers, a block of photos at a time, so neither side holds them all. A query wants the best box of each
of the ten best photos. "near" queries are regions of photos that are not in the index; "far" ones have a
cosine of 0.5 with such a region, as a caption has with what it describes, and variance on more axes, as texts
have.

The data, --data clusters: those of ann.py, 100 regions around each centre, with which they share 60% of
their variance, which falls along the axes as that of photos of `tiny` does (80% on the first 32 of 512, 95%
on 128). --data dense: what is harder to tell apart, and more like regions of `tiny` in Flickr8k: 500 around
each centre, a third of the square of the length each for centre, noise and the mean of all, less steep (68%
on 32, 91% on 128).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mmgem.search.region_lists as lists_module
import mmgem.search.region_rows as rows_module
import mmgem.search.region_search as search_module
from mmgem.data.records import Box
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex
from mmgem.search.spatial_filter import SpatialFilter, parse_spatial_filter
from mmgem.utils.progress import track

K, DIM, SIZE = 10, 512, (640, 480)
BLOCK = 500  # photos made and recorded at once
AMONG = 2  # times K: exact answers that what is found is also looked for among
QUERIES = 2**31  # number of the first photo that is a query


def deviations(variance: np.ndarray) -> np.ndarray:
    """Standard deviations (DIM,) in proportion to ``variance``, whose squares add up to 1."""
    return np.sqrt(variance / variance.sum()).astype(np.float32)


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Data:
    """What the photos of an index of ``photos`` photos with ``boxes`` boxes show."""

    def __init__(self, kind: str, photos: int, boxes: int) -> None:
        self.boxes = boxes
        rng = np.random.default_rng(0)
        dense = kind == "dense"
        n = np.arange(DIM)
        self.deviations = deviations((1 + n / 18) ** -2.0 if dense else 1 / (1 + np.square(n / 10)))
        self.of_texts = deviations((1 + n / 18) ** -1.2) if dense else self.deviations
        mean, centre, own = (1 / 3, 1 / 3, 1 / 3) if dense else (0, 0.6, 0.4)
        self.own = np.float32(own**0.5) * self.deviations
        clusters = max(10, photos * boxes // (500 if dense else 100))
        self.centres = rng.standard_normal((clusters, DIM), np.float32) * self.deviations
        self.centres *= np.float32(centre**0.5)
        self.centres += np.float32(mean**0.5) * units(rng.standard_normal((1, DIM)) * self.deviations)

    def regions(self, first: int, photos: int) -> np.ndarray:
        """Unit vectors (photos, boxes, DIM) of a block that starts with the photo ``first``."""
        rng = np.random.default_rng([1, first])
        count = photos * self.boxes
        rows = rng.standard_normal((count, DIM), np.float32)
        rows *= self.own
        rows += self.centres[rng.integers(0, len(self.centres), count)]
        return units(rows).reshape(photos, self.boxes, DIM)

    def places(self, first: int, photos: int) -> np.ndarray:
        """Boxes (photos, boxes, 4) in pixels, to a tenth."""
        corners = np.random.default_rng([2, first]).uniform(size=(photos, self.boxes, 2, 2))
        return (np.sort(corners, axis=2) * SIZE).round(1).reshape(photos, self.boxes, 4)

    def queries(self, count: int) -> dict[str, np.ndarray]:
        """(count, DIM) of each kind."""
        near = self.regions(QUERIES, count)[:, 0]
        other = units(np.random.default_rng(3).standard_normal((count, DIM), np.float32) * self.of_texts)
        return {"near": near, "far": units(0.5 * near + 0.75**0.5 * other)}


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The first photo of each block, and how many it has."""
    for first in range(start, stop, BLOCK):
        yield first, min(BLOCK, stop - first)


def write(out: Path, data: Data, start: int, stop: int) -> tuple[float, float]:
    """Add photos; returns the seconds of making their vectors, and those of recording them."""
    making, began = 0.0, time.perf_counter()
    with IndexStore(out, "made", data.boxes) as store:
        store.set_source(out, "")
        pending = list(blocks(start, stop))
        for first, count in track(pending, "Photos", [n for _, n in pending], " photos"):
            at = time.perf_counter()
            vectors, places = data.regions(first, count), data.places(first, count).tolist()
            wholes = units(vectors.mean(1))
            contents, files = [], []
            for n in range(count):
                digest = (first + n).to_bytes(16, "big")
                boxes: list[Box | None] = [None, *(tuple(box) for box in places[n])]
                rows = np.concatenate([wholes[n, None], vectors[n]])
                contents.append(NewContent(digest, rows, boxes, size=SIZE))
                files.append(HashedFile(f"{first + n:08}.jpg", 1, 1, digest, 1))
            making += time.perf_counter() - at
            store.record(contents, files)
        store.compact()
    return making, time.perf_counter() - began - making


def exact(data: Data, photos: int, queries: np.ndarray) -> tuple[list[list[tuple[int, int]]], float]:
    """The AMONG * K best (photo, number of its best box) for each of ``queries``, and the seconds of
    comparing."""
    scores = np.zeros((len(queries), 0), np.float32)
    found = np.zeros((len(queries), 0, 2), np.int64)
    comparing = 0.0
    pending = list(blocks(0, photos))
    for first, count in track(pending, "Exact answers", [n for _, n in pending], " photos"):
        vectors = data.regions(first, count).reshape(-1, DIM)
        began = time.perf_counter()
        products = (queries @ vectors.T).reshape(len(queries), count, -1)
        numbers = np.broadcast_to(np.arange(first, first + count), products.shape[:2])
        scores = np.concatenate([scores, products.max(2)], axis=1)
        found = np.concatenate([found, np.stack([numbers, products.argmax(2)], axis=2)], axis=1)
        best = np.argsort(-scores, axis=1)[:, : AMONG * K]
        scores = np.take_along_axis(scores, best, 1)
        found = np.take_along_axis(found, best[:, :, None], 1)
        comparing += time.perf_counter() - began
    return [[(photo, box) for photo, box in rows] for rows in found.tolist()], comparing


def ours(
    index: PhotoIndex, data: Data, queries: np.ndarray, where: SpatialFilter | None = None
) -> tuple[list[list[tuple[int, int]]], list[float]]:
    """The same from the index, and the seconds of each query."""
    answers, seconds = [], []
    for query in queries:
        began = time.perf_counter()
        hits = index.search_regions(query, K, where)
        seconds.append(time.perf_counter() - began)
        answer = []
        for hit in hits:
            photo = int(hit.path.stem)
            first = photo // BLOCK * BLOCK
            rows = data.places(first, min(BLOCK, len(index) - first))[photo - first]
            answer.append((photo, int(np.abs(rows - hit.box).sum(1).argmin())))
        answers.append(answer)
    return answers, seconds


def shared(truth: list[list[tuple[int, int]]], found: list[list[tuple[int, int]]], what: int) -> float:
    """Recall of photos (``what`` 1) or of boxes (2)."""
    pairs = zip(truth, found, strict=True)
    return float(np.mean([len({t[:what] for t in a} & {t[:what] for t in b}) / K for a, b in pairs]))


def treat_as_large(regions: int) -> None:
    """Have an index of so many ``regions`` do what larger ones do."""
    rows_module.SHORT_FROM = min(rows_module.SHORT_FROM, regions // 2)
    lists_module.LISTS_FROM = min(lists_module.LISTS_FROM, regions // 2)
    if lists_module._PROBED * regions < lists_module._MIN_PROBED:
        lists_module._MIN_PROBED = search_module._CANDIDATES = search_module._COMPARED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--data", choices=("clusters", "dense"), default="clusters")
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmgem-region-scale"))
    options = parser.parse_args()
    photos, data = options.photos, Data(options.data, options.photos, options.boxes)
    treat_as_large(photos * options.boxes)
    out = options.work / f"{options.data}-{photos}x{options.boxes}"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    if (out / "photos.sqlite3").exists():
        with IndexStore(out, "made", options.boxes) as store:
            start = len(store.photos())
    if start < photos:
        making, recording = write(out, data, start // BLOCK * BLOCK, photos)
        print(f"{photos - start:,} photos recorded in {recording:.0f} s (vectors made in {making:.0f} s)")
    regions = photos * options.boxes
    sizes = {file.name: file.stat().st_size for file in out.iterdir()}
    of_regions = sum(size for name, size in sizes.items() if name.startswith("region"))
    print(f"on the disk: {of_regions / 1e6:,.1f} MB of regions, {of_regions / regions:.1f} bytes each")
    print(f"with photos and manifest: {sum(sizes.values()) / 1e6:,.1f} MB")
    print(", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sorted(sizes.items())))
    began = time.perf_counter()
    index = PhotoIndex.open(out)
    print(f"opened in {time.perf_counter() - began:.1f} s", flush=True)
    kinds = data.queries(options.queries)
    truth, comparing = exact(data, photos, np.concatenate(list(kinds.values())))
    print(f"exact, float32: {comparing / len(truth) * 1e3:.1f} ms a query, all queries at once")
    for number, (kind, queries) in enumerate(kinds.items()):
        ours(index, data, queries[:5])
        found, seconds = ours(index, data, queries)
        near = truth[number * len(queries) : (number + 1) * len(queries)]
        right = [answer[:K] for answer in near]
        recall = f"recall@{K} of photos {shared(right, found, 1):.3f}, of boxes {shared(right, found, 2):.3f}"
        recall += f" (in the first {AMONG * K}: {shared(near, found, 1):.3f})"
        median, late = np.median(seconds) * 1e3, np.percentile(seconds, 95) * 1e3
        print(f"{kind:5} {recall}; median {median:.1f} ms, p95 {late:.1f} ms", flush=True)
    seconds = ours(index, data, kinds["far"], parse_spatial_filter("top left"))[1]
    median, late = np.median(seconds) * 1e3, np.percentile(seconds, 95) * 1e3
    print(f"at the top left: median {median:.1f} ms, p95 {late:.1f} ms")
    added = write(out, data, photos, photos + 100)[1]
    print(f"100 photos more in {added:.2f} s")


if __name__ == "__main__":
    main()
