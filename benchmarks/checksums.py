"""What checksums cost: index and search with and without them, and ``mmgem check`` of many vectors.

    python benchmarks/checksums.py [--photos 100000] [--dim 512] [--repeats 7]

Both sides in one run, in turn, on the same data; the least processor time of each, which other work on the
machine disturbs least, and their ratio. "Without" is the same code with nothing compared and no checksum
computed.

- index: embeddings of ``--embedded`` photos by ``tiny``, recorded as ``mmgem index`` does.
- mmgem search: the command in a process of its own, which loads the model, opens the index and searches it
  once, comparing every block.
- library: the index is opened and searched once, nothing else.
- warm: every search after the first.
- mmgem check: in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from search import build

from mmgem import MMGEM
from mmgem.search import index_store
from mmgem.search.index import update_index
from mmgem.search.index_checksums import VectorBlocks
from mmgem.search.search import PhotoIndex


@contextmanager
def without() -> Iterator[None]:
    """Neither compute nor compare checksums."""
    nothing = mock.Mock(return_value=False)
    with (
        mock.patch.object(VectorBlocks, "verify", lambda *_: None),
        mock.patch.multiple(
            index_store,
            verify_manifest=nothing,
            write_manifest_checksum=nothing,
            append_crcs=nothing,
            read_crcs=mock.Mock(return_value={}),
            not_unit_rows=mock.Mock(return_value=()),
        ),
    ):
        yield


def compare(name: str, repeats: int, work: Callable[[], object]) -> None:
    """Print the processor time of ``work`` with and without checksums."""

    def timed() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    def timed_without() -> float:
        with without():
            return timed()

    show(name, repeats, timed_without, timed)


def show(name: str, repeats: int, plain_time: Callable[[], float], time_of: Callable[[], float]) -> None:
    """Print the least of two kinds of times (seconds), taken in turn after one that does not count."""
    plain_time()
    pairs = [(plain_time(), time_of()) for _ in range(repeats)]
    plain, checked_time = np.min(pairs, axis=0).tolist()
    ratio = checked_time / plain - 1
    print(f"{name:<34}{plain * 1e3:>12.1f} ms{checked_time * 1e3:>12.1f} ms{ratio:>9.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--embedded", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out, folder, made = Path(place, "idx"), Path(place, "photos"), Path(place, "made")
        model, runs = MMGEM.from_pretrained("tiny"), iter(range(1_000_000))
        build(out, options.photos, options.dim, model.fingerprint, "tiny")
        folder.mkdir()
        rng = np.random.default_rng(1)
        for number in range(options.embedded):
            cells = rng.integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(cells).resize((640, 480)).save(folder / f"{number}.jpg")
        query = rng.standard_normal(options.dim, np.float32)
        query /= np.linalg.norm(query)

        def index() -> None:
            update_index(made.with_name(f"made-{next(runs)}"), folder, lambda: model, model.fingerprint)

        def command(*argv: str) -> float:
            before = os.times()
            subprocess.run([sys.executable, *argv], capture_output=True, check=True)
            return sum(os.times()[2:4]) - sum(before[2:4])

        search = ["search", str(out), "a dog in the snow"]
        plain = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from mmgem.cli.main import main; from checksums import without\n"
            f"with without(): main({search!r})"
        )
        print(f"{options.photos:,} vectors of {options.dim}{'':<6}{'without':>15}{'with':>15}{'more':>9}")
        compare(f"index {options.embedded} photos", options.repeats, index)
        show(
            "mmgem search, a process",
            options.repeats,
            lambda: command("-c", plain),
            lambda: command("-m", "mmgem", *search),
        )
        compare("library: open, first search", options.repeats, lambda: PhotoIndex.open(out).search(query))
        opened = PhotoIndex.open(out)
        opened.search(query)
        compare("warm search", 5 * options.repeats, lambda: opened.search(query))
        began = time.perf_counter()
        used = command("-m", "mmgem", "check", str(out))
        print(f"mmgem check: {time.perf_counter() - began:.2f} s by the clock, {used:.2f} s of the processor")


if __name__ == "__main__":
    main()
