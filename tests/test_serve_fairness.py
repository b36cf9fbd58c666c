"""One request cannot stop the others: shares, what is given up, too many tokens, files that are none."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from serving import batched, data_uri, picture, serving
from test_serve_routes import ok, refused
from tiny import save_photos

from mmgem import MMGEM
from mmgem.bulk.collection import Partition, PhotoReader, Span
from mmgem.data.content_hashes import ContentHashes
from mmgem.data.images import open_image
from mmgem.errors import ImageError
from mmgem.inference.captioning import caption_candidates
from mmgem.search.index import update_index
from mmgem.serve.batcher import Batcher, JobType
from mmgem.serve.request_scope import current_request, enter_request
from mmgem.utils.files import open_regular

JSON = {"content-type": "application/json"}


async def as_a_request(work: Awaitable[Any]) -> Any:
    """``work`` in a request of its own."""

    async def run() -> Any:
        enter_request()
        return await work

    return await asyncio.get_running_loop().create_task(run(), context=copy_context())


def test_what_a_request_starts_is_its_own() -> None:
    async def run() -> None:
        async def scope() -> Any:
            return current_request()

        async def two() -> list[Any]:
            return list(await asyncio.gather(scope(), scope()))

        one, other = await as_a_request(two()), await as_a_request(two())
        assert one[0] is one[1] and one[0] is not other[0]

    asyncio.run(run())


def test_a_request_of_many_items_lets_the_others_between() -> None:
    """200 items of 5 ms are a second of work; who asks meanwhile waits for a batch or two."""
    job_type: JobType[int, int] = JobType("slow", lambda items: time.sleep(0.005 * len(items)) or items, 32)

    async def work(batcher: Batcher) -> tuple[float, float]:
        async def many() -> None:
            await asyncio.gather(*(batcher.submit(job_type, n) for n in range(200)))

        began = time.monotonic()
        hostile = asyncio.ensure_future(as_a_request(many()))
        waits = []
        await asyncio.sleep(0.05)
        for n in range(8):
            asked = time.monotonic()
            await as_a_request(batcher.submit(job_type, n))
            waits.append(time.monotonic() - asked)
            await asyncio.sleep(0.01)
        assert not hostile.done()
        await hostile
        return float(np.median(waits)), time.monotonic() - began

    median, whole = batched(work)
    assert median < whole / 4


def test_many_items_get_their_share_beside_others_without_end() -> None:
    job_type: JobType[int, int] = JobType("slow", lambda items: time.sleep(0.004 * len(items)) or items, 4)

    async def work(batcher: Batcher) -> int:
        done = 0

        async def many() -> None:
            nonlocal done
            for result in asyncio.as_completed([batcher.submit(job_type, n) for n in range(400)]):
                await result
                done += 1

        async def ordinary() -> None:
            while True:
                await as_a_request(batcher.submit(job_type, 0))

        tasks = [asyncio.ensure_future(as_a_request(many()))]
        tasks += [asyncio.ensure_future(ordinary()) for _ in range(8)]
        await asyncio.sleep(1.5)
        for task in tasks:
            task.cancel()
        return done

    assert 4 < batched(work) < 200


def test_what_is_given_up_leaves_the_queue_and_ends_between_steps() -> None:
    steps: list[int] = []
    stopped = threading.Event()

    def run(items: list[int], abandoned: Callable[[int], bool]) -> list[int]:
        for step in range(1000):
            if all(abandoned(n) for n in range(len(items))):
                stopped.set()
                break
            steps.append(step)
            time.sleep(0.005)
        return items

    job_type: JobType[int, int] = JobType("long", run, 1, interruptible=True)

    async def work(batcher: Batcher) -> bool:
        async def many() -> None:
            await asyncio.gather(*(batcher.submit(job_type, n) for n in range(50)))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await as_a_request(many())
        return await asyncio.to_thread(stopped.wait, 10)

    assert batched(work)
    time.sleep(0.05)
    assert len(steps) < 100  # none of the other 49 began


def test_a_caption_nobody_waits_for_is_cut() -> None:
    network = toys.network()
    prefixes = torch.randn(2, network.prefix_length, network.cap_token.shape[-1])
    whole = caption_candidates(network, prefixes, -1, max_tokens=6)
    some = caption_candidates(network, prefixes, -1, max_tokens=6, abandoned=lambda image: image == 0)
    assert [len(found[0].ids) for found in whole] == [6, 6] and not whole[0][0].finished
    assert [len(found[0].ids) for found in some] == [1, 6]
    assert some[1][0].ids == whole[1][0].ids


def test_a_long_text_is_several_items_and_the_same_vector(model: MMGEM) -> None:
    text = "the red dog runs on grass . " * 200
    with serving(model, tokens=256) as (client, _):
        reply = ok(client.post("/v1/embeddings", json={"input": [text, "a dog"]}))
        figures = client.get("/metrics").text
    assert np.array([row["embedding"] for row in reply["data"]]) == pytest.approx(
        model.embed_texts([text, "a dog"]), abs=1e-5
    )
    assert float(next(line.split()[1] for line in figures.splitlines() if "items_sum{" in line)) > 4


def test_too_many_tokens_are_refused_with_the_numbers(model: MMGEM) -> None:
    with serving(model, text_tokens=30, request_tokens=100) as (client, _):
        long = client.post("/v1/embeddings", json={"input": "dog " * 31})
        assert refused(long) == (413, "too_many_tokens")
        assert "31 tokens" in long.text and "over the 30" in long.text
        many = client.post("/v1/embeddings", json={"input": ["dog " * 20] * 6})
        assert refused(many) == (413, "too_many_tokens")
        assert "120 tokens" in many.text and "over the 100" in many.text
        assert client.post("/v1/embeddings", json={"input": ["dog " * 20] * 5}).status_code == 200


def test_lists_without_end_are_refused_before_they_are_read(model: MMGEM) -> None:
    with serving(model) as (client, _):
        began = time.monotonic()
        reply = client.post(
            "/v1/embeddings", content=b'{"input": ["a"%b]}' % (b',"a"' * 1_000_001), headers=JSON
        )
        assert refused(reply) == (413, "too_large") and time.monotonic() - began < 20
        names = [f"thing {n}" for n in range(70)]
        shares = client.post("/classify", json={"image": data_uri(picture()), "classes": names, "top": 70})
        assert len(ok(shares)["guesses"]) == 70
        long = client.post("/classify", json={"image": data_uri(picture()), "classes": ["a", "b" * 1001]})
        assert refused(long) == (422, "invalid_value")


def test_a_pipe_in_the_index_stops_nobody(model: MMGEM, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 6)
    update_index(tmp_path / "idx", tmp_path / "photos", lambda: model, model.fingerprint)
    with serving(model, tmp_path / "idx", seconds=5) as (client, _):
        photos = ok(client.get("/photos"))["photos"]
        for photo in photos[:4]:
            (tmp_path / "photos" / photo["name"]).unlink()
            os.mkfifo(tmp_path / "photos" / photo["name"])
        for photo in photos[:4]:
            for path in (f"/photos/{photo['id']}", f"/photos/{photo['id']}/thumb"):
                assert refused(client.get(path)) == (404, "not_found")
        assert client.get(f"/photos/{photos[4]['id']}/thumb").status_code == 200


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path, reason in ((pipe, "not a regular file"), (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(OSError, match=reason):
            open_regular(path)
        with pytest.raises(ImageError, match=reason):
            open_image(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    assert ContentHashes(tmp_path / "hashes.json").identities([pipe]) == [["pipe.jpg", -1, ""]]
    (photo,) = PhotoReader(tmp_path).photos(Partition(0, 0, [Span("pipe.jpg", 0, 0)]))
    assert str(photo.error) == "not a regular file"
    (tmp_path / "file").write_bytes(b"data")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"data"
