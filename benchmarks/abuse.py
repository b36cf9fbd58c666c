"""A server under attack: it never answers 500, never shows a file outside its index, and lives on.

    python benchmarks/abuse.py [--model tiny] [--images 200] [--examples 50] [--seed 0] [--quick]

Starts ``mmgem serve`` with a token over an index of random pictures, a secret file beside them, and sends it:
requests generated from its OpenAPI document (schemathesis); hostile photos (bombs, truncated, flipped bits,
other types, huge dimensions, polyglots); bodies too large; senders and readers too slow; paths that lead out;
requests without the token. Prints the status codes of each part, and what must not be: 500s, leaks. The exit
code is 1 if there was any.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
from memory import resident
from PIL import Image

TOKEN, SECRET = "token-of-the-bench", "the-secret-beside-the-photos"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = ("body_mb=8", "body_seconds=4", "reader_seconds=4", "seconds=20", "connections=400")
Told = Counter[str]


def picture(rng: random.Random, kind: str, size: tuple[int, int] = (160, 120)) -> bytes:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@contextmanager
def server(options: argparse.Namespace) -> Iterator[tuple[httpx.Client, subprocess.Popen[str], Path]]:
    """A running server, its process and the folder it lives in."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        for n in range(6):
            (folder / "photos" / f"{n}.png").write_bytes(picture(rng, "PNG"))
        (folder / "secret.txt").write_text(SECRET)
        (folder / "token").write_text(TOKEN)
        mmgem = [sys.executable, "-m", "mmgem"]
        made = [
            "index",
            place + "/photos",
            "--out",
            place + "/idx",
            "--regions",
            "2",
            "--model",
            options.model,
        ]
        subprocess.run([*mmgem, *made], check=True, stdout=subprocess.DEVNULL)
        limits = [word for limit in LIMITS for word in ("--limit", limit)]
        serve = ["serve", place + "/idx", "--port", "0", "--token-file", place + "/token", *limits]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*mmgem, *serve], stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            base = process.stdout.readline().strip()
            assert base, (folder / "log").read_text()
            with httpx.Client(base_url=base, headers=AUTH, timeout=60, trust_env=False) as client:
                yield client, process, folder
        finally:
            process.terminate()
            process.wait(30)


# Photos nobody should send.


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data)) if data else b""
    return b"\x89PNG\r\n\x1a\n" + head + extra + body + chunk(b"IEND", b"")


def bomb(rng: random.Random) -> bytes:
    size = rng.choice([9_000, 30_000, 65_535, 2**31 - 1])
    made: list[Callable[[], bytes]] = [
        lambda: png(size, size, bytes(1 << 22)),
        lambda: png(7_000, 7_000, bytes(4 * 7_000 * 7_000 // 8)),  # below the limit, but unfinished
        lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\xf7\x00\x00" + bytes(800),
        lambda: (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        lambda: b"P6 99999 99999 255\n",
        lambda: (
            b"II*\x00\x08\x00\x00\x00"
            + struct.pack("<H", 1)
            + struct.pack("<HHII", 256, 4, 1, 2**31)
            + b"\x08\x00\x00\x00"
        ),
        lambda: picture(rng, "JPEG")[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 5_000 + b"\xff\xd9",
    ]
    return rng.choice(made)()


def truncated(rng: random.Random) -> bytes:
    data = picture(rng, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]))
    return data[: rng.randrange(len(data))]


def flipped(rng: random.Random) -> bytes:
    data = bytearray(picture(rng, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])))
    for _ in range(rng.randrange(1, 200)):
        data[rng.randrange(min(len(data), rng.choice([64, 1 << 20])))] = rng.randrange(256)
    return bytes(data)


def other_type(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file\n",
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            b"%PDF-1.7\n" + rng.randbytes(500),
            b"PK\x03\x04" + rng.randbytes(500),
            b"\x1f\x8b\x08" + zlib.compress(bytes(1 << 20)),
            b"<html><script>alert(1)</script></html>",
            b"\x7fELF" + rng.randbytes(500),
            b"8BPS" + rng.randbytes(500),
            b"\x00\x00\x01\x00" + rng.randbytes(500),
            rng.randbytes(rng.randrange(1, 5_000)),
            b"",
        ]
    )


def polyglot(rng: random.Random) -> bytes:
    tail = rng.choice([b"<script>alert(1)</script>", b"PK\x03\x04" + rng.randbytes(300), b"%PDF-1.7"])
    return picture(rng, rng.choice(["PNG", "JPEG", "GIF", "BMP"])) + tail


