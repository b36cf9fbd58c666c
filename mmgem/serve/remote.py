"""Photos from http and https addresses, for servers that allow it.

A request may not make the server look around in its own network: every name is resolved once, all its
addresses must be public, and the connection goes to the very address that was checked. Redirects are checked
the same way. Nor may another server hold this one: a fetch has a deadline, at which its connection is closed,
whatever it is doing.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmgem.serve.addresses import is_odd_number, is_public
from mmgem.serve.errors import APIError

_MAX_REDIRECTS = 3
_CHUNK = 1 << 16


class Fetch:
    """One photo to be fetched, by :meth:`run` in a thread."""

    def __init__(self, url: str, max_bytes: int, seconds: float) -> None:
        """``max_bytes``: of the photo; ``seconds``: for all of it, redirects included."""
        self._url, self._max_bytes, self._seconds = url, max_bytes, seconds
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self) -> bytes:
        """The photo's bytes. Raises ``APIError``."""
        deadline = time.monotonic() + self._seconds
        timer = threading.Timer(self._seconds, self.close)
        timer.daemon = True
        timer.start()
        url = self._url
        try:
            for _ in range(1 + _MAX_REDIRECTS):
                data, url = self._get(url, deadline)
                if data is not None:
                    return data
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = self._closed or isinstance(error, TimeoutError)
            reason = f"took over {self._seconds:g} s" if late else str(error) or type(error).__name__
            raise _fetch_error(f"cannot be fetched: {reason}") from error
        finally:
            timer.cancel()
        raise _fetch_error(f"redirected more than {_MAX_REDIRECTS} times")

    def close(self) -> None:
        """End the fetch, from any thread: :meth:`run` raises."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not the method of a TLS socket, which would take its state from under the reader.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _get(self, url: str, deadline: float) -> tuple[bytes | None, str]:
        """The body, or None and where to look instead."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise _fetch_error("must be an http or https address, without a user name")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        address = public_address(parts.hostname, port)
        connection = _PinnedConnection(parts.hostname, port, address, deadline, secure, self._hold)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "mmgem", "Accept": "image/*"})
            reply = connection.getresponse()
            if reply.status in (301, 302, 303, 307, 308):
                return None, urljoin(url, reply.headers.get("Location", ""))
            if reply.status != 200:
                raise _fetch_error(f"the other server says {reply.status}")
            data = bytearray()
            while chunk := reply.read1(_CHUNK):
                data += chunk
                if len(data) > self._max_bytes:
                    message = f"the photo is over {self._max_bytes / 1e6:g} MB"
                    raise APIError(413, "too_large", message, "image")
            if self._closed:  # what came before may look whole
                raise TimeoutError
            return bytes(data), url
        finally:
            with self._lock:
                self._socket = None
            connection.close()

    def _hold(self, connected: socket.socket) -> None:
        """Let :meth:`close` end this connection. Raises ``TimeoutError`` if it was called already."""
        with self._lock:
            self._socket = connected
            if self._closed:
                raise TimeoutError


def public_address(host: str, port: int) -> str:
    """The address to connect to. Raises ``APIError`` if the name is unknown or any of its addresses is not a
    public one."""
    if "%" in host or is_odd_number(host):
        raise _fetch_error(f"{host}: not a public address")
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _fetch_error(f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in entries]
    if not addresses or not all(map(is_public, addresses)):
        raise _fetch_error(f"{host}: not a public address")
    return addresses[0]


def _fetch_error(message: str) -> APIError:
    return APIError(422, "bad_image", f"remote image: {message}", "image")


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to ``address`` for ``host``; ``hold`` is told its socket."""

    def __init__(self, host: str, port: int, address: str, deadline: float, secure: bool, hold: Any) -> None:
        super().__init__(host, port)
        self._address, self._deadline, self._secure, self._hold = address, deadline, secure, hold

    def connect(self) -> None:
        """Connect without asking for the name again. Raises ``TimeoutError`` after the deadline."""
        self.sock: Any = socket.create_connection((self._address, self.port), self._seconds_left())
        self._hold(self.sock)
        if self._secure:
            self.sock.settimeout(self._seconds_left())
            self.sock = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._hold(self.sock)
            self.sock.do_handshake()

    def _seconds_left(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining
