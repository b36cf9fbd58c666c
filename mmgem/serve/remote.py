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

from mmgem.serve.errors import Refused

_REDIRECTS = 3
_CHUNK = 1 << 16


def fetch(url: str, most: int, seconds: float) -> bytes:
    """The bytes at ``url``, ``most`` of them at most, within ``seconds``. Raises ``Refused``."""
    ends = time.monotonic() + seconds
    for _ in range(1 + _REDIRECTS):
        try:
            data, url = _get(url, most, ends)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _bad(f"cannot be fetched: {error or type(error).__name__}") from error
        if data is not None:
            return data
    raise _bad(f"redirected more than {_REDIRECTS} times")


def public_address(host: str, port: int) -> str:
    """The address to connect to. Raises ``Refused`` if the name is unknown or any of its addresses is not a
    public one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _bad(f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        plain = ipaddress.ip_address(address.partition("%")[0])
        inner = getattr(plain, "ipv4_mapped", None) or getattr(plain, "sixtofour", None) or plain
        if not (plain.is_global and inner.is_global) or plain.is_multicast:
            raise _bad(f"{host}: not a public address")
    return addresses[0]


def _get(url: str, most: int, ends: float) -> tuple[bytes | None, str]:
    """The body, or None and where to look instead."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _bad("must be an http or https address, without a user name")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = public_address(parts.hostname, port)
    connection = _Pinned(parts.hostname, port, address, secure, _left(ends))
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "mmgem", "Accept": "image/*"})
        reply = connection.getresponse()
        if reply.status in (301, 302, 303, 307, 308):
            return None, urljoin(url, reply.headers.get("Location", ""))
        if reply.status != 200:
            raise _bad(f"the other server says {reply.status}")
        data = bytearray()
        while chunk := reply.read1(_CHUNK):
            data += chunk
            if len(data) > most:
                raise Refused(413, "too_large", f"the photo is over {most / 1e6:g} MB", "image")
            _left(ends)
        return bytes(data), url
    finally:
        connection.close()


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise _bad("took too long")
    return left


def _bad(message: str) -> Refused:
    return Refused(422, "bad_image", f"remote image: {message}", "image")


class _Pinned(http.client.HTTPConnection):
    """A connection to ``address`` for ``host``."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure

    def connect(self) -> None:
        """Connect without asking for the name again."""
        self.sock: Any = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
