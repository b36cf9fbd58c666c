"""Filters and queries of several terms over 100,000 made photos: milliseconds a query.

OMP_NUM_THREADS=1 python benchmarks/filters.py

Vectors are of clusters, metadata is made, and no file is read. A query is made anew each time: nothing is
remembered between two but the table of what is known of the photos, which is read once; "cold" is one of an
index that has just been opened, that and the opening included. CPU is what a query costs whatever else runs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np

from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.search.filters import Filters
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.query_terms import combined_vector
from mmgem.search.search import PhotoIndex

DIM = 512
CAMERAS = ("Canon EOS 80D", "NIKON D750", "Apple iPhone 12", "Google Pixel 7", None)
SIZES = ((4000, 3000), (3000, 4000), (1080, 1080), (1920, 1080))
CASES: dict[str, list[Filters]] = {
    "none": [Filters()],
    "folder": [Filters(folder="2021/07")],
    "name": [Filters(name="IMG_01*"), Filters(name="*7?.jpg"), Filters(name="*1*2*.jpg")],
    "changed": [Filters(changed="2021")],
    "lacks": [Filters(lacks="place")],
    "date": [Filters(date="2021"), Filters(date="2019-07..2021-08")],
    "camera": [Filters(camera="iphone")],
    "orientation": [Filters(orientation="portrait"), Filters(orientation="landscape")],
    "size": [Filters(min_width=2000, min_height=2000)],
    "near": [Filters(near="48.1,11.5,10km"), Filters(near="48.1,11.5,2000km")],
    "two": [
        Filters(date="2021", camera="canon"),
        Filters(folder="2020", near="48.1,11.5,50km"),
        Filters(name="IMG_*", min_width=1000),
    ],
}


def units(count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (count, D) float32 around a thousand centres."""
    centres = rng.normal(size=(1000, DIM)).astype(np.float32)
    vectors = centres[rng.integers(0, 1000, count)] + 0.7 * rng.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(out: Path, count: int) -> None:
    """An index of so many photos that are no files."""
    rng, vectors = random.Random(0), units(count, np.random.default_rng(0))
    contents, files = [], []
    for number in range(count):
        moment = datetime(2016, 1, 1) + timedelta(seconds=rng.randrange(8 * 365 * 86400))
        place: tuple[float | None, float | None] = (None, None)
        if rng.random() < 0.6:
            place = 48 + rng.gauss(0, 3), 11 + rng.gauss(0, 5)
        taken = moment if rng.random() < 0.8 else None
        metadata = PhotoMetadata(*rng.choice(SIZES), taken, rng.choice(CAMERAS), *place)
        digest = number.to_bytes(32, "big")
        path = f"{moment:%Y/%m}/IMG_{number:06}.jpg"
        size = metadata.width, metadata.height
        contents.append(NewContent(digest, vectors[number, None], (None,), size=size, metadata=metadata))
        files.append(HashedFile(path, 1, int(moment.timestamp() * 1e9), digest))
    with IndexStore(out, "f") as store:
        store.set_source(Path("/photos"), "tiny")
        store.record(contents, files)


def search(index: PhotoIndex | Path, filters: Filters, query: np.ndarray) -> None:
    """One query with ``filters``, of an index that is open or is to be opened."""
    opened = PhotoIndex.open(index) if isinstance(index, Path) else index
    opened.filtered(filters).search(query, 10)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds that something takes, of the processor and by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "idx")
        build(out, options.photos)
        index = PhotoIndex.open(out)
        print(f"{'':12} {'pass':>7} {'CPU ms':>7} {'worst':>6} {'wall ms':>8} {'cold CPU ms':>12}")
        for name, all_filters in CASES.items():
            for filters in all_filters:
                vectors = [units(1, rng)[0] for _ in range(options.repeats + 1)]
                searches = [partial(search, index, filters, vector) for vector in vectors]
                times = np.array([timed(run) for run in searches])[1:]
                cold = min(timed(partial(search, out, filters, vector))[0] for vector in vectors[:3])
                cpu, wall = np.median(times, axis=0)
                passed = len(index.filtered(filters).photos)
                print(f"{name:12} {passed:7} {cpu:7.1f} {times[:, 0].max():6.1f} {wall:8.1f} {cold:12.0f}")
        terms = list(units(3, rng))
        combined = [
            timed(lambda: index.search(combined_vector(terms, [1, 1, -0.5]), 10))
            for _ in range(options.repeats)
        ]
        cpu, wall = np.median(combined, axis=0)
        print(f"{'three terms':12} {options.photos:7} {cpu:7.1f} {np.max(combined):6.1f} {wall:8.1f}")


if __name__ == "__main__":
    main()
