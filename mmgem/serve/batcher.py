"""Micro-batching: one thread computes, and what waits for it is joined into batches of a kind.

Notable choices. Nothing ever waits for a batch to fill: the thread takes what is there, so an idle server
answers at once and a busy one batches by itself. Only items of one kind and group, which cost about as much
each, join. The next batch is that with the largest age of its oldest item, times the root of its size: a full
batch goes before a small one that has waited up to six times as long, and nobody starves. What nobody waits
for any more is dropped. One bad item among others fails alone: its batch is run again in halves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mmgem.errors import MMGEMError
from mmgem.serve.metrics import Metrics

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Kind(Generic[Item, Result]):
    """A kind of work. ``run`` maps a batch to a result each; ``most`` items, and ``budget`` of their costs
    together, make a batch."""

    name: str
    run: Callable[[list[Item]], Sequence[Result]]
    most: int = 32
    budget: int = 1 << 60


@dataclass(eq=False, slots=True)
class _Job:
    since: float
    item: Any
    cost: int
    future: asyncio.Future[Any]


@dataclass(eq=False)
class _Line:
    kind: Kind[Any, Any]
    jobs: deque[_Job] = field(default_factory=deque)


class Batcher:
    """A thread that runs batches; made and used on one event loop."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._ready = threading.Condition()
        self._lines: dict[Hashable, _Line] = {}
        self._closed: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"mmgem-{name}", daemon=True)
        self._thread.start()

    async def submit(
        self, kind: Kind[Item, Result], item: Item, group: Hashable = None, cost: int = 1
    ) -> Result:
        """Compute one item in some batch. Only items of one ``group`` share it; ``cost`` is in the unit of
        the kind's budget. Raises what the kind raises for this item."""
        if self._closed is not None:
            raise self._closed
        future: asyncio.Future[Result] = self._loop.create_future()
        # Long ones do not hold up short ones: beyond 256, only within a factor of two.
        length = cost.bit_length() if cost > 256 else 0
        with self._ready:
            line = self._lines.setdefault((kind, group, length), _Line(kind))
            line.jobs.append(_Job(time.monotonic(), item, cost, future))
            self._ready.notify()
        self._metrics.waiting.labels(kind.name).inc()
        try:
            return await future
        finally:
            self._metrics.waiting.labels(kind.name).dec()

    def close(self, error: Exception) -> None:
        """Fail what waits with ``error``; the batch that is running finishes."""
        with self._ready:
            self._closed = error
            waiting = [job.future for line in self._lines.values() for job in line.jobs]
            self._lines.clear()
            self._ready.notify()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._lines and self._closed is None:
                    self._ready.wait()
                if self._closed is not None:
                    return
                kind, jobs = self._take()
            if not jobs:
                continue
            began = time.perf_counter()
            results = _run(kind, [job.item for job in jobs])
            self._metrics.batch(kind.name, len(jobs), time.perf_counter() - began)
            self._loop.call_soon_threadsafe(_deliver, jobs, results)
            del jobs, results  # nothing of a batch outlives it

    def _take(self) -> tuple[Kind[Any, Any], list[_Job]]:
        """The jobs of the next batch. Called with the lock held."""
        now = time.monotonic()

        def urgency(line: _Line) -> float:
            return (now - line.jobs[0].since) * math.sqrt(min(len(line.jobs), line.kind.most))

        key, line = max(self._lines.items(), key=lambda entry: urgency(entry[1]))
        kind, taken, cost = line.kind, list[_Job](), 0
        while line.jobs and len(taken) < kind.most:
            if taken and cost + line.jobs[0].cost > kind.budget:
                break
            job = line.jobs.popleft()
            if not job.future.done():
                taken.append(job)
                cost += job.cost
        if not line.jobs:
            del self._lines[key]
        return kind, taken


def _run(kind: Kind[Any, Any], items: list[Any]) -> list[Any]:
    """A result or an exception for each item."""
    try:
        return list(kind.run(items))
    except Exception as error:
        if len(items) == 1:
            if not isinstance(error, MMGEMError):
                _log.exception("%s failed", kind.name)
            return [error]
    middle = len(items) // 2
    return _run(kind, items[:middle]) + _run(kind, items[middle:])


def _deliver(jobs: list[_Job], results: list[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
