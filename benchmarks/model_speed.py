"""How fast one model is beside another: photos embedded, captions written, queries embedded, in one run.

    python benchmarks/model_speed.py old/tiny tiny --photos ../shared/data/flickr8k/images --count 64

Each round measures both models, one after the other; the medians of the rounds and their ratio (second to
first) are printed. Photos are read from the disk and decoded, as `mmgem index` does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmgem.api import MMGEM

QUERIES = [
    f"{what} {where}" for what in ("a dog", "two children", "a red car") for where in ("in snow", "at sea")
]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    photos = sorted(p for p in options.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    photos = photos[: options.count]
    models = [MMGEM.from_pretrained(name) for name in options.models]
    work: dict[str, tuple[Callable[[MMGEM], object], int]] = {
        "photos/s": (lambda model: model.embed_images(photos), len(photos)),
        "captions/s": (lambda model: model.caption(photos), len(photos)),
        "queries/s": (lambda model: [model.embed_texts([query]) for query in QUERIES], len(QUERIES)),
    }
    print(f"{'':12}{options.models[0]:>24}{options.models[1]:>24}{'ratio':>8}")
    for name, (call, count) in work.items():
        for model in models:
            call(model)
        rounds = [[seconds(partial(call, model)) for model in models] for _ in range(options.rounds)]
        rates = [count / statistics.median(times) for times in zip(*rounds, strict=True)]
        print(f"{name:12}{rates[0]:>24.1f}{rates[1]:>24.1f}{rates[1] / rates[0]:>8.2f}")


if __name__ == "__main__":
    main()
