"""Requests a second of ``mmgem serve`` with batching on against the same server with batching off.

    python benchmarks/serve.py [--model tiny] [--photos FOLDER] [--mix searches=5,texts=3,images=1,captions=1]
        [--precision float32] [--seconds 60] [--warm 10] [--alone 20] [--clients 64] [--rounds 1] [--quick]

Both servers run in turn in one run, on and off once a round, with every other setting equal:
``--limit batch=1`` is the only difference. 64 clients ask without pause, each over a connection of its own.
Every input is a different one (texts are numbered, photos are changed by a pixel, so nothing is answered from
memory), and memory for recent embeddings is off as well. Kinds: ``texts`` (POST /v1/embeddings of a text),
``searches`` (POST /search by a text), ``images`` (POST /v1/embeddings of a JPEG), ``captions`` (POST /caption
of a JPEG). First all in turns that keep to the mix, then each kind alone for ``--alone`` seconds: no kind
hides behind another. Prints requests, requests a second, CPU time a request (steadier where others use the
machine), both ratios for the mix and for each kind, p50 and p95 a kind, status codes, and resident memory at
the start, after the warm-up, every minute and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from memory import resident
from PIL import Image

WORDS = (  # noqa: SIM905
    "a the two three young old small big red blue green black white dog dogs cat man men woman women "
    "child children boy girl horse bike ball boat car street beach snow water grass field park tree house "
    "runs jumps plays sits stands rides walks swims climbs throws catches holds on in with near under over"
).split()
# Inputs made ahead for each second of a kind, more than a server answers; --rate for faster ones.
AHEAD = {"texts": 400, "searches": 400, "images": 60, "captions": 60}
Request = tuple[str, str, bytes]
Told = tuple[float, str, int, float]  # when, kind, status, seconds


class Inputs:
    """Requests that never repeat."""

    def __init__(self, mix: dict[str, int], photos: list[np.ndarray], seed: int) -> None:
        self._rng = random.Random(seed)
        self._photos, self._count = photos, itertools.count()
        self._deck = [kind for kind, share in mix.items() for _ in range(share)]
        self._hand: list[str] = []

    def enough(self, seconds: float, rate: float) -> list[Request]:
        """Requests for so long."""
        each = sum(1 / AHEAD[kind] for kind in self._deck) / len(self._deck)
        return [self.next() for _ in range(int(rate * seconds / each))]

    def next(self) -> Request:
        """(kind, path, body) of another request."""
        if not self._hand:
            self._hand = self._rng.sample(self._deck, len(self._deck))
        kind = self._hand.pop()
        if kind == "texts":
            return kind, "/v1/embeddings", _json({"input": self._text(), "encoding_format": "base64"})
        if kind == "searches":
            return kind, "/search", _json({"text": self._text(), "k": 10})
        part = {"type": "image_url", "image_url": {"url": self._photo()}}
        if kind == "images":
            return kind, "/v1/embeddings", _json({"input": [part], "encoding_format": "base64"})
        return kind, "/caption", _json({"image": part["image_url"]["url"]})  # type: ignore[index]

    def _text(self) -> str:
        words = " ".join(self._rng.choices(WORDS, k=self._rng.randint(5, 12)))
        return f"{words} {next(self._count)}"

    def _photo(self) -> str:
        pixels = self._rng.choice(self._photos).copy()
        pixels[:2, :2] = np.frombuffer(self._rng.randbytes(12), np.uint8).reshape(2, 2, 3)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def server(idx: Path, batch: int, precision: str, deadline: float = 120) -> Iterator[tuple[int, int]]:
    """A server that joins up to ``batch``: its port and process number."""
    command = [sys.executable, "-m", "mmgem", "serve", str(idx), "--port", "0", "--precision", precision]
    limits = ["--limit", f"batch={batch}", "--limit", "recent=0", "--limit", f"seconds={deadline}"]
    process = subprocess.Popen(
        [*command, *limits], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        base = process.stdout.readline().strip()
        assert base, "the server did not start"
        yield int(base.rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait(30)


async def client(port: int, inputs: list[Request], ends: float, told: list[Told]) -> None:
    """Ask one after the other until ``ends``; tells (when, kind, status, seconds)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < ends and inputs:
        kind, path, body = inputs.pop()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(fields[b"content-length"]))
        told.append((time.perf_counter(), kind, int(answer.split()[1]), time.perf_counter() - began))
    writer.close()


