"""Clients that send or read too slowly, and connections beyond the limit, are cut off.

uvicorn limits neither the time a request's head takes, nor its size, nor how long an answer waits for a
client that does not read it: not even the end of one, after which it closes the connection and waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from mmgem.serve.errors import APIError, error_json
from mmgem.serve.limits import MAX_HEAD_BYTES, Limits
from mmgem.serve.replies import to_json

if TYPE_CHECKING:
    Protocol: Any = object
else:
    Protocol = AutoHTTPProtocol

_MIN_READ_BYTES = 64 * 1024  # bytes of an answer that its reader takes in ``reader_seconds``


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with these limits on time, size and number."""

    class LimitedProtocol(Protocol):
        head_timer: asyncio.TimerHandle | None = None
        reader_timer: asyncio.TimerHandle | None = None
        head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_ForgivingTransport(transport))
            transport.set_write_buffer_limits(high=0)  # pause_writing as soon as anything waits
            if len(self.connections) > limits.connections:
                self._send_error(APIError(503, "too_many_connections", "too many open connections"))
            else:
                self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._head_received()
                return
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self._abort()
            elif self.head_timer is None:
                self._await_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._head_received()
            self.resume_writing()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self.reader_timer is None:
                self._await_reader()

        def resume_writing(self) -> None:
            if self.reader_timer is not None:
                self.reader_timer.cancel()
                self.reader_timer = None
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            self._send_error(APIError(400, "bad_http", msg))

        def _head_received(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None
            self.head_bytes = 0

        def _await_head(self) -> None:
            self.head_timer = self.loop.call_later(limits.body_seconds / 4, self._abort)

        def _await_reader(self) -> None:
            buffered = self.transport.get_write_buffer_size()
            self.reader_timer = self.loop.call_later(limits.reader_seconds, self._check_reader, buffered)

        def _check_reader(self, buffered_before: int) -> None:
            if self.transport.get_write_buffer_size() > buffered_before - _MIN_READ_BYTES:
                self._abort()
            else:
                self._await_reader()

        def _abort(self) -> None:
            self.transport.abort()

        def _send_error(self, error: APIError) -> None:
            body = to_json(error_json(error))
            reason = "Bad Request" if error.status == 400 else "Service Unavailable"
            head = (
                f"HTTP/1.1 {error.status} {reason}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return LimitedProtocol


class _ForgivingTransport:
    """A transport that ignores what is written after its end: of several requests sent at once on a
    connection uvicorn tells only the last that the client has gone."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)
