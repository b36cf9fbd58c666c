"""Batches: what joins them, what fails in them, what is never computed twice; they change nothing."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from serving import batched, data_uri, image_part, picture, serving

from mmgem import MMGEM
from mmgem.errors import UsageError
from mmgem.serve.batcher import Batcher, JobType
from mmgem.serve.metrics import Metrics
from mmgem.serve.request_cache import RequestCache


class Held:
    """A kind that notes its batches, the first of which waits until it is let go."""

    def __init__(self, **options: int) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.job_type: JobType[int, int] = JobType("held", self._run, **options)

    def _run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.go.wait(10)
        if 13 in items:
            raise UsageError("13 is bad")
        return [2 * item for item in items]


async def after(seconds: float, make: Callable[[], Awaitable[int]]) -> int:
    await asyncio.sleep(seconds)
    return await make()


async def behind_the_first(batcher: Batcher, held: Held, *submits: Awaitable[Any]) -> list[Any]:
    """Submit while an item is being computed, then let it go."""
    first = asyncio.ensure_future(batcher.submit(held.job_type, 1))
    while not held.batches:
        await asyncio.sleep(0.001)
    rest = [asyncio.ensure_future(submit) for submit in submits]
    await asyncio.sleep(0.01)
    held.go.set()
    await first
    return list(await asyncio.gather(*rest, return_exceptions=True))


def test_what_waits_is_joined_up_to_the_most() -> None:
    held = Held(max_batch_size=3)

    async def work(b: Batcher) -> list[Any]:
        return await behind_the_first(b, held, *(b.submit(held.job_type, i) for i in (2, 3, 4, 5)))

    assert batched(work) == [4, 6, 8, 10]
    assert held.batches == [[1], [2, 3, 4], [5]]


def test_groups_budgets_and_lengths_keep_apart() -> None:
    held = Held(max_batch_size=8, max_batch_cost=1000)

    async def work(b: Batcher) -> list[Any]:
        group = [b.submit(held.job_type, i, group) for i, group in ((2, "a"), (3, "b"), (4, "a"))]
        long = [b.submit(held.job_type, i, cost=cost) for i, cost in ((5, 200), (6, 900), (7, 250), (8, 600))]
        return await behind_the_first(b, held, *group, *long)

    assert batched(work) == [4, 6, 8, 10, 12, 14, 16]
    assert held.batches == [[1], [2, 4], [5, 7], [6], [3], [8]]


def test_a_full_batch_goes_first_but_not_for_long() -> None:
    for wait, first in ((0.0, [3, 4, 5, 6]), (0.5, [2])):
        held = Held(max_batch_size=4)

        async def work(b: Batcher, held: Held = held, wait: float = wait) -> list[Any]:
            asyncio.get_running_loop().call_later(wait + 0.2, held.go.set)
            return list(
                await asyncio.gather(
                    b.submit(held.job_type, 1),
                    after(0.05, lambda: b.submit(held.job_type, 2, "a")),
                    *(after(0.1 + wait, partial(b.submit, held.job_type, n, "b")) for n in (3, 4, 5, 6)),
                )
            )

        batched(work)
        assert held.batches[:2] == [[1], first]


def test_a_bad_one_fails_alone() -> None:
    held = Held()

    async def work(b: Batcher) -> list[Any]:
        return await behind_the_first(b, held, *(b.submit(held.job_type, i) for i in (2, 13, 4)))

    good, bad, other = batched(work)
    assert (good, other) == (4, 8) and isinstance(bad, UsageError)


def test_what_nobody_waits_for_is_dropped() -> None:
    held = Held()

    async def work(b: Batcher) -> list[Any]:
        async def impatient() -> int:
            async with asyncio.timeout(0):
                return await b.submit(held.job_type, 3)

        return await behind_the_first(b, held, b.submit(held.job_type, 2), impatient())

    done, late = batched(work)
    assert done == 4 and isinstance(late, TimeoutError)
    assert held.batches == [[1], [2]]


def test_once_in_flight_and_while_recent() -> None:
    calls = []

    async def make() -> int:
        calls.append(1)
        await asyncio.sleep(0.01)
        return len(calls)

    async def run() -> None:
        once: RequestCache[int] = RequestCache("test", 2, Metrics())
        assert await asyncio.gather(*(once.get("a", make) for _ in range(5))) == [1] * 5
        assert await once.get("a", make) == 1
        assert [await once.get(key, make) for key in ("b", "c")] == [2, 3]
        assert await once.get("a", make) == 4  # c and b have pushed it out

    asyncio.run(run())


def test_one_who_leaves_does_not_cancel_the_others() -> None:
    async def run() -> None:
        once: RequestCache[int] = RequestCache("test", 2, Metrics())

        async def make() -> int:
            await asyncio.sleep(0.02)
            return 7

        leaves = asyncio.ensure_future(once.get("a", make))
        stays = asyncio.ensure_future(once.get("a", make))
        await asyncio.sleep(0)
        leaves.cancel()
        assert await stays == 7

        async def fail() -> int:
            raise UsageError("no")

        for _ in range(2):  # failures are not kept
            with pytest.raises(UsageError):
                await once.get("b", fail)

    asyncio.run(run())


@pytest.fixture(scope="module")
def client(model: MMGEM) -> Iterator[httpx.Client]:
    with serving(model, recent=0) as (client, _):
        yield client


def together(client: httpx.Client, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """All requests at once."""

    def ask(request: tuple[str, dict[str, Any]]) -> Any:
        reply = client.post(request[0], json=request[1])
        assert reply.status_code == 200, reply.text
        return reply.json()

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


def test_batched_answers_are_the_unbatched_ones(client: httpx.Client, model: MMGEM) -> None:
    texts = [f"the {' '.join(['red dog'] * (1 + n % 5))} on snow {n}" for n in range(16)]
    pictures = [picture(n) for n in range(8)]
    requests = [("/v1/embeddings", {"input": text}) for text in texts]
    requests += [("/v1/embeddings", {"input": [image_part(data)]}) for data in pictures]
    requests += [("/caption", {"image": data_uri(data)}) for data in pictures]
    replies = together(client, requests)
    vectors = np.array([row["data"][0]["embedding"] for row in replies[:24]])
    alone = [model.embed_texts([text])[0] for text in texts] + [model.embed_images([p])[0] for p in pictures]
    assert vectors == pytest.approx(np.array(alone), abs=1e-5)
    captions = [row["captions"][0]["text"] for row in replies[24:]]
    assert captions == [model.caption([data])[0] for data in pictures]


def test_equal_ones_are_computed_once(model: MMGEM) -> None:
    with serving(model) as (client, _):
        replies = together(client, [("/v1/embeddings", {"input": "a red dog"})] * 12)
        assert len({str(row["data"]) for row in replies}) == 1
        assert 'mmgem_batch_items_sum{kind="text"} 1.0' in client.get("/metrics").text


def test_base64_and_numbers_are_the_same_vector(client: httpx.Client) -> None:
    numbers, packed = together(
        client,
        [("/v1/embeddings", {"input": "a dog", "encoding_format": way}) for way in ("float", "base64")],
    )
    unpacked = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert unpacked == pytest.approx(np.array(numbers["data"][0]["embedding"], np.float32))