def odd(rng: random.Random) -> bytes:
    """Valid, but of a strange shape."""
    width, height = rng.choice([(1, 1), (1, 5_000), (5_000, 1), (3, 7)])
    return picture(rng, rng.choice(["PNG", "JPEG", "WEBP"]), (width, height))


def hostile_photos(client: httpx.Client, options: argparse.Namespace) -> Told:
    rng, told = random.Random(options.seed), Told()
    kinds = [bomb, truncated, flipped, other_type, polyglot, odd]
    for n in range(options.images):
        data = kinds[n % len(kinds)](rng)
        uri = f"data:image/{rng.choice(['png', 'jpeg', 'svg+xml'])};base64,{base64.b64encode(data).decode()}"
        part = {"type": "image_url", "image_url": {"url": uri}}
        way = rng.randrange(6)
        if way == 0:
            reply = client.post("/search", files={"image": ("../../x.png", data, "image/png")})
        elif way == 1:
            reply = client.post("/search", json={"image": uri, "regions": True, "box": [0, 0, 50, 50]})
        elif way == 2:
            reply = client.post("/regions", files={"image": data}, data={"count": "2"})
        elif way == 3:
            reply = client.post("/classify", json={"image": uri, "classes": ["a", "b"]})
        elif way == 4:
            reply = client.post("/v1/embeddings", json={"input": [part]})
        else:
            reply = client.post("/heatmap", json={"image": uri, "text": "a dog", "format": "png"})
        told[str(reply.status_code)] += 1
    return told


# Bodies.


def large_bodies(client: httpx.Client, options: argparse.Namespace) -> Told:
    told, as_json = Told(), {"content-type": "application/json"}
    big = 20_000_000
    bodies = [
        lambda: client.post("/search", content=b" " * big, headers=as_json),
        lambda: client.post("/search", content=(b" " * 100_000 for _ in range(200)), headers=as_json),
        lambda: client.post("/search", content=b'{"a":' * 100_000, headers=as_json),
        lambda: client.post("/search", content=b"[" * 5_000_000, headers=as_json),
        lambda: client.post("/search", content=b'{"k":' + b"9" * 4_000_000 + b"}", headers=as_json),
        lambda: client.post("/search", content=b'{"text":"a","k":1e999}', headers=as_json),
        lambda: client.post("/search", content=b'{"text":"\\ud800"}', headers=as_json),
        lambda: client.post("/search", content=b'{"image":"a","box":[NaN,0,1,1]}', headers=as_json),
        lambda: client.post("/search", data={str(n): "x" for n in range(5_000)}, files={"image": b"x"}),
        lambda: client.post("/search", files=[("image", b"x")] * 500),
        lambda: client.post("/search", files={"image": b"x" * 7_000_000}),
        lambda: client.post("/search", content=b"x", headers={"content-type": "multipart/form-data"}),
        lambda: client.post("/search", content=b"--", headers={"content-type": "multipart/form-data; a=-"}),
        lambda: client.post("/v1/embeddings", json={"input": ["a" * 20_000] * 256}),
        lambda: client.post("/v1/embeddings", json={"input": [[1, 2, 3]]}),
        lambda: client.get("/photos?offset=99999999999999999999999&limit=1"),
        lambda: client.get("/photos?limit=" + "9" * 5_000),
        lambda: client.get("/info", headers={"x": "y" * 100_000}),
    ]
    for send in bodies:
        try:
            told[str(send().status_code)] += 1
        except httpx.HTTPError as error:
            told[type(error).__name__] += 1  # cut off while it was still sending
    return told


def slow_clients(client: httpx.Client, options: argparse.Namespace) -> Told:
    """Slow ones of three kinds hold connections open while others are answered."""
    told = Told()
    address = (client.base_url.host, client.base_url.port)
    photo = client.get("/photos").json()["photos"][0]["id"]
    head = f"HTTP/1.1\r\nHost: x\r\n{_shown()}"
    starts = [
        b"GET /photos HTTP/1.1\r\nHost: ",
        f"POST /search {head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n".encode(),
        f"GET /photos/{photo} {head}\r\n".encode() * 2_000,
    ]
    each = 10 if options.quick else 60
    slow = []
    for start in starts * each:
        one = socket.create_connection(address, 10)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        with suppress(OSError):
            one.send(start)
        slow.append(one)
    slowest = 0.0
    for n in range(20):
        began = time.perf_counter()
        told[f"others {client.post('/search', json={'text': f'a dog {n}'}).status_code}"] += 1
        slowest = max(slowest, time.perf_counter() - began)
        for one in slow[n::7]:
            with suppress(OSError):
                one.send(b"x")
    print(f"  slowest answer to others {slowest:.2f} s")
    ends = time.monotonic() + 30
    while slow and time.monotonic() < ends:
        slow = [one for one in slow if not _ended(one)]
        time.sleep(0.5)
    told |= {"cut off": 3 * each - len(slow), "still open": len(slow)}
    return told


