"""Running the application: the socket, and a stop that keeps its word to those who were let in."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from mmgem.errors import UsageError
from mmgem.serve.app import make_app
from mmgem.serve.middleware import AdmissionMiddleware
from mmgem.serve.protocol import limited_protocol
from mmgem.serve.service import Service

_SPARE = 1.0  # seconds at the end of the stop to tell those who waited in vain


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one. Raises ``UsageError``."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UsageError(
                f"{host}:{port}: the port is in use; take another (--port 0: a free one)"
            ) from error
        raise UsageError(f"{host}:{port}: {getattr(error, 'strerror', None) or error}") from error


def make_server(
    service: Service,
    token: str | None = None,
    origins: Sequence[str] = (),
    local: bool = False,
    hosts: Collection[str] | None = None,
    started: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A server to ``run(sockets=[...])`` until SIGTERM, SIGINT or its ``should_exit``; it calls ``started``
    once it answers. Requests that were accepted are finished, for ``stop_seconds`` at most; what still waits
    then is answered with 503. Other arguments as those of
    :class:`~mmgem.serve.middleware.AdmissionMiddleware`."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    app, admission = make_app(service, token, origins, local, hosts)
    config = uvicorn.Config(
        app,
        http=limited_protocol(service.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=service.limits.stop_seconds,  # type: ignore[arg-type]  # goes to wait_for
    )
    return _Server(config, service, admission, started)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        admission: AdmissionMiddleware,
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service, self._admission, self._started = service, admission, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._admission.stop()
        later = max(0.0, self._service.limits.stop_seconds - _SPARE)
        asyncio.get_running_loop().call_later(later, self._service.stop)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # A stop that was asked for is no failure: uvicorn is not to raise the signal again.
        with super().capture_signals():
            yield
            self._captured_signals.clear()
