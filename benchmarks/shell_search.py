"""What a search from the shell costs, beside importing torch: CPU seconds, all threads together.

    python benchmarks/shell_search.py --index photos.idx [--runs 5] [--query "a dog in the snow"]

Both run in turn, each in a process of its own; the medians are printed. Without --index one of made photos is
written first. The goal is at most 1.3 times the import.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SEARCH = "import sys; from mmgem.cli.main import main; sys.exit(main(sys.argv[1:]))"


def cost(*argv: str) -> tuple[float, float]:
    """CPU and wall seconds of a Python with these arguments."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began


def make_index(folder: Path, photos: int) -> Path:
    """An index of pictures of noise by the packaged model."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for n in range(photos):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((128, 128)).save(folder / "photos" / f"{n}.jpg")
    cost("-c", SEARCH, "index", str(folder / "photos"), "--out", str(folder / "idx"))
    return folder / "idx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--query", default="a dog in the snow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = options.index or make_index(Path(folder), 64)
        ways = {
            "import torch": ("-c", "import torch"),
            "mmgem search": ("-c", SEARCH, "search", str(index), options.query),
        }
        for argv in ways.values():  # what the disk caches
            cost(*argv)
        costs = {name: [cost(*argv) for _ in range(options.runs)] for name, argv in ways.items()}
    medians = {}
    for name, seconds in costs.items():
        cpu, wall = (statistics.median(column) for column in zip(*seconds, strict=True))
        medians[name] = cpu
        print(f"{name}: {cpu:.2f} s of CPU, {wall:.2f} s")
    print(f"ratio: {medians['mmgem search'] / medians['import torch']:.2f}")


if __name__ == "__main__":
    main()
