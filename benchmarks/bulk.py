"""A collection embedded on local Ray, a worker killed midway, against the plain loop in one process.

    python benchmarks/bulk.py --photos-in flickr8k/images [--photos 5000] [--workers 2] [--quick]

Both are `mmgem bulk`: `--workers 0` reads a batch, embeds it, reads the next, with torch on all cores; Ray
has a process a core with one thread of torch. The plain loop comes first. Once half of the parts are there, a
worker that is in the middle of one is killed with SIGKILL. Seconds are those of the whole run, loading of
models and the start of Ray included; "at work" counts from the moment the first part is begun. Both outputs
are then compared: complete, no photo twice, the largest difference of any number in any embedding.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mmgem.bulk import BulkReport, embed_collection
from mmgem.bulk.output import OutputFolder
from mmgem.data.images import list_images


@dataclass
class Watch:
    """What is seen of a run from outside; ``kill``: end a worker once so many parts are there."""

    out: Path
    kill: int | None = None
    begun: float = 0.0
    killed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.over.wait(0.01):
            busy = list(self.out.glob("parts/.*.tmp"))
            if busy and not self.begun:
                self.begun = time.perf_counter()
            if self.kill is None or self.killed or len(OutputFolder(self.out).partition_files()) < self.kill:
                continue
            for file in busy:
                with suppress(FileNotFoundError, ProcessLookupError):  # done, or dead already
                    if time.time() - file.stat().st_mtime > 0.2:  # well in the middle of it
                        os.kill(int(file.name.split(".")[-2]), signal.SIGKILL)
                        self.killed.append(file.name)
                        break


def run(photos: Path, out: Path, model: str, part_size: int, workers: int, kill: int | None) -> float:
    """Embed, print the figures, return images a second at work."""
    watch = Watch(out, kill)
    thread = threading.Thread(target=watch.look)
    thread.start()
    began = time.perf_counter()
    try:
        report: BulkReport = embed_collection(photos, out, model, part_size=part_size, workers=workers)
    finally:
        watch.over.set()
        thread.join()
    ended = time.perf_counter()
    if kill is not None and not watch.killed:
        raise SystemExit("no worker was caught in the middle of a part; take a larger --part-size")
    whole, at_work = ended - began, ended - watch.begun
    name = f"Ray, {workers} workers, one killed" if workers else "plain loop"
    print(
        f"{name:32} {whole:7.1f} s {report.photos / whole:7.1f} images/s"
        f"   at work {at_work:7.1f} s {report.photos / at_work:7.1f} images/s"
    )
    return report.photos / whole


def compare(one: Path, other: Path, photos: int) -> None:
    tables = [pq.read_table(out / "parts") for out in (one, other)]
    items = [table.column("item").to_numpy() for table in tables]
    vectors = [np.stack(table.column("embedding").to_numpy(zero_copy_only=False)) for table in tables]
    skipped = [len((out / "skipped.jsonl").read_text().splitlines()) for out in (one, other)]
    print(f"complete: {all(len(i) + s == photos for i, s in zip(items, skipped, strict=True))}")
    print(f"duplicates: {sum(len(i) - len(np.unique(i)) for i in items)}")
    print(f"skipped: {skipped[0]} and {skipped[1]}")
    if len(items[0]) == len(items[1]) and (items[0] == items[1]).all():
        print(f"largest difference of the embeddings: {np.abs(vectors[0] - vectors[1]).max():.2g}")
    else:
        print("the outputs hold different photos")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos-in", type=Path, required=True, metavar="DIR")
    parser.add_argument("--photos", type=int, default=5000, metavar="N", help="the first N of them")
    parser.add_argument("--part-size", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--quick", action="store_true", help="200 photos in parts of 20")
    options = parser.parse_args()
    count, size = (200, 20) if options.quick else (options.photos, options.part_size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for number, photo in enumerate(list_images(options.photos_in)[:count]):
            (folder / f"{number:06}{photo.suffix}").symlink_to(photo.absolute())
        count = len(list_images(folder))
        print(f"{count} photos in parts of {size}, {os.cpu_count()} CPUs")
        plain = run(folder, Path(place, "plain"), options.model, size, 0, None)
        ray = run(folder, Path(place, "ray"), options.model, size, options.workers, -(-count // size) // 2)
        print(f"ratio, Ray to plain loop: {ray / plain:.2f}")
        compare(Path(place, "plain"), Path(place, "ray"), count)


if __name__ == "__main__":
    main()
