"""A server of a toy model on 127.0.0.1, in a thread of the test process."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from mmgem.api import MMGEM
from mmgem.serve.batcher import Batcher
from mmgem.serve.limits import Limits
from mmgem.serve.metrics import Metrics
from mmgem.serve.server import listen, make_server
from mmgem.serve.service import Service, ServiceOptions


@contextmanager
def serving(
    model: MMGEM,
    index: Path | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    local: bool = False,
    corpus: Any = None,
    remote: bool = False,
    hosts: Collection[str] | None = None,
    **limits: float,
) -> Iterator[tuple[httpx.Client, Service]]:
    """A running server: a client of it, and the service behind it."""
    options = ServiceOptions("toy", "toy corpus", remote, local)
    service = Service(model, options, Limits(**limits), Metrics(), index, corpus)  # type: ignore[arg-type]
    sock = listen("127.0.0.1", 0)
    started = threading.Event()
    server = make_server(service, token, origins, local, hosts, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
            yield client, service
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def picture(seed: int = 0, size: tuple[int, int] = (48, 36), kind: str = "PNG") -> bytes:
    """The file of a picture of four random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(out, kind)
    return out.getvalue()


def data_uri(data: bytes) -> str:
    """``data`` as clients put photos into JSON."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image_part(data: bytes, **more: Any) -> dict[str, Any]:
    """A photo among OpenAI's content parts."""
    return {"type": "image_url", "image_url": {"url": data_uri(data)}, **more}


def batched(work: Callable[[Batcher], Awaitable[Any]]) -> Any:
    """What ``work`` gives with a batcher of its own."""

    async def run() -> Any:
        batcher = Batcher("test", Metrics())
        try:
            return await work(batcher)
        finally:
            batcher.close(RuntimeError("closed"))

    return asyncio.run(run())
