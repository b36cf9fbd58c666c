"""How long a step takes at least: what it multiplies, moves and reads, each at the hardware's best."""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mmgem.config import Preprocessing, Recipe
from mmgem.data.images import open_image
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.plan.hardware import Hardware

_PHOTO = (640, 480)
_ADAMW, _CLIP, _AVERAGE = 7, 3, 3  # times that each reads or writes a tensor of all that trains


@dataclass(frozen=True)
class Bounds:
    """Seconds of a step on one device.

    ``arithmetic``: all products at the peak rate of their type; ``traffic``: all operators' inputs and
    outputs at the memory's bandwidth, the optimiser's too; ``operators``: of each operator the greater of the
    two, one after the other, as PyTorch runs them without a compiler; ``data``: photos decoded by one core of
    this machine; ``step``: the last two together, or side by side where workers decode ahead.
    """

    arithmetic: float
    traffic: float
    operators: float
    data: float
    step: float


def bounds(
    work: Counter[tuple[torch.dtype, int, int]],
    update_traffic: int,
    data: float,
    workers: int,
    hardware: Hardware,
) -> Bounds:
    """``work``: operators as :class:`~mmgem.plan.memory.MemoryTracker` counts them; ``update_traffic``: bytes
    the update moves; ``data``: seconds of one core to read the step's photos."""
    bandwidth = 1e9 * hardware.bandwidth
    arithmetic = traffic = operators = 0.0
    for (dtype, operations, bytes_moved), repeats in work.items():
        arithmetic_seconds, traffic_seconds = operations / hardware.rate(dtype), bytes_moved / bandwidth
        arithmetic += repeats * arithmetic_seconds
        traffic += repeats * traffic_seconds
        operators += repeats * max(arithmetic_seconds, traffic_seconds)
    update = update_traffic / bandwidth
    operators += update
    step = step_seconds(operators, data, workers)
    return Bounds(arithmetic, traffic + update, operators, data, step)


def update_bytes(trained: int, average: bool) -> int:
    """Bytes that clipping, AdamW and the average move for so many parameters of float32."""
    return 4 * trained * (_ADAMW + _CLIP + _AVERAGE * average)


def photo_seconds(recipe: Recipe, prep: Preprocessing) -> float:
    """Seconds one core of this machine takes to make a photo of 640 x 480 pixels ready; 0 where features are
    cached."""
    if recipe.data.train is None or recipe.data.cached:
        return 0.0
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(_PHOTO, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    best = float("inf")
    for _ in range(5):
        started = time.thread_time()  # not the wall's: other programs do not count
        image = open_image(file.getvalue(), min_side=2 * prep.size)
        normalise(np.stack([to_square(image, prep, view_geometry(0, "", 1.0))]), prep)
        best = min(best, time.thread_time() - started)
    return best


def step_seconds(operators: float, data: float, workers: int) -> float:
    """Seconds of a step: its photos are read before it, or beside it by ``workers``."""
    return max(operators, data / workers) if workers else operators + data
