"""The order in which samples of shards are seen: a pure function of the seed.

In each epoch the blocks (a tar, or a row group of a parquet file) are shuffled and taken ``window`` at a
time; the samples of a window are shuffled together. So only a few files are read at any moment, and every
sample comes once. Epochs follow each other without a gap: position ``p`` of the whole order is place
``p mod n`` of epoch ``p div n``. Who reads which positions, and how many read, does not matter to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mmgem.errors import DataError, UsageError

_CACHED_WINDOWS = 3  # windows; a batch may span two


class Order:
    """``counts``: how many samples each block has. ``samples``: all of them, those of one epoch."""

    def __init__(self, counts: Sequence[int], seed: int, window: int = 8):
        if window < 1 or seed < 0:
            raise UsageError("window must be at least 1 and seed not negative")
        self.counts = np.asarray(counts, np.int64)
        self.samples = int(self.counts.sum())
        if not self.samples:
            raise DataError("the shards hold no sample to learn from")
        self.seed, self.window = seed, window
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def places(self, start: int, stop: int) -> np.ndarray:
        """``(stop - start, 2)`` int64: block, and which of its samples, at each position of the order."""
        slices = []
        while start < stop:
            epoch, offset = divmod(start, self.samples)
            _, ends = self._epoch(epoch)
            number = int(np.searchsorted(ends, offset, side="right"))
            first = int(ends[number - 1]) if number else 0
            rows = self._window(epoch, number)[offset - first : offset - first + stop - start]
            slices.append(rows)
            start += len(rows)
        return np.concatenate(slices) if slices else np.empty((0, 2), np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in order, and where each window ends."""
        if epoch not in self._epochs:
            blocks = np.random.default_rng((self.seed, epoch)).permutation(len(self.counts))
            ends = self.counts[blocks].cumsum()
            last = np.minimum(np.arange(self.window, len(blocks) + self.window, self.window), len(blocks)) - 1
            _keep(self._epochs, epoch, (blocks, ends[last]))
        return self._epochs[epoch]

    def _window(self, epoch: int, number: int) -> np.ndarray:
        """``(samples, 2)``: what a window holds, shuffled."""
        key = epoch, number
        if key not in self._windows:
            blocks = self._epoch(epoch)[0][number * self.window : (number + 1) * self.window]
            rows = [np.stack([np.full(n, b), np.arange(n)], 1) for b, n in zip(blocks, self.counts[blocks])]  # noqa: B905
            shuffle = np.random.default_rng((self.seed, epoch, number))
            _keep(self._windows, key, shuffle.permutation(np.concatenate(rows)))
        return self._windows[key]


def _keep(cache: OrderedDict, key: object, value: object) -> None:
    while len(cache) >= _CACHED_WINDOWS:
        cache.popitem(last=False)
    cache[key] = value
