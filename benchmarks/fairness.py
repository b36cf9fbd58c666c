"""What one kind of client does to the others: hostile long requests beside 64 ordinary clients.

    python benchmarks/fairness.py [--model tiny] [--clients 64] [--seconds 30] [--hostile 4] [--requests 500]
        [--quick]

First the ordinary clients alone (searches by words, each another, without pause), then beside ``--hostile``
clients that send without pause what costs most: texts of thousands of emoji, lists of long texts and of
token ids, a thousand classes, reranks and many hits, boxes and captions of many photos in one chat, many
beams. Every second one they give up after two seconds. Prints p50 and p95 of the ordinary ones in both,
their ratio, and the status codes. Then ``--requests`` hostile requests as fast as they go, by 16 clients:
their status codes, and those of an ordinary client beside them. The exit code is 1 if there was a 500, or
if the p95 more than doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from serve import Inputs, build, client, server

KINDS = 13  # of hostile requests
Told = list[tuple[float, str, int, float]]


def hostile(photos: list[np.ndarray], seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, body) of requests without end, each of its own content."""
    rng = random.Random(seed)
    files = [_jpeg(pixels) for pixels in photos[:8]]

    def photo() -> str:
        # Behind the end of a JPEG anything may stand: another file, the same work.
        data = rng.choice(files) + rng.randbytes(8)
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    def part() -> dict[str, object]:
        return {"type": "image_url", "image_url": {"url": photo()}}

    for n in itertools.count():
        emoji = "".join(chr(rng.randint(0x1F300, 0x1F64F)) for _ in range(6000))
        words = " ".join(rng.choices("dog cat snow runs red ball".split(), k=2500))  # noqa: SIM905
        kinds: list[tuple[str, object]] = [
            ("/search", {"text": emoji}),
            ("/search", {"text": emoji[:2500], "k": 200}),
            ("/v1/embeddings", {"input": [f"{words} {n} {i}" for i in range(50)]}),
            ("/v1/embeddings", {"input": [f"{words[:2000]} {n} {i}" for i in range(256)]}),
            ("/v1/embeddings", {"input": [[rng.randint(0, 5000) for _ in range(4000)] for _ in range(8)]}),
            ("/v1/embeddings", {"input": ["a"] * 100_000}),
            ("/classify", {"image": photo(), "classes": [f"{n} thing {i}" for i in range(1000)]}),
            ("/search", {"text": f"a dog {n} " + words[:500], "k": 200, "rerank": True}),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": [part() for _ in range(64)]}]},
            ),
            ("/caption", {"image": photo(), "beams": 8, "boxes": _boxes(rng)}),
            ("/heatmap", {"image": photo(), "text": words, "cells": 64}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": words}] * 256}),
            ("/corpus/ask", {"query": words}),
        ]
        assert len(kinds) == KINDS
        path, body = kinds[n % KINDS]
        yield path, json.dumps(body).encode()


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def _boxes(rng: random.Random) -> list[list[float]]:
    return [[x, y, x + 60, y + 60] for x, y in ((rng.random() * 99, rng.random() * 99) for _ in range(64))]


async def attack(port: int, requests: Iterator[tuple[str, bytes]], ends: float, codes: Counter[str]) -> None:
    """Send one after the other until ``ends``; every second one is given up after two seconds."""
    for n in itertools.count():
        if time.perf_counter() >= ends:
            return
        try:
            path, body = next(requests)
        except StopIteration:
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += "Connection: close\r\n"
        try:
            async with asyncio.timeout(2 if n % 2 else 60):
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = await reader.readuntil(b"\r\n")
            codes[answer.split()[1].decode()] += 1
        except TimeoutError:
            codes["given up"] += 1
        except (OSError, asyncio.IncompleteReadError):
            codes["cut off"] += 1
        writer.close()


async def ordinary(port: int, photos: list[np.ndarray], options: argparse.Namespace, seed: int) -> Told:
    """What the ordinary clients were told within ``--seconds``."""
    told: Told = []
    inputs = Inputs({"searches": 1}, photos, seed).enough(options.seconds + 10, 1)
    ends = time.perf_counter() + options.seconds
    await asyncio.gather(*(client(port, inputs, ends, told) for _ in range(options.clients)))
    return told


def show(name: str, told: Told) -> float:
    """Print a line, and give the p95 in milliseconds."""
    p50, p95 = (1000 * float(np.percentile([row[3] for row in told], q)) for q in (50, 95))
    print(
        f"{name:28} {len(told):6} answers   p50 {p50:7.0f} ms   p95 {p95:7.0f} ms   "
        f"{dict(Counter(row[2] for row in told))}",
        flush=True,
    )
    return p95


async def measure(port: int, photos: list[np.ndarray], options: argparse.Namespace) -> bool:
    """All of it; whether it went well."""
    await ordinary(port, photos, argparse.Namespace(**{**vars(options), "seconds": 3}), 1)
    alone = show("ordinary clients alone", await ordinary(port, photos, options, 2))
    codes: Counter[str] = Counter()
    # Made before, for the clients here share a thread.
    made = [list(itertools.islice(hostile(photos, seed), 2 * KINDS)) for seed in range(options.hostile)]
    ends = time.perf_counter() + options.seconds + 1
    attacking = asyncio.gather(*(attack(port, itertools.cycle(one), ends, codes) for one in made))
    await asyncio.sleep(1)
    beside = show(f"beside {options.hostile} hostile ones", await ordinary(port, photos, options, 3))
    print(f"p95 {beside / alone:.2f} times as long; the hostile ones were told {dict(codes)}", flush=True)
    await attacking
    if not options.requests:
        return beside <= 2 * alone
    codes.clear()
    requests = iter(list(itertools.islice(hostile(photos, 99), options.requests)))
    one = Inputs({"searches": 1}, photos, 4).enough(3, 1)
    told: Told = []
    asking = asyncio.create_task(client(port, one, float("inf"), told))
    began = time.perf_counter()
    await asyncio.gather(*(attack(port, requests, float("inf"), codes) for _ in range(16)))
    print(f"{options.requests} hostile requests in {time.perf_counter() - began:.0f} s: {dict(codes)}")
    asking.cancel()
    show("one ordinary client beside", told)
    figures = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    faults = re.findall(r'mmgem_requests_total\{.*status="500"\}', figures)
    print(f"by the server's own count: {len(faults)} routes with a 500")
    return not codes["500"] and not faults and {row[2] for row in told} == {200} and beside <= 2 * alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a model folder or a packaged name")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; random pictures if not given")
    parser.add_argument("--indexed", type=int, default=64, help="photos in the index")
    parser.add_argument("--clients", type=int, default=64, help="ordinary ones")
    parser.add_argument("--hostile", type=int, default=4, help="hostile ones beside them")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--deadline", type=float, default=30, help="of the server, in seconds")
    parser.add_argument("--requests", type=int, default=500, help="hostile ones in the second part")
    parser.add_argument("--quick", action="store_true", help="a little of each, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.requests, options.indexed = 6, 26, 16
    with tempfile.TemporaryDirectory() as place:
        photos = build(Path(place), options)
        with server(Path(place, "idx"), 32, "float32", options.deadline) as (port, _):
            well = asyncio.run(measure(port, photos, options))
    sys.exit(not well)


if __name__ == "__main__":
    main()
