"""Pooling boxes in closed form against RoIAlign by sampling, followed by a mean.

    python benchmarks/pooling.py [--maps 64] [--boxes 100] [--side 14] [--channels 1280] [--repeats 5]

Both sides pool the same boxes of the same maps; the results are compared. "sampled" is what one writes
without torchvision: ``grid_sample`` at 7 x 7 bins of 2 x 2 points a box, then the mean. Each side runs in a
process of its own, so that the peak memory printed is its own, the maps included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.models.pooling import pool_boxes

POINTS = 14
Pool = Callable[[Tensor, Tensor], Tensor]


def ours(maps: Tensor, boxes: Tensor) -> Tensor:
    """(B, K, C); ``boxes`` in shares of the image."""
    return pool_boxes(maps, boxes, (1.0, 1.0))[:, :, 0]


def sampled(maps: Tensor, boxes: Tensor) -> Tensor:
    """The same, by sampling POINTS x POINTS places a box."""
    count, boxes_each = boxes.shape[:2]
    steps = (torch.arange(POINTS) + 0.5) / POINTS
    x = boxes[..., 0:1] + (boxes[..., 2:3] - boxes[..., 0:1]) * steps
    y = boxes[..., 1:2] + (boxes[..., 3:4] - boxes[..., 1:2]) * steps
    places = torch.stack(
        [x[:, :, None].expand(-1, -1, POINTS, -1), y[..., None].expand(-1, -1, -1, POINTS)], -1
    )
    grid = places.reshape(count, boxes_each * POINTS, POINTS, 2) * 2 - 1
    found = F.grid_sample(maps.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    return found.view(count, -1, boxes_each, POINTS * POINTS).mean(-1).transpose(1, 2)


def measure(pool: Pool, options: argparse.Namespace, out: multiprocessing.Queue) -> None:
    """Put the seconds of each repeat, the peak memory in MB and a sample of the result into ``out``."""
    generator = torch.Generator().manual_seed(0)
    side = options.side
    maps = torch.randn(options.maps, side, side, options.channels, generator=generator)
    ends = torch.rand(options.maps, options.boxes, 2, 2, generator=generator).sort(2).values
    boxes = ends.flatten(2)
    seconds = []
    with torch.inference_mode():
        pooled = pool(maps, boxes)
        for _ in range(options.repeats):
            began = time.perf_counter()
            pool(maps, boxes)
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.put((seconds, peak, pooled[:, ::7, ::101].numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("maps", 64), ("boxes", 100), ("side", 14), ("channels", 1280), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, pool in (("sampled", sampled), ("closed form", ours)):
        out = context.Queue()
        process = context.Process(target=measure, args=(pool, options, out))
        process.start()
        found[name] = out.get()
        process.join()
    difference = abs(found["sampled"][2] - found["closed form"][2]).max()
    assert difference < 1e-4, difference
    slow = statistics.median(found["sampled"][0])
    shape = f"{options.side} x {options.side} x {options.channels}"
    print(f"{options.maps} maps of {shape}, {options.boxes} boxes each")
    print(f"largest difference {difference:.1e}; median of {options.repeats}\n")
    for name, (seconds, peak, _) in found.items():
        taken = statistics.median(seconds)
        print(f"{name:12} {taken * 1e3:9.1f} ms  peak {peak:8.0f} MB  {slow / taken:6.1f}x")


if __name__ == "__main__":
    main()
