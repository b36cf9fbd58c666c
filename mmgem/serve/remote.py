"""Photos from http and https addresses, for servers that allow it.

A request may not make the server look around in its own network: every name is resolved once, all its
addresses must be public, and the connection goes to the very address that was checked. Redirects are checked
the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmgem.serve.errors import APIError

_MAX_REDIRECTS = 3
_CHUNK = 1 << 16


def fetch(url: str, max_bytes: int, seconds: float) -> bytes:
    """The bytes at ``url``, ``max_bytes`` of them at most, within ``seconds``. Raises ``APIError``."""
    deadline = time.monotonic() + seconds
    for _ in range(1 + _MAX_REDIRECTS):
        try:
            data, url = _get(url, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _fetch_error(f"cannot be fetched: {error or type(error).__name__}") from error
        if data is not None:
            return data
    raise _fetch_error(f"redirected more than {_MAX_REDIRECTS} times")


def public_address(host: str, port: int) -> str:
    """The address to connect to. Raises ``APIError`` if the name is unknown or any of its addresses is not a
    public one."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _fetch_error(f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in entries]
    for address in addresses:
        ip = ipaddress.ip_address(address.partition("%")[0])
        embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        if not (ip.is_global and embedded.is_global) or ip.is_multicast:
            raise _fetch_error(f"{host}: not a public address")
    return addresses[0]


def _get(url: str, max_bytes: int, deadline: float) -> tuple[bytes | None, str]:
    """The body, or None and where to look instead."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _fetch_error("must be an http or https address, without a user name")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = public_address(parts.hostname, port)
    connection = _PinnedConnection(parts.hostname, port, address, secure, _seconds_left(deadline))
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
            if len(data) > max_bytes:
                raise APIError(413, "too_large", f"the photo is over {max_bytes / 1e6:g} MB", "image")
            _seconds_left(deadline)
        return bytes(data), url
    finally:
        connection.close()


def _seconds_left(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise _fetch_error("took too long")
    return remaining


def _fetch_error(message: str) -> APIError:
    return APIError(422, "bad_image", f"remote image: {message}", "image")


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to ``address`` for ``host``."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure

    def connect(self) -> None:
        """Connect without asking for the name again."""
        self.sock: Any = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
