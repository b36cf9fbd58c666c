"""Whose turn it is: fair queueing (start-time tags on a virtual clock) of the jobs of many requests.

Each request has a tag, the virtual time from which it is its turn again; what its jobs take is added to it.
The virtual clock advances by the time that is worked, divided among the requests that wait. So a request of
thousands of jobs gets the share of one request, and one of a single job is never behind it. Within its share
a request may be up to ``QUANTUM`` seconds ahead, for batches to form.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

Item = TypeVar("Item")
Result = TypeVar("Result")

QUANTUM = 0.05  # seconds of work


@dataclass(frozen=True, eq=False)
class JobType(Generic[Item, Result]):
    """A type of jobs. ``function`` maps a batch of items to a result each; a batch has ``max_batch_size``
    items at most, whose costs sum up to ``max_batch_cost`` at most. ``interruptible``: the function takes a
    second argument as well, which says of an item (by its place) whether nobody waits for it any more."""

    name: str
    function: Callable[..., Sequence[Result]]
    max_batch_size: int = 32
    max_batch_cost: int = 1 << 60
    interruptible: bool = False


@dataclass(eq=False, slots=True)
class Flow:
    """The jobs of one request: ``pending`` wait or are computed; ``tag``: from when it is their turn."""

    tag: float = 0.0
    pending: int = 0
    served_at: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """An item that waits for its result."""

    enqueued_at: float
    item: Any
    cost: int
    future: asyncio.Future[Any]
    flow: Flow


@dataclass(eq=False)
class Queue:
    """Jobs that may share a batch, by request."""

    job_type: JobType[Any, Any]
    jobs: dict[Flow, deque[Job]] = field(default_factory=dict)

    def put(self, job: Job) -> None:
        """Add a job behind the others of its request."""
        self.jobs.setdefault(job.flow, deque()).append(job)

    def drop_abandoned(self) -> None:
        """Forget the jobs at the head of each request's that nobody waits for."""
        for flow, jobs in list(self.jobs.items()):
            if not flow.pending:
                jobs.clear()
            while jobs and jobs[0].future.done():
                jobs.popleft()
            if not jobs:
                del self.jobs[flow]


class FairQueues:
    """Queues of jobs, and which batch is next. Nothing here is locked."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, Queue] = {}
        self._clock = 0.0
        self._active = 0  # requests with jobs that wait or are computed
        self._unit_seconds: dict[str, float] = {}  # a unit of cost, by the name of the type

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, job_type: JobType[Any, Any], key: Hashable, job: Job) -> None:
        """Add a job to the queue ``key``."""
        flow = job.flow
        if not flow.pending:
            flow.tag = max(flow.tag, self._clock)
            self._active += 1
        flow.pending += 1
        self._queues.setdefault((job_type, key), Queue(job_type)).put(job)

    def leave(self, flow: Flow) -> None:
        """Count one job of a request as done with, computed or given up."""
        flow.pending -= 1
        if not flow.pending:
            self._active -= 1

    def take_all(self) -> list[Job]:
        """Every job, for the queues to be empty."""
        jobs = [job for queue in self._queues.values() for flow in queue.jobs.values() for job in flow]
        self._queues.clear()
        return jobs

    def next_batch(self) -> tuple[JobType[Any, Any], list[Job]] | None:
        """The jobs of the next batch; None if nobody waits for anything."""
        for key, queue in list(self._queues.items()):
            queue.drop_abandoned()
            if not queue.jobs:
                del self._queues[key]
        if not self._queues:
            return None
        earliest = min(flow.tag for queue in self._queues.values() for flow in queue.jobs)
        self._clock = max(self._clock, earliest)
        now = time.monotonic()
        key, queue = max(self._queues.items(), key=lambda entry: self._urgency(entry[1], now))
        batch = self._batch(queue)
        if not queue.jobs:
            del self._queues[key]
        return queue.job_type, batch

    def charge(self, job_type: JobType[Any, Any], jobs: Sequence[Job], seconds: float) -> None:
        """Count what a batch took to its requests."""
        cost = sum(job.cost for job in jobs)
        known = self._unit_seconds.get(job_type.name, seconds / cost)
        self._unit_seconds[job_type.name] = known + 0.2 * (seconds / cost - known)
        self._clock += seconds / max(1, self._active)
        now = time.monotonic()
        for job in jobs:
            job.flow.tag += seconds * job.cost / cost
            job.flow.served_at = now

    def _urgency(self, queue: Queue, now: float) -> float:
        """The age of the oldest job whose turn it is, times the root of how many would be joined."""
        ready = [(flow, jobs) for flow, jobs in queue.jobs.items() if flow.tag <= self._clock]
        if not ready:
            return -1.0
        age = now - min(max(jobs[0].enqueued_at, flow.served_at) for flow, jobs in ready)
        size = min(sum(len(jobs) for _, jobs in ready), queue.job_type.max_batch_size)
        return age * float(size) ** 0.5

    def _batch(self, queue: Queue) -> list[Job]:
        """Take a job of each request whose turn it is, then further ones of those within their share."""
        job_type, batch, cost = queue.job_type, list[Job](), 0
        unit = self._unit_seconds.get(job_type.name, QUANTUM)
        turns = deque(flow for flow in queue.jobs if flow.tag <= self._clock)
        tags = {flow: flow.tag for flow in turns}
        while turns and len(batch) < job_type.max_batch_size:
            flow = turns.popleft()
            jobs = queue.jobs[flow]
            if batch and cost + jobs[0].cost > job_type.max_batch_cost:
                break
            job = jobs.popleft()
            batch.append(job)
            cost += job.cost
            tags[flow] += job.cost * unit
            while jobs and jobs[0].future.done():
                jobs.popleft()
            if not jobs:
                del queue.jobs[flow]
            elif self._active == 1 or tags[flow] < self._clock + QUANTUM:
                turns.append(flow)
        return batch
