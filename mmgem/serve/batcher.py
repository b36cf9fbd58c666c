"""Micro-batching: one thread computes, and what waits for it is joined into batches of a type.

Notable choices. Nothing ever waits for a batch to fill: the thread takes what is there, so an idle server
answers at once and a busy one batches by itself. Only items of one type and group, which cost about as much
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
class JobType(Generic[Item, Result]):
    """A type of jobs. ``function`` maps a batch of items to a result each; a batch has ``max_batch_size``
    items at most, whose costs sum up to ``max_batch_cost`` at most."""

    name: str
    function: Callable[[list[Item]], Sequence[Result]]
    max_batch_size: int = 32
    max_batch_cost: int = 1 << 60


@dataclass(eq=False, slots=True)
class _Job:
    enqueued_at: float
    item: Any
    cost: int
    future: asyncio.Future[Any]


@dataclass(eq=False)
class _Queue:
    job_type: JobType[Any, Any]
    jobs: deque[_Job] = field(default_factory=deque)


class Batcher:
    """A thread that runs batches; made and used on one event loop."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queues: dict[Hashable, _Queue] = {}
        self._closed: Exception | None = None
        self._thread = threading.Thread(target=self._run_batches, name=f"mmgem-{name}", daemon=True)
        self._thread.start()

    async def submit(
        self, job_type: JobType[Item, Result], item: Item, group: Hashable = None, cost: int = 1
    ) -> Result:
        """Compute one item in some batch. Only items of one ``group`` share it; ``cost`` is in the unit of
        ``max_batch_cost``. Raises what the function raises for this item."""
        if self._closed is not None:
            raise self._closed
        future: asyncio.Future[Result] = self._loop.create_future()
        # Long ones do not hold up short ones: beyond 256, only within a factor of two.
        length_bucket = cost.bit_length() if cost > 256 else 0
        with self._changed:
            queue = self._queues.setdefault((job_type, group, length_bucket), _Queue(job_type))
            queue.jobs.append(_Job(time.monotonic(), item, cost, future))
            self._changed.notify()
        self._metrics.waiting.labels(job_type.name).inc()
        try:
            return await future
        finally:
            self._metrics.waiting.labels(job_type.name).dec()

    def close(self, error: Exception) -> None:
        """Fail what waits with ``error``; the batch that is running finishes."""
        with self._changed:
            self._closed = error
            waiting = [job.future for queue in self._queues.values() for job in queue.jobs]
            self._queues.clear()
            self._changed.notify()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def _run_batches(self) -> None:
        while True:
            with self._changed:
                while not self._queues and self._closed is None:
                    self._changed.wait()
                if self._closed is not None:
                    return
                job_type, jobs = self._next_batch()
            if not jobs:
                continue
            began = time.perf_counter()
            results = _run_batch(job_type, [job.item for job in jobs])
            self._metrics.batch(job_type.name, len(jobs), time.perf_counter() - began)
            self._loop.call_soon_threadsafe(_deliver, jobs, results)
            del jobs, results  # nothing of a batch outlives it

    def _next_batch(self) -> tuple[JobType[Any, Any], list[_Job]]:
        """The jobs of the next batch. Called with the lock held."""
        now = time.monotonic()

        def urgency(queue: _Queue) -> float:
            return (now - queue.jobs[0].enqueued_at) * math.sqrt(
                min(len(queue.jobs), queue.job_type.max_batch_size)
            )

        key, queue = max(self._queues.items(), key=lambda entry: urgency(entry[1]))
        job_type, batch, cost = queue.job_type, list[_Job](), 0
        while queue.jobs and len(batch) < job_type.max_batch_size:
            if batch and cost + queue.jobs[0].cost > job_type.max_batch_cost:
                break
            job = queue.jobs.popleft()
            if not job.future.done():
                batch.append(job)
                cost += job.cost
        if not queue.jobs:
            del self._queues[key]
        return job_type, batch


def _run_batch(job_type: JobType[Any, Any], items: list[Any]) -> list[Any]:
    """A result or an exception for each item."""
    try:
        return list(job_type.function(items))
    except Exception as error:
        if len(items) == 1:
            if not isinstance(error, MMGEMError):
                _log.exception("%s failed", job_type.name)
            return [error]
    middle = len(items) // 2
    return _run_batch(job_type, items[:middle]) + _run_batch(job_type, items[middle:])


def _deliver(jobs: list[_Job], results: list[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
