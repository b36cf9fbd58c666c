"""Where a run's time goes: the share that steps wait for data, and the arithmetic they do a second beside
what a large matrix product reaches on the same device.

Operations are counted in the first step (:mod:`mmgem.utils.flops`); with ``train.compile`` that step runs as
it would without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmgem.distributed.world import World
from mmgem.utils.flops import FlopCount


class ThroughputMeter:
    """Where a step's time goes, over the steps since :meth:`metrics` was last asked."""

    def __init__(self, world: World, precision: str):
        self.world, self.precision = world, precision
        self.flops = 0
        self.peak = 0.0
        self.seconds = self.data_wait = 0.0
        self.steps = 0

    @contextmanager
    def time_step(self, count: bool) -> Iterator[None]:
        """Around a step: its operations are counted, or else it is timed."""
        if count:
            with FlopCount() as flop_count:
                yield
            self.flops = flop_count.total
            self.data_wait = 0.0
            self.peak = _matrix_product_rate(self.world.device, self.precision)
            return
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started
        self.steps += 1

    def add_data_wait(self, seconds: float) -> None:
        """Count time in which a step waited for its batch."""
        self.data_wait += seconds

    def metrics(self) -> dict[str, float]:
        """``data_wait``: share of the time; ``tflops``: 10^12 operations a second of a process;
        ``utilisation``: their share of what a matrix product reaches."""
        if not self.steps:
            return {}
        rate = self.flops * self.steps / self.seconds
        values = {
            "data_wait": self.data_wait / self.seconds,
            "tflops": rate / 1e12,
            "utilisation": rate / self.peak,
        }
        self.seconds = self.data_wait = 0.0
        self.steps = 0
        return {name: round(value, 4) for name, value in values.items()}


def _matrix_product_rate(device: torch.device, precision: str) -> float:
    """Operations a second of the best of a few products of two square matrices."""
    side = 4096 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(3):
        started = time.monotonic()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - started)
    return 2 * side**3 / best