@dataclass
class Load:
    """What a server did: requests a second, its CPU time a request in seconds, what clients were told, its
    memory in MB at the start, after the warm-up, every minute and at the end."""

    rate: float
    cpu: float
    told: list[Told]
    memory: list[float]


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, inputs: list[Request], clients: int, warm: float, seconds: float) -> Load:
    """Load the server, and measure for ``seconds`` from the end of the warm-up on."""
    told: list[Told] = []
    memory = [resident(pid) / 1e6]

    async def watch() -> None:
        while True:
            await asyncio.sleep(60)
            memory.append(resident(pid) / 1e6)

    starts = time.perf_counter() + warm
    ends = starts + seconds
    asking = asyncio.gather(*(client(port, inputs, ends, told) for _ in range(clients)))
    await asyncio.sleep(warm)
    memory.append(resident(pid) / 1e6)
    watching = asyncio.create_task(watch())
    before = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    spent = cpu_seconds(pid) - before
    await asking
    watching.cancel()
    memory.append(resident(pid) / 1e6)
    assert inputs, "ran out of inputs: raise --rate"
    counted = [row for row in told if starts <= row[0] < ends]
    return Load(len(counted) / seconds, spent / max(1, len(counted)), counted, memory)


def side(
    idx: Path,
    batch: int,
    mix: dict[str, int],
    photos: list[np.ndarray],
    seed: int,
    options: argparse.Namespace,
) -> list[Load]:
    """What a server does with the mix, and with each of its kinds alone."""
    parts = [(mix, options.warm, options.seconds), *(({kind: 1}, 3.0, options.alone) for kind in mix)]
    loads = []
    with server(idx, batch, options.precision) as (port, pid):
        for kinds, warm, seconds in parts[: 1 if not options.alone else None]:
            made = Inputs(kinds, photos, seed).enough(warm + seconds, options.rate)  # before the clock starts
            loads.append(asyncio.run(load(port, pid, made, options.clients, warm, seconds)))
    return loads


def show(name: str, found: Load) -> None:
    statuses = dict(Counter(row[2] for row in found.told))
    print(
        f"{name:13} {len(found.told)} requests, {found.rate:.1f} a second, "
        f"{1e3 * found.cpu:.1f} ms CPU each, statuses {statuses}"
    )
    print(f"{'':13} resident {', '.join(f'{mb:.0f}' for mb in found.memory)} MB: start, warm, ..., end")
    kinds = defaultdict(list)
    for _, kind, _, seconds in found.told:
        kinds[kind].append(1e3 * seconds)
    for kind, taken in sorted(kinds.items()):
        p50, p95 = np.percentile(taken, [50, 95])
        print(f"{'':13} {kind:9} {len(taken):6}   p50 {p50:7.0f} ms   p95 {p95:7.0f} ms", flush=True)


def build(folder: Path, options: argparse.Namespace) -> list[np.ndarray]:
    """Index photos, and give their pixels."""
    source = folder / "photos"
    source.mkdir()
    paths = sorted(options.photos.glob("*.jpg"))[: options.indexed] if options.photos else []
    for path in paths:
        (source / path.name).symlink_to(path.resolve())
    rng = np.random.default_rng(0)
    for n in range(0 if paths else options.indexed):  # smooth random pictures of a photo's size
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(source / f"{n}.jpg", quality=88)
    made = ["index", str(source), "--out", str(folder / "idx"), "--model", options.model]
    subprocess.run([sys.executable, "-m", "mmgem", *made], check=True, stdout=subprocess.DEVNULL)
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(source.iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a model folder or a packaged name")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; random pictures if not given")
    parser.add_argument("--indexed", type=int, default=64, help="photos in the index")
    parser.add_argument("--mix", default="searches=5,texts=3,images=1,captions=1")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm", type=float, default=10)
    parser.add_argument("--alone", type=float, default=20, help="seconds of each kind alone; 0: none")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1, help="prepare so many times the usual inputs")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warm, options.alone, options.indexed = 8, 4, 0, 16
    mix = {kind: int(share) for kind, _, share in (part.partition("=") for part in options.mix.split(","))}
    with tempfile.TemporaryDirectory() as place:
        photos = build(Path(place), options)
        rounds: dict[str, list[list[Load]]] = {"batching on": [], "batching off": []}
        for turn in range(options.rounds):
            for name, batch in (("batching on", options.batch), ("batching off", 1)):
                seed = 2 * turn + (batch == 1)
                rounds[name].append(side(Path(place, "idx"), batch, mix, photos, seed, options))
                show(name, rounds[name][-1][0])
        print(f"{options.clients} clients, {options.precision}, {options.seconds:g} s of the mix each:")
        for n, what in enumerate([options.mix, *mix][: len(rounds["batching on"][0])]):
            on, off = (float(np.median([one[n].rate for one in found])) for found in rounds.values())
            less, more = (float(np.median([one[n].cpu for one in found])) for found in rounds.values())
            print(
                f"{what if n == 0 else what + ' alone'}: {on:.1f} against {off:.1f} requests/s, "
                f"{on / off:.2f}x; {more / less:.2f}x the requests a CPU second"
            )


if __name__ == "__main__":
    main()
