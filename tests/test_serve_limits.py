"""Who is let in, how much, how many and how long."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from PIL import Image
from serving import data_uri, image_part, picture, serving
from test_serve_routes import refused

from mmgem import MMGEM
from mmgem.cli.main import main
from mmgem.errors import UsageError
from mmgem.serve.errors import APIError
from mmgem.serve.remote import public_address
from mmgem.serve.server import listen


@pytest.fixture(scope="module")
def client(model: MMGEM) -> Iterator[httpx.Client]:
    """A server that is quick to lose patience."""
    small = {"body_mb": 0.1, "bodies_mb": 0.5, "body_seconds": 1.0, "megapixels": 0.1, "reader_seconds": 1.0}
    with serving(model, local=True, connections=20, **small) as (client, _):
        yield client


def active(client: httpx.Client) -> float:
    """Requests in work."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("mmgem_active_requests "))


def address(client: httpx.Client) -> tuple[str, int]:
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


def test_only_the_token_opens(model: MMGEM) -> None:
    with serving(model, token="secret") as (client, _):
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for path in ("/info", "/metrics", "/docs", "/openapi.json", "/photos", "/static"):
                assert refused(client.get(path, headers=shown)) == (401, "invalid_api_key")
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/info", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_pages_of_other_sites_may_not_ask(client: httpx.Client, model: MMGEM) -> None:
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert refused(client.get("/info", headers=foreign)) == (403, "forbidden_origin")
    assert refused(client.get("/info", headers={"Host": "evil.example"})) == (403, "forbidden_host")
    with serving(model, origins=["https://good.example"]) as (open_client, _):
        reply = open_client.get("/info", headers=foreign | {"Origin": "https://good.example"})
        assert reply.headers["access-control-allow-origin"] == "https://good.example"
        assert refused(open_client.get("/info", headers=foreign)) == (403, "forbidden_origin")


def test_too_much_of_anything(client: httpx.Client) -> None:
    as_json = {"content-type": "application/json"}
    assert refused(client.post("/search", content=b" " * 200_000, headers=as_json)) == (413, "too_large")
    chunks = (b" " * 20_000 for _ in range(10))
    assert refused(client.post("/search", content=chunks, headers=as_json)) == (413, "too_large")
    wide = picture(size=(400, 300))
    assert refused(client.post("/caption", files={"image": wide})) == (413, "too_many_pixels")
    assert refused(client.post("/caption", files={"image": picture()}, data={"photo": "0" * 16}))[0] == 422
    assert refused(client.post("/v1/embeddings", json={"input": ["a"] * 257}))[0] == 422
    assert refused(client.post("/v1/embeddings", json={"input": "a" * 20_001}))[0] == 422


