"""The ASGI application: routes, the page, errors, and the middleware around it all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from mmgem import __version__
from mmgem.serve.api_docs import render_api_docs
from mmgem.serve.errors import APIError, handle_errors
from mmgem.serve.middleware import AdmissionMiddleware
from mmgem.serve.request_body import set_openapi
from mmgem.serve.routes import corpus, openai, photos, system, vision
from mmgem.serve.service import Service

PAGE = Path(__file__).parent / "page"


def make_app(
    service: Service,
    token: str | None = None,
    origins: Sequence[str] = (),
    local: bool = False,
    hosts: Collection[str] | None = None,
) -> tuple[ASGIApp, AdmissionMiddleware]:
    """The application that serves ``service``, and its middleware. Arguments as those of
    :class:`AdmissionMiddleware`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="mmgem",
        version=__version__,
        description="Photos embedded, searched, captioned and classified by one small model.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    handle_errors(app)
    for routes in (system, photos, vision, corpus, openai):
        app.include_router(routes.router)
    set_openapi(app)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(render_api_docs(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        index = PAGE / "index.html"
        if not index.is_file():
            raise APIError(404, "not_found", "no page here; the API is described at /docs")
        return FileResponse(index)

    if PAGE.is_dir():
        app.mount("/static", StaticFiles(directory=PAGE))
    admission = AdmissionMiddleware(app, service.limits, service.metrics, token, origins, local, hosts)
    if not origins:
        return admission, admission
    allowed = ["Authorization", "Content-Type"]
    return CORSMiddleware(
        admission, list(origins), allow_methods=["GET", "POST"], allow_headers=allowed
    ), admission
