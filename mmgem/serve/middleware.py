"""Who gets in, how many at once and for how long: in front of every route.

Order: the host and the page a request comes from, the token, the number of requests in work, the whole body
within its size and time, then the deadline. The body is read before a request counts as in work, so that slow
senders take nobody's place. What a client that has left was waiting for is given up. HEAD is answered as GET;
uvicorn leaves the body out.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmgem.serve.errors import APIError, error_reply, to_api_error
from mmgem.serve.limits import MAX_HEAD_BYTES, Limits
from mmgem.serve.metrics import Metrics
from mmgem.serve.request_scope import enter_request

_log = logging.getLogger(__name__)

_NO_TOKEN_PATHS = ("/", "/healthz", "/readyz")
_UNLIMITED_PATHS = (*_NO_TOKEN_PATHS, "/metrics")
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"media-src 'self' blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class AdmissionMiddleware:
    """ASGI middleware around the whole application.

    ``token``: what clients must show, None: nothing. ``origins``: other sites whose pages may ask.
    ``hosts``: answer only requests addressed to one of these names, to ``localhost`` or to an IP address,
    against pages that make their own name point here; None: by any name. ``local``: likewise, and IP
    addresses only those of this machine itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        token: str | None = None,
        origins: Collection[str] = (),
        local: bool = False,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token = None if token is None else token.encode()
        self.origins, self.local, self.hosts = origins, local, hosts
        self.stopping = False
        self._active, self._body_bytes = 0, 0
        self._body_timers: set[asyncio.Timeout] = set()
        self._recent_seconds = 1.0  # what a request took of late, in seconds

    def stop(self) -> None:
        """Take no more requests; bodies that are still coming are given up."""
        self.stopping = True
        for timer in self._body_timers:
            timer.reschedule(asyncio.get_running_loop().time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        reply = _ResponseWatcher(send)
        began = time.perf_counter()
        enter_request()
        body = bytearray()
        try:
            self._admit(scope, scope["method"])
            if _is_exempt(scope["path"], _UNLIMITED_PATHS):
                return await self.app(scope, receive, reply.send)
            await self._read_body(scope, receive, body)
            began = time.perf_counter()
            await self._run_app(scope, _replay(bytes(body), receive), reply)
            self._recent_seconds += 0.1 * (time.perf_counter() - began - self._recent_seconds)
        except _ClientDisconnected:
            pass
        except Exception as error:
            api_error = to_api_error(error)
            if api_error.status == 500:
                _log.exception("%s %s", method, scope["path"])
            if not reply.status:
                await error_reply(api_error)(scope, receive, reply.send)
        finally:
            self._body_bytes -= len(body)
            self._count(scope, method, reply.status, time.perf_counter() - began)
        return None

    def _admit(self, scope: Scope, method: str) -> None:
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            raise APIError(431, "head_too_large", f"the head is over {MAX_HEAD_BYTES // 1024} KiB")
        headers = dict(scope["headers"])
        if self.stopping and not _is_exempt(scope["path"], _NO_TOKEN_PATHS):
            raise APIError(503, "shutting_down", "the server is shutting down")
        if (self.local or self.hosts is not None) and not self._is_own_name(headers.get(b"host", b"")):
            message = "ask by the name localhost or an address; see --allow-host, or give the server a token"
            raise APIError(403, "forbidden_host", message)
        if self._is_foreign(headers, method):
            raise APIError(403, "forbidden_origin", "pages of other sites may not ask; see --allow-origin")
        if self.token is None or _is_exempt(scope["path"], _NO_TOKEN_PATHS):
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
            raise APIError(401, "invalid_api_key", "no token or a wrong one: Authorization: Bearer TOKEN")

    def _is_own_name(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        try:
            return ipaddress.ip_address(name).is_loopback or not self.local
        except ValueError:
            return name == "localhost" or name.endswith(".localhost") or name in (self.hosts or ())

    def _is_foreign(self, headers: dict[bytes, bytes], method: str) -> bool:
        """Whether a page of another site asks, other than by a link to here. Browsers say so by
        Sec-Fetch-Site, or if they are old or the connection is plain by the Origin alone."""
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin in self.origins:
            return False
        site = headers.get(b"sec-fetch-site")
        if site is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            return bool(origin) and origin.partition("://")[2] != host
        is_link = headers.get(b"sec-fetch-mode") == b"navigate" and method == "GET"
        return site in (b"cross-site", b"same-site") and not is_link

    async def _read_body(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Fill ``body``, counting it among what is held as it comes."""
        max_bytes = int(self.limits.body_mb * 1e6)
        length = dict(scope["headers"]).get(b"content-length", b"")
        timer = asyncio.timeout(self.limits.body_seconds)
        try:
            async with timer:
                self._body_timers.add(timer)
                too_large = length.isdigit() and int(length) > max_bytes
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientDisconnected
                    body += (chunk := message.get("body", b""))
                    self._body_bytes += len(chunk)
                    if too_large or len(body) > max_bytes:
                        raise APIError(413, "too_large", f"the body is over {self.limits.body_mb:g} MB")
                    if self._body_bytes > self.limits.bodies_mb * 1e6:
                        raise self._busy()
                    if not message.get("more_body"):
                        return
        except TimeoutError as error:
            if self.stopping:
                raise APIError(503, "shutting_down", "the server is shutting down") from error
            raise APIError(408, "slow_body", "the body did not arrive in time") from error
        finally:
            self._body_timers.discard(timer)

    async def _run_app(self, scope: Scope, receive: Receive, reply: _ResponseWatcher) -> None:
        if self._active >= self.limits.queue:
            raise self._busy()
        self._active += 1
        self.metrics.active.set(self._active)
        try:
            async with asyncio.timeout(self.limits.seconds) as reply.timer:
                watching = asyncio.create_task(reply.watch(receive))
                try:
                    await self.app(scope, receive, reply.send)
                finally:
                    watching.cancel()
        except TimeoutError as error:
            if reply.gone:
                raise _ClientDisconnected from error
            message = f"no answer within {self.limits.seconds:g} s"
            raise APIError(504, "deadline", message) from error
        finally:
            self._active -= 1
            self.metrics.active.set(self._active)

    def _busy(self) -> APIError:
        return APIError(
            429, "queue_full", "busy; try again later", retry_after=max(1, round(self._recent_seconds))
        )

    def _count(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        # Only routes that exist, or anybody could make the metrics grow without end.
        route = getattr(scope.get("route"), "path", "other")
        method = method if method in ("GET", "POST", "HEAD") else "other"
        self.metrics.requests.labels(route, method, str(status or "gone")).inc()
        self.metrics.seconds.labels(route).observe(seconds)


class _ClientDisconnected(Exception):
    """The client has left."""


class _ResponseWatcher:
    """What goes out: its status, and our headers on it. Once it starts, the deadline is met. ``gone``: its
    client left before that."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.gone = send, 0, False
        self.timer: asyncio.Timeout | None = None

    async def watch(self, receive: Receive) -> None:
        """Let the deadline come at once if the client leaves before there is an answer."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.status and self.timer is not None and not self.timer.expired():
            self.gone = True
            self.timer.reschedule(asyncio.get_running_loop().time())

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.timer is not None and not self.timer.expired():
                self.timer.reschedule(None)
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await self._send(message)


def _is_exempt(path: str, paths: Collection[str]) -> bool:
    return path in paths or path.startswith("/static/")


def _head_bytes(scope: Scope) -> int:
    """About how large the head of a request was."""
    path = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return path + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body in one piece, then what else comes."""
    parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again