def test_bombs_are_seen_before_they_go_off(client: httpx.Client) -> None:
    head = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", b"\x00\x00\xea\x60" * 2 + b"\x08\x06\x00\x00\x00"),
        (b"IDAT", zlib.compress(bytes(99_999))),
    ):
        head += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    assert refused(client.post("/caption", files={"image": head}))[0] in (413, 422)
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG", progressive=True)
    scans = out.getvalue()[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300 + b"\xff\xd9"
    assert refused(client.post("/caption", files={"image": scans})) == (422, "bad_image")


def test_busy_is_said_and_when_to_come_again(model: MMGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model, queue=2, seconds=20) as (client, _):
        go = threading.Event()
        monkeypatch.setattr(model, "batch", _Blocking(go))
        with ThreadPoolExecutor(3) as pool:
            bodies = [{"input": f"dog {n}"} for n in range(3)]
            replies = [pool.submit(client.post, "/v1/embeddings", json=body) for body in bodies]
            while not any(reply.done() for reply in replies):
                time.sleep(0.01)
            assert client.get("/healthz").status_code == 200  # never busy
            go.set()
            results = [reply.result() for reply in replies]
    busy = [reply for reply in results if reply.status_code == 429]
    assert len(busy) == 1 and refused(busy[0]) == (429, "queue_full")
    assert int(busy[0].headers["retry-after"]) >= 1


def test_nobody_waits_beyond_the_deadline(model: MMGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model, seconds=2) as (client, _):
        go = threading.Event()
        monkeypatch.setattr(model, "batch", _Blocking(go))
        began = time.monotonic()
        assert refused(client.post("/v1/embeddings", json={"input": "dog"})) == (504, "deadline")
        assert time.monotonic() - began < 5
        go.set()
        monkeypatch.undo()
        assert client.post("/v1/embeddings", json={"input": "cat"}).status_code == 200


def test_slow_senders_and_readers_are_cut_off(client: httpx.Client) -> None:
    with (
        socket.create_connection(address(client), 10) as head,
        socket.create_connection(address(client), 10) as body,
    ):
        head.sendall(b"POST /search HTTP/1.1\r\nHost: local")
        start = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        body.sendall(start + b"Content-Length: 100\r\n\r\n{")
        assert head.recv(1000) == b""
        assert body.recv(1000).startswith(b"HTTP/1.1 408")
    with socket.create_connection(address(client), 10) as endless:
        endless.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(OSError):
            for _ in range(10_000):
                endless.sendall(b"X: " + b"y" * 10_000 + b"\r\n")
    assert client.get("/healthz").status_code == 200


def test_who_reads_nothing_is_cut_off(model: MMGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen_small(host: str, port: int) -> socket.socket:
        sock = listen(host, port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the kernel takes little for its reader
        return sock

    monkeypatch.setattr("serving.listen", listen_small)
    with serving(model, reader_seconds=0.5, connections=2) as (client, _):
        whole = len(client.get("/docs").content)
        assert whole > 20_000
        for keep in ("close", "keep-alive"):
            with socket.socket() as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                reader.connect(address(client))
                reader.sendall(f"GET /docs HTTP/1.1\r\nHost: x\r\nConnection: {keep}\r\n\r\n".encode())
                time.sleep(2)
                with suppress(ConnectionResetError):
                    assert len(b"".join(iter(lambda: reader.recv(65536), b""))) < whole
        assert client.get("/healthz").status_code == 200


def test_what_a_client_that_left_waited_for_is_dropped(model: MMGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model) as (client, _):
        go = threading.Event()
        batch = _Blocking(go)
        monkeypatch.setattr(model, "batch", batch)
        photo = json.dumps({"role": "user", "content": [image_part(picture())]})
        requests = {
            "/v1/embeddings": b'{"input": "cat"}',
            "/v1/chat/completions": b'{"stream": true, "messages": [%b]}' % photo.encode(),
        }
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/v1/embeddings", json={"input": "dog"})
            assert batch.reached.wait(10)
            for path, body in requests.items():
                with socket.create_connection(address(client), 10) as raw:
                    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                    while active(client) < 2:
                        time.sleep(0.01)
                while active(client) > 1:
                    time.sleep(0.01)
            go.set()
            assert first.result().status_code == 200
        figures = client.get("/metrics").text
        assert 'mmgem_batch_items_sum{kind="text"} 1.0' in figures
        assert 'mmgem_batch_items_sum{kind="photo"}' not in figures
        assert 'method="POST",route="/v1/embeddings",status="gone"' in figures


def test_no_more_connections_than_allowed(client: httpx.Client) -> None:
    open_ones = [socket.create_connection(address(client), 10) for _ in range(24)]
    assert any(b"too_many_connections" in s.recv(1000) for s in open_ones[-3:])
    for one in open_ones:
        one.close()


def test_no_path_leads_out(client: httpx.Client) -> None:
    host, port = address(client)
    for path in (
        "/static/../gate.py",
        "/static/%2e%2e/gate.py",
        "/static/..%2f..%2fapi.py",
        "/photos/../../etc/passwd",
        "/photos/%2fetc%2fpasswd",
        "/photos//etc/passwd",
        "/photos/..%00",
        "//etc/passwd",
    ):
        with socket.create_connection((host, port), 10) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            reply = b"".join(iter(lambda: raw.recv(65536), b""))
        assert reply.split()[1] in (b"404", b"422", b"400"), (path, reply)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0"]
)
def test_private_addresses_are_never_fetched(host: str) -> None:
    with pytest.raises(APIError, match="not a public address"):
        public_address(host, 80)


def test_remote_photos_only_where_allowed_and_public(client: httpx.Client, model: MMGEM) -> None:
    url = f"http://127.0.0.1:{client.base_url.port}/healthz"
    assert refused(client.post("/caption", json={"image": url})) == (422, "bad_image")
    with serving(model, remote=True) as (allowing, _):
        reply = allowing.post("/caption", json={"image": url})
        assert refused(reply) == (422, "bad_image") and "not a public address" in reply.text
        assert allowing.post("/caption", json={"image": data_uri(picture())}).status_code == 200
        assert "address" in allowing.post("/caption", json={"image": "file:///etc/passwd"}).text


@pytest.mark.parametrize(
    "arguments",
    [["--limit", "nonsense=1"], ["--limit", "batch=0"], ["--limit", "batch"], ["--token-file", "nowhere"]],
)
def test_what_the_command_line_refuses(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_small_photos_in_odd_wrappings(client: httpx.Client) -> None:
    data = picture()
    for head in ("data:image/png;base64,", "data:;base64,", "DATA:image/png;charset=x;base64,"):
        uri = head + base64.b64encode(data).decode()
        assert client.post("/caption", json={"image": uri}).status_code == 200


class _Blocking(int):
    """A batch size that whoever multiplies it waits for."""

    go: threading.Event
    reached: threading.Event

    def __new__(cls, go: threading.Event) -> _Blocking:
        made = super().__new__(cls, 32)
        made.go, made.reached = go, threading.Event()
        return made

    def __rmul__(self, other: int) -> int:
        self.reached.set()
        self.go.wait(10)
        return other * 32


def test_a_port_in_use_is_said() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="the port is in use; take another"):
        listen("127.0.0.1", taken.getsockname()[1])
