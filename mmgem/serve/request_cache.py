"""Work that is asked for twice is done once: while it is in flight, and while its result is recent."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from mmgem.serve.metrics import Metrics

Result = TypeVar("Result")


class RequestCache(Generic[Result]):
    """Results by key: the ``size`` last used ones are kept."""

    def __init__(self, name: str, size: int, metrics: Metrics) -> None:
        self._name, self._size, self._metrics = name, size, metrics
        self._recent: OrderedDict[Hashable, Result] = OrderedDict()
        self._in_flight: dict[Hashable, _InFlight] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Result]]) -> Result:
        """The result for ``key``, made by ``make`` if it is neither recent nor on its way.

        Work is cancelled when everyone who waited for it was.
        """
        if key in self._recent:
            self._recent.move_to_end(key)
            self._metrics.reused.labels(self._name, "recent").inc()
            return self._recent[key]
        in_flight = self._in_flight.get(key)
        if in_flight is None:
            in_flight = self._in_flight[key] = _InFlight(asyncio.ensure_future(make()))
            in_flight.task.add_done_callback(lambda task: self._finish(key, task))
        else:
            self._metrics.reused.labels(self._name, "in flight").inc()
        in_flight.waiters += 1
        try:
            return await asyncio.shield(in_flight.task)
        finally:
            in_flight.waiters -= 1
            if not in_flight.waiters and not in_flight.task.done():
                in_flight.task.cancel()
                self._in_flight.pop(key, None)

    def _finish(self, key: Hashable, task: asyncio.Future[Any]) -> None:
        in_flight = self._in_flight.get(key)
        if in_flight is not None and in_flight.task is task:
            del self._in_flight[key]
        if task.cancelled() or task.exception() is not None or not self._size:
            return
        self._recent[key] = task.result()
        while len(self._recent) > self._size:
            self._recent.popitem(last=False)


class _InFlight:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task, self.waiters = task, 0
