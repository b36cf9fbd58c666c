"""Shards as one endless stream of samples, to be read from any position by any number of processes."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmgem.data.shards.find import open_shard
from mmgem.data.shards.order import Order
from mmgem.data.shards.parquet import RowGroups
from mmgem.data.shards.shard import Sample, Shard
from mmgem.errors import DataError, UsageError
from mmgem.utils.progress import track


class ShardPosition(NamedTuple):
    """A sample: number of its shard, and of the sample in it."""

    shard: int
    sample: int


class ShardStream:
    """The samples of ``paths`` that have captions, in the order of :class:`Order`.

    ``samples``: how many there are, those of an epoch. ``fingerprint``: tells whether two streams are of the
    same shards in the same order. ``problems``: what is broken and left out; a shard that cannot be opened is
    one of them. Copies in other processes open files of their own.
    """

    def __init__(self, paths: Sequence[Path], seed: int = 0, window: int = 8):
        """Opens every shard once, which scans those that are new. ``window``: tars, or row groups of parquet,
        whose samples are shuffled together; as many row groups are held in memory.

        Raises ``DataError`` if no sample is left.
        """
        self.paths, self.window = list(paths), window
        self.problems: list[str] = []
        shard_of_block: list[int] = []
        counts: list[int] = []
        first_samples: list[int] = []
        for n, path in enumerate(track(self.paths, "shards")):
            try:
                shard = open_shard(path)
            except (DataError, UsageError) as error:
                self.problems.append(str(error))
                continue
            self.problems += shard.problems
            ends = np.cumsum([0, *shard.blocks])
            captioned_before = np.concatenate([[0], np.cumsum(shard.captioned)])[ends]
            shard_of_block += [n] * len(shard.blocks)
            first_samples += captioned_before[:-1].tolist()
            counts += np.diff(captioned_before).tolist()
        self._owners, self._firsts = np.array(shard_of_block, np.int64), np.array(first_samples, np.int64)
        names = [path.name for path in self.paths]
        try:
            self.order = Order(counts, seed, window)
        except DataError as error:
            first = f"; the first problem: {self.problems[0]}" if self.problems else ""
            raise DataError(f"{error}{first}") from error
        self.samples = self.order.samples
        identity = json.dumps([names, shard_of_block, counts, seed, window])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self._start()

    def _start(self) -> None:
        self._opened: OrderedDict[int, tuple[Shard, np.ndarray]] = OrderedDict()
        self._groups = RowGroups(self.window)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_opened", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def places(self, start: int, stop: int) -> list[ShardPosition]:
        """The samples at positions ``start`` to ``stop`` of the order; epochs follow each other in it. Their
        numbers count those with captions only."""
        block_samples = self.order.places(start, stop)
        blocks = block_samples[:, 0]
        numbers = self._firsts[blocks] + block_samples[:, 1]
        return [
            ShardPosition(s, n) for s, n in zip(self._owners[blocks].tolist(), numbers.tolist(), strict=True)
        ]

    def read(self, position: ShardPosition) -> Sample:
        """The sample at ``position``. Raises ``DataError`` if it can be read no longer."""
        if position.shard not in self._opened:
            while len(self._opened) > self.window:
                self._opened.popitem(last=False)
            shard = open_shard(self.paths[position.shard], self._groups)
            self._opened[position.shard] = shard, np.flatnonzero(shard.captioned)
        self._opened.move_to_end(position.shard)
        shard, captioned = self._opened[position.shard]
        if position.sample >= len(captioned):
            raise DataError(f"{shard.path}: has changed since it was first opened")
        return shard.read(int(captioned[position.sample]))