def _ended(one: socket.socket) -> bool:
    """Whether the server has closed a connection; finds out without reading from it."""
    with suppress(BlockingIOError):
        try:
            one.send(b"x")
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            one.close()
            return True
    return False


def paths_out(client: httpx.Client, options: argparse.Namespace) -> Told:
    told = Told()
    stem = ["secret.txt", "photos/0.png", "idx/photos.sqlite3", "etc/passwd", "proc/self/environ"]
    ups = [
        "../",
        "..%2f",
        "%2e%2e/",
        "..%5c",
        "....//",
        "%252e%252e%252f",
        "..%c0%af",
        "\\..\\",
        "//",
        "%00/",
    ]
    for root in ("/static/", "/photos/", "/", "/v1/models/"):
        for up in ups:
            for name in stem:
                with socket.create_connection((client.base_url.host, client.base_url.port), 10) as raw:
                    line = f"GET {root}{up * 4}{name} HTTP/1.1\r\n"
                    raw.sendall(f"{line}Host: x\r\n{_shown()}Connection: close\r\n\r\n".encode())
                    reply = b"".join(iter(lambda raw=raw: raw.recv(1 << 16), b""))  # type: ignore[misc]
                told[reply.split()[1].decode() if reply else "cut off"] += 1
                told["LEAK"] += SECRET.encode() in reply or b"root:" in reply or b"SQLite" in reply
    return told


def _shown() -> str:
    return f"Authorization: Bearer {TOKEN}\r\n"


def tokens(client: httpx.Client, options: argparse.Namespace) -> Told:
    told = Told()
    wrong = [
        "",
        "Bearer",
        "Bearer  x",
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
    ]
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            for shown in wrong:
                url = path.replace("{photo}", "0" * 16).replace("{model}", "tiny")
                bare = httpx.request(method, f"{client.base_url}{url}", headers={"Authorization": shown})
                if path not in ("/healthz", "/readyz"):
                    told[str(bare.status_code)] += 1
                    told["LEAK"] += bare.status_code != 401
    return told


def generated(client: httpx.Client, options: argparse.Namespace) -> Told:
    """schemathesis: requests made from the OpenAPI document, valid and not."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--checks", checks, "--no-color"]
    command += [
        "--max-examples",
        str(options.examples),
        "--seed",
        str(options.seed),
        "--phases",
        "coverage,fuzzing",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    shown = done.stdout.strip().splitlines()
    print("  " + "\n  ".join(shown[-14:] if done.returncode == 0 else shown))
    cases = re.search(r"([\d,]+) generated", done.stdout)
    return Told(
        {"cases": int(cases[1].replace(",", "")) if cases else 0, "FAILED": int(done.returncode != 0)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a model folder or a packaged name")
    parser.add_argument("--images", type=int, default=200, help="hostile photos")
    parser.add_argument("--examples", type=int, default=50, help="generated requests a route")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a little of each, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.examples = 24, 2
    bad = 0
    with server(options) as (client, process, folder):
        print(f"resident at start {resident(process.pid) / 1e6:.0f} MB")
        for part in (hostile_photos, large_bodies, slow_clients, paths_out, tokens, generated):
            began = time.perf_counter()
            told = part(client, options)
            bad += sum(told[name] for name in ("500", "LEAK", "FAILED", "still open")) + told["others 500"]
            counts = ", ".join(f"{name}: {count}" for name, count in sorted(told.items()) if count)
            print(
                f"{part.__name__.replace('_', ' '):16} {time.perf_counter() - began:6.1f} s   {counts}",
                flush=True,
            )
            assert process.poll() is None, "the server is dead"
        alive = client.post("/search", json={"text": "a dog"})
        bad += alive.status_code != 200
        figures = client.get("/metrics").text
        bad += len(re.findall(r'mmgem_requests_total\{.*status="500"\}', figures))
        bad += "Traceback" in (folder / "log").read_text()
        megabytes = resident(process.pid) / 1e6
        print(f"alive afterwards: {alive.status_code}, resident {megabytes:.0f} MB, wrong: {bad}")
        if bad:
            print((folder / "log").read_text()[-5000:])
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
