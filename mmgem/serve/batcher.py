"""Micro-batching: one thread computes, and what waits for it is joined into batches of a type.

Notable choices. Nothing ever waits for a batch to fill: the thread takes what is there, so an idle server
answers at once and a busy one batches by itself. Only items of one type and group, which cost about as much
each, join. Requests share the thread evenly, however many items each has (:mod:`mmgem.serve.fair_queue`).
Among the items whose turn it is, the next batch is that with the largest age of its oldest, times the root of
its size: a full batch goes before a small one that has waited up to six times as long, and nobody starves.
What nobody waits for any more is dropped, and a long computation can ask for that between its steps. One bad
item among others fails alone: its batch is run again in halves.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mmgem.errors import MMGEMError
from mmgem.serve.fair_queue import FairQueues, Flow, Job, JobType
from mmgem.serve.metrics import Metrics
from mmgem.serve.request_scope import RequestScope, current_request

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)

__all__ = ["Batcher", "JobType"]


class Batcher:
    """A thread that runs batches; made and used on one event loop."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queues = FairQueues()
        self._flows: WeakKeyDictionary[RequestScope, Flow] = WeakKeyDictionary()
        self._closed: Exception | None = None
        self._thread = threading.Thread(target=self._run_batches, name=f"mmgem-{name}", daemon=True)
        self._thread.start()

    async def submit(
        self, job_type: JobType[Item, Result], item: Item, group: Hashable = None, cost: int = 1
    ) -> Result:
        """Compute one item in some batch. Only items of one ``group`` share it; ``cost`` is in the unit of
        ``max_batch_cost``, from 1. The item counts to the request this task belongs to. Raises what the
        function raises for this item."""
        if self._closed is not None:
            raise self._closed
        future: asyncio.Future[Result] = self._loop.create_future()
        # Long ones do not hold up short ones: beyond 256, only within a factor of two.
        length_bucket = cost.bit_length() if cost > 256 else 0
        scope = current_request()
        flow = self._flows.setdefault(scope, Flow())
        with self._changed:
            job = Job(time.monotonic(), item, cost, future, flow)
            self._queues.put(job_type, (group, length_bucket), job)
            self._changed.notify()
        self._metrics.waiting.labels(job_type.name).inc()
        try:
            return await future
        finally:
            with self._changed:
                self._queues.leave(flow)
            self._metrics.waiting.labels(job_type.name).dec()

    def close(self, error: Exception) -> None:
        """Fail what waits with ``error``; the batch that is running finishes."""
        with self._changed:
            self._closed = error
            waiting = [job.future for job in self._queues.take_all()]
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
                batch = self._queues.next_batch()
            if batch is None:
                continue
            job_type, jobs = batch
            began = time.perf_counter()
            results = _run_batch(job_type, jobs)
            seconds = time.perf_counter() - began
            with self._changed:
                self._queues.charge(job_type, jobs, seconds)
            self._metrics.batch(job_type.name, len(jobs), seconds)
            self._loop.call_soon_threadsafe(_deliver, jobs, results)
            del batch, jobs, results  # nothing of a batch outlives it


def _run_batch(job_type: JobType[Any, Any], jobs: Sequence[Job]) -> list[Any]:
    """A result or an exception for each job."""
    items = [job.item for job in jobs]
    try:
        if job_type.interruptible:
            return list(job_type.function(items, lambda n: jobs[n].future.done()))
        return list(job_type.function(items))
    except Exception as error:
        if len(items) == 1:
            if not isinstance(error, MMGEMError):
                _log.exception("%s failed", job_type.name)
            return [error]
    middle = len(jobs) // 2
    return _run_batch(job_type, jobs[:middle]) + _run_batch(job_type, jobs[middle:])


def _deliver(jobs: list[Job], results: list[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
