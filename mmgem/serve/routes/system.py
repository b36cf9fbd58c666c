"""Health, what the server can do, and its figures."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from mmgem import __version__
from mmgem.serve import limits
from mmgem.serve.errors import APIError
from mmgem.serve.replies import json_reply
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import Info, Status

router = APIRouter(tags=["server"], responses=ERRORS)


@router.get("/healthz", responses={200: {"model": Status}})
async def healthz() -> Response:
    """The process is alive."""
    return json_reply({"status": "ok"})


@router.get("/readyz", responses={200: {"model": Status}})
async def readyz(request: Request) -> Response:
    """Requests can be answered; 503 while the server shuts down."""
    if not service_of(request).ready:
        raise APIError(503, "shutting_down", "the server is shutting down")
    return json_reply({"status": "ready"})


@router.get("/info", responses={200: {"model": Info}})
async def info(request: Request) -> Response:
    """What this server can do."""
    service = service_of(request)
    gallery = service.index_watcher.gallery if service.index_watcher is not None else None
    corpus = service.corpus
    return json_reply(
        {
            "version": __version__,
            "model": service.options.name,
            "dim": service.model.dim,
            "index": gallery
            and {
                "photos": len(gallery),
                "regions": gallery.index.regions,
                "generation": gallery.generation,
            },
            "corpus": corpus
            and {
                "model": service.options.corpus_name,
                "passages": len(corpus.corpus.passages),
                "titles": len({passage.title for passage in corpus.corpus.passages}),
            },
            "remote": service.options.remote,
            "local": service.options.local,
            "limits": {
                **asdict(service.limits),
                "k": limits.HITS,
                "boxes": limits.BOXES,
                "classes": limits.CLASSES,
                "inputs": limits.INPUTS,
                "text_chars": limits.TEXT_CHARS,
            },
        }
    )


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
