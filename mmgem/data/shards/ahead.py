"""Batches made ahead of time by worker processes, in order.

A worker makes whole steps, every ``workers``-th one, so nothing depends on their number. Pixels come back
through shared memory; the many short token lists by value, for each shared tensor would cost a file handle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import count
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmgem.data.batches import Batch
from mmgem.errors import MMGEMError, UsageError

_LARGE = 1 << 16  # elements


class Steps(Protocol):
    """What makes the batch of a step."""

    def __getitem__(self, step: int) -> Batch: ...


def prefetched(batches: Steps, steps: Iterable[int], workers: int) -> Iterator[Batch]:
    """Yield ``batches[step]`` for each of ``steps`` in order, made ahead by ``workers`` processes (0: made
    here, when asked for).

    What workers find broken is told to ``batches.count`` if there is such a method. Errors of the data are
    raised as they were; close the iterator to end the workers early.
    """
    if workers < 0:
        raise UsageError("workers must not be negative")
    if not workers:
        for step in steps:
            yield batches[step]
        return
    loader = DataLoader(
        _Made(batches),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # the caller's random numbers are left alone
    )
    count_broken = getattr(batches, "count", None)
    for item in loader:
        if isinstance(item, MMGEMError):
            raise item
        batch = _unpacked(item)
        if count_broken is not None:
            count_broken(getattr(batch, "broken", []))
        yield batch


class Ahead:
    """Batches by step as before, but made ahead by ``workers`` processes: in ``ahead[n]``, ``ahead[n + 1]``
    and so on the next ones are under way already. Any other step starts anew from there."""

    def __init__(self, batches: Any, workers: int):
        self.batches, self.workers = batches, workers
        self._next = -1
        self._made: Iterator[Batch] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in ("batches", "workers"):  # not there yet
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __getitem__(self, step: int) -> Batch:
        if not self.workers:
            return self.batches[step]
        if self._made is None or step != self._next:
            self.close()
            self._made, self._next = prefetched(self.batches, count(step), self.workers), step
        self._next += 1
        return next(self._made)

    def close(self) -> None:
        """End the workers."""
        made, self._made = self._made, None
        if made is not None:
            made.close()  # type: ignore[attr-defined]


class _Made(Dataset):
    """Steps as a torch data set, of which errors are items too."""

    def __init__(self, batches: Steps):
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | MMGEMError:
        try:
            return _packed(self.batches[step])
        except MMGEMError as error:
            return error


def _packed(batch: Batch) -> Batch:
    """The batch with its small tensors as arrays."""
    values = {f.name: _small(getattr(batch, f.name)) for f in fields(batch)}
    return replace(batch, **values)


def _small(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() <= _LARGE:
        return value.numpy()
    return [_small(item) for item in value] if isinstance(value, list) else value


def _unpacked(batch: Batch) -> Batch:
    values = {f.name: _tensors(getattr(batch, f.name)) for f in fields(batch)}
    return replace(batch, **values)


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return [_tensors(item) for item in value] if isinstance(value, list) else value


def _as_is(value: Any) -> Any:
    return value


def _begin(_: int) -> None:
    """What a worker does first."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one process among several
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this worker when its ``parent`` is gone. PyTorch's own watch does not: it leaves a worker waiting
    to hand over its last batch, for ever, with a copy of every socket of the dead process."""
    parent.join()
    os._exit(1)
