"""Filters and queries of several terms over 100,000 made photos: milliseconds a query.

OMP_NUM_THREADS=1 python benchmarks/filters.py

Vectors are of clusters, metadata is made, and no file is read. A query is made anew each time: nothing is
remembered between two but the table of what is known of the photos, which is read once ("first"). Times
are of the processor, so that what else runs does not count.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from datetime import datetime, timedelta
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
    "name": [Filters(name="IMG_01*"), Filters(name="*7?.jpg")],
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


def timed(index: PhotoIndex, query: np.ndarray, filters: Filters) -> float:
    """Milliseconds of one query with ``filters``."""
    began = time.process_time()
    index.filtered(filters).search(query, 10)
    return 1000 * (time.process_time() - began)


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
        began = time.process_time()
        index = PhotoIndex.open(out)
        index.search(units(1, rng)[0])
        print(f"open and first search: {time.process_time() - began:.2f} s")
        print(f"first filter: {timed(index, units(1, rng)[0], Filters(date='2021')):.0f} ms")
        print(f"{'filter':12} {'pass':>7} {'median ms':>10} {'worst ms':>9}")
        for name, all_filters in CASES.items():
            for filters in all_filters:
                taken = [timed(index, units(1, rng)[0], filters) for _ in range(options.repeats)]
                passed = len(index.filtered(filters).photos)
                print(f"{name:12} {passed:7} {np.median(taken):10.1f} {max(taken):9.1f}")
        terms = units(3, rng)
        began = time.process_time()
        for _ in range(options.repeats):
            index.search(combined_vector(list(terms), [1, 1, -0.5]), 10)
        milliseconds = 1000 * (time.process_time() - began) / options.repeats
        print(f"{'three terms':12} {options.photos:7} {milliseconds:10.1f}")


if __name__ == "__main__":
    main()
