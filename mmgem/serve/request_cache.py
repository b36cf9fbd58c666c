"""Work that is asked for twice is done once: while it is in flight, and while its result is recent."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from mmgem.serve.metrics import Metrics

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Results by key: the ``size`` last used ones are kept."""

    def __init__(self, name: str, size: int, metrics: Metrics) -> None:
        self._name, self._size, self._metrics = name, size, metrics
        self._recent: OrderedDict[Hashable, Result] = OrderedDict()
        self._flying: dict[Hashable, _Flight] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Result]]) -> Result:
        """The result for ``key``, made by ``make`` if it is neither recent nor on its way.

        Work is cancelled when everyone who waited for it was.
        """
        if key in self._recent:
            self._recent.move_to_end(key)
            self._metrics.reused.labels(self._name, "recent").inc()
            return self._recent[key]
        flight = self._flying.get(key)
        if flight is None:
            flight = self._flying[key] = _Flight(asyncio.ensure_future(make()))
            flight.task.add_done_callback(lambda task: self._land(key, task))
        else:
            self._metrics.reused.labels(self._name, "in flight").inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._flying.pop(key, None)

    def _land(self, key: Hashable, task: asyncio.Future[Any]) -> None:
        flight = self._flying.get(key)
        if flight is not None and flight.task is task:
            del self._flying[key]
        if task.cancelled() or task.exception() is not None or not self._size:
            return
        self._recent[key] = task.result()
        while len(self._recent) > self._size:
            self._recent.popitem(last=False)


class _Flight:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task, self.waiting = task, 0
