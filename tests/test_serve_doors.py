"""Who may ask by which name, what may be fetched on whose behalf, and for how long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from serving import data_uri, picture, serving
from test_serve_limits import address
from test_serve_routes import refused

from mmgem import MMGEM
from mmgem.serve import remote
from mmgem.serve.addresses import is_public
from mmgem.serve.errors import APIError
from mmgem.serve.remote import Fetch, public_address

REFUSED = """
127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
100.64.0.1 100.100.100.200 168.63.129.16 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1
198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8
::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 2002:7f00:1:: 2002:808:808::
2001:0:4136:e378:8000:63bf:3fff:fdd2 64:ff9b::7f00:1 64:ff9b::8.8.8.8 64:ff9b:1::a00:1 fec0::1 feff::1
fe80::1 fe80::1%eth0 2606:4700::1111%eth0 fc00::1 fd00:ec2::254 ff02::1 ff0e::1 2001:db8::1 3fff::1
100::1 5f00::1 2606:4700::5efe:a00:1 2606:4700::200:5efe:a00:1 4000::1 word
""".split()  # noqa: SIM905
PUBLIC = ["8.8.8.8", "1.1.1.1", "168.63.129.15", "100.63.255.255", "2606:4700:4700::1111", "2a00:1450::1"]


def test_the_table_of_addresses() -> None:
    assert [text for text in REFUSED if is_public(text)] == []
    assert [text for text in PUBLIC if not is_public(text)] == []


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "134744072",
        "010.8.8.8",
        "::1",
        "fe80::1%25eth0",
        "fe80::1%1",
    ],
)
def test_odd_forms_of_a_host_are_refused(host: str) -> None:
    with pytest.raises(APIError, match="not a public address"):
        public_address(host, 80)


def test_every_answer_of_a_name_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "64:ff9b::a00:1"], ["8.8.4.4", "8.8.8.8"]]

    def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for _ in range(2):
        with pytest.raises(APIError, match="not a public address"):
            public_address("photos.example", 80)
    assert public_address("photos.example", 80) == "8.8.4.4"


@contextmanager
def other_server(*sent: bytes, pause: float = 0.0) -> Iterator[int]:
    """Answers each connection with ``sent``, a pause after each; its port."""
    ended = threading.Event()

    def answer(one: socket.socket) -> None:
        with one, suppress(OSError):
            one.recv(65536)
            for data in sent:
                one.sendall(data)
                if ended.wait(pause):
                    return

    def serve() -> None:
        while not ended.is_set():
            with suppress(OSError):
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def test_a_fetch_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "public_address", lambda host, port: "127.0.0.1")
    head = b"HTTP/1.1 200 OK\r\nX: "
    for sent in ([head, *[b"y"] * 500], [head + b"\r\nContent-Length: 500\r\n\r\n", *[b"y"] * 500]):
        with other_server(*sent, pause=0.1) as port:
            began = time.monotonic()
            with pytest.raises(APIError, match=r"took over 0\.5 s"):
                Fetch(f"http://photos.example:{port}/", 10_000, 0.5).run()
            assert time.monotonic() - began < 5


def test_a_fetch_that_is_given_up_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "public_address", lambda host, port: "127.0.0.1")
    with other_server(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 100, pause=0.2) as port:
        fetch = Fetch(f"http://photos.example:{port}/", 10_000, 60)
        threading.Timer(0.3, fetch.close).start()
        began = time.monotonic()
        with pytest.raises(APIError, match="cannot be fetched"):
            fetch.run()
        assert time.monotonic() - began < 10


def test_redirects_are_checked_and_photos_come(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = []

    def checked(host: str, port: int) -> str:
        hosts.append(host)
        if host == "inside.example":
            raise APIError(422, "bad_image", "remote image: inside.example: not a public address", "image")
        return "127.0.0.1"

    monkeypatch.setattr(remote, "public_address", checked)
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://inside.example/x\r\n\r\n"
    with other_server(moved) as port, pytest.raises(APIError, match="not a public address"):
        Fetch(f"http://photos.example:{port}/", 10_000, 5).run()
    assert hosts == ["photos.example", "inside.example"]
    data = picture()
    with other_server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data) as port:
        assert Fetch(f"http://photos.example:{port}/a.png", 10_000, 5).run() == data


def test_slow_servers_hold_no_photo_up(model: MMGEM, monkeypatch: pytest.MonkeyPatch) -> None:
    """More fetches than there are threads that decode."""
    monkeypatch.setattr(remote, "public_address", lambda host, port: "127.0.0.1")
    with (
        other_server(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 1000, pause=0.2) as port,
        serving(model, remote=True, fetch_seconds=30, seconds=20) as (client, _),
    ):
        slow = [socket.create_connection(address(client), 10) for _ in range(8)]
        body = b'{"image": "http://photos.example:%d/"}' % port
        head = b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for one in slow:
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.5)
        assert client.post("/caption", json={"image": data_uri(picture())}).status_code == 200
        for one in slow:
            one.close()


def test_a_foreign_origin_may_not_post(model: MMGEM) -> None:
    with serving(model, origins=["https://good.example"]) as (client, _):
        own = f"http://127.0.0.1:{client.base_url.port}"
        body = {"input": "a dog"}

        def status(**headers: str) -> int:
            shown = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.post("/v1/embeddings", json=body, headers=shown).status_code

        assert status() == status(Origin=own) == status(Origin="https://good.example") == 200
        # Behind a proxy the Host may be another; the browser knows.
        assert status(Origin="https://photos.example", Sec_Fetch_Site="same-origin") == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"{own}.evil.example", "x"):
            assert status(Origin=origin) == 403
        # A form of another site, which is sent by navigating.
        assert status(Origin="null", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 403
        assert status(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 403
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", headers=link).status_code == 200


def test_without_a_token_the_name_is_checked(model: MMGEM) -> None:
    with serving(model, hosts={"photos.lan"}) as (client, _):
        for host in (
            "localhost",
            "127.0.0.1:8000",
            "192.168.1.7:8000",
            "[fd00::1]:80",
            "photos.lan",
            "PHOTOS.lan:1",
        ):
            assert client.get("/info", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "photos.lan.evil.example", "127.0.0.1.evil.example", "", "1.2.3"):
            assert refused(client.get("/info", headers={"Host": host})) == (403, "forbidden_host")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_large_head_is_refused_however_it_comes(model: MMGEM, at_once: bool) -> None:
    with serving(model) as (client, _), socket.create_connection(address(client), 10) as raw:
        head = b"GET /info HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n"
        with suppress(OSError):
            for part in [head] if at_once else [head[at : at + 5000] for at in range(0, len(head), 5000)]:
                raw.sendall(part)
                time.sleep(0 if at_once else 0.01)
        reply = b""
        with suppress(OSError):
            reply = raw.recv(65536)
        assert not reply or reply.split()[1] in (b"400", b"431")
        assert client.get("/healthz").status_code == 200
