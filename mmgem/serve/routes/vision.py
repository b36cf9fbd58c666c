"""Search the index, and say what is in a photo."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from torch import Tensor

from mmgem.data.records import Box
from mmgem.evaluate.classify import PROMPTS, class_embeddings, classify, fill_prompt
from mmgem.report.heatmap import draw_heat
from mmgem.search.places import parse_place, split_place
from mmgem.search.search import Hit
from mmgem.serve import limits
from mmgem.serve.image_input import Photo
from mmgem.serve.index_watcher import Gallery
from mmgem.serve.replies import json_reply
from mmgem.serve.request_body import read, takes
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import (
    CaptionReply,
    CaptionRequest,
    ClassifyReply,
    ClassifyRequest,
    HeatmapReply,
    HeatmapRequest,
    RegionsReply,
    RegionsRequest,
    SearchReply,
    SearchRequest,
)
from mmgem.serve.service import Service

router = APIRouter(tags=["photos"], responses=ERRORS)

_BEAMS = 3


@router.post(
    "/search", responses={200: {"model": SearchReply}}, openapi_extra=takes(SearchRequest, form=True)
)
async def search(request: Request) -> Response:
    """Find photos of the index, or boxes of them, by words or by a photo."""
    began = time.perf_counter()
    service, wanted = service_of(request), await read(request, SearchRequest, form=True)
    gallery = service.gallery
    if wanted.text is not None:
        query, hits = await _by_words(service, gallery, wanted.text, wanted)
    else:
        query, hits = await _by_photo(service, gallery, wanted)
    found = [await _hit(service, gallery, hit) for hit in hits]
    return _timed(began, query=query, hits=found, photos=len(gallery))


@router.post(
    "/caption", responses={200: {"model": CaptionReply}}, openapi_extra=takes(CaptionRequest, form=True)
)
async def caption(request: Request) -> Response:
    """Describe a photo, or boxes of it, in a sentence each."""
    began = time.perf_counter()
    service, wanted = service_of(request), await read(request, CaptionRequest, form=True)
    photo = await service.photo(wanted.image, wanted.photo)
    boxes: Sequence[Box | None] = wanted.boxes or [None]
    if wanted.boxes is None:
        visuals: Sequence[Tensor] = [await service.visual(photo)]
    else:
        visuals = (await service.visual_boxes(photo, wanted.boxes)).unbind()
    said = await service.captions(visuals, wanted.beams)
    rows = [{"box": box, "text": text} for box, text in zip(boxes, said, strict=True)]
    return await _sized(began, service, photo, captions=rows)


@router.post(
    "/classify", responses={200: {"model": ClassifyReply}}, openapi_extra=takes(ClassifyRequest, form=True)
)
async def classes(request: Request) -> Response:
    """Say which of the classes a photo shows."""
    began = time.perf_counter()
    service, wanted = service_of(request), await read(request, ClassifyRequest, form=True)
    names = list(dict.fromkeys(wanted.classes))
    prompts = [fill_prompt(template, name) for name in names for template in PROMPTS]
    photo = await service.photo(wanted.image, wanted.photo)
    vector = await service.vector(photo, wanted.box)
    rows, _ = await service.texts(prompts)
    prototypes = class_embeddings(lambda _: rows, names)
    shares = classify(vector[None], prototypes, service.model.temperature)[0]
    best = (-shares).argsort(kind="stable")[: wanted.top]
    guesses = [{"class": names[i], "probability": round(float(shares[i]), 6)} for i in best]
    return _timed(began, guesses=guesses)


@router.post(
    "/regions", responses={200: {"model": RegionsReply}}, openapi_extra=takes(RegionsRequest, form=True)
)
async def regions_of(request: Request) -> Response:
    """Boxes of a photo that show something of their own, with captions on demand."""
    return await _regions(service_of(request), await read(request, RegionsRequest, form=True))


@router.get("/regions", responses={200: {"model": RegionsReply}})
async def regions_of_indexed(
    request: Request,
    photo: Annotated[str, Query(pattern="^[0-9a-f]{16}$")],
    count: Annotated[int, Query(ge=1, le=limits.BOXES)] = 8,
    captions: bool = False,
) -> Response:
    """The same for a photo of the index."""
    return await _regions(service_of(request), RegionsRequest(photo=photo, count=count, captions=captions))


@router.post(
    "/heatmap",
    responses={200: {"model": HeatmapReply, "content": {"image/png": {}}}},
    openapi_extra=takes(HeatmapRequest, form=True),
)
async def heatmap(request: Request) -> Response:
    """Where in a photo a text is: numbers, or the photo under their colours."""
    began = time.perf_counter()
    service, wanted = service_of(request), await read(request, HeatmapRequest, form=True)
    photo = await service.photo(wanted.image, wanted.photo)
    heat = await service.heat(photo, wanted.text, wanted.cells)
    if wanted.format == "png":
        return Response(await service.in_thread(_png, photo, heat, wanted.side), media_type="image/png")
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    width, height = await service.size(photo)
    peak = [(column + 0.5) / heat.shape[1] * width, (row + 0.5) / heat.shape[0] * height]
    return await _sized(
        began,
        service,
        photo,
        heat=heat.round(4).astype(float).round(4).tolist(),
        peak=[round(x, 1) for x in peak],
        score=round(float(heat.max()), 6),
    )


async def _by_words(
    service: Service, gallery: Gallery, text: str, wanted: SearchRequest
) -> tuple[dict[str, Any], list[Hit]]:
    place = None
    if wanted.regions:
        text, place = (text, parse_place(wanted.where)) if wanted.where else split_place(text)
    asked = {"text": text, "where": place and {"across": place.across, "down": place.down}}
    if wanted.rerank:
        return asked, await service.rerank(gallery, text, wanted.k)
    vectors, _ = await service.texts([text])
    return asked, await service.search(gallery, vectors[0], wanted.k, wanted.regions, place)


async def _by_photo(
    service: Service, gallery: Gallery, wanted: SearchRequest
) -> tuple[dict[str, Any], list[Hit]]:
    photo = await service.photo(wanted.image, wanted.photo)
    place = None if wanted.where is None else parse_place(wanted.where)
    vector = await service.vector(photo, wanted.box)
    hits = await service.search(gallery, vector, wanted.k + 1, wanted.regions, place)
    asked = {"photo": wanted.photo} if wanted.photo is not None else {"image": True}
    others = [hit for hit in hits if wanted.photo is None or gallery.id_of(hit.path) != wanted.photo]
    return {**asked, "box": wanted.box}, others[: wanted.k]


async def _hit(service: Service, gallery: Gallery, hit: Hit) -> dict[str, Any]:
    photo = gallery.id_of(hit.path)
    width, height = await service.shown_size(gallery, photo) or (None, None)
    more = {name: getattr(hit, name, None) for name in ("cosine", "log_prob")}
    return {
        "id": photo,
        "name": gallery.name(photo),
        "score": round(hit.score, 6),
        "width": width,
        "height": height,
        "box": hit.box,
        **{name: value if value is None else round(value, 6) for name, value in more.items()},
    }


async def _regions(service: Service, wanted: RegionsRequest) -> Response:
    began = time.perf_counter()
    photo = await service.photo(wanted.image, wanted.photo)
    boxes = await service.regions(photo, wanted.count)
    said: list[str | None] = [None] * len(boxes)
    if wanted.captions and boxes:
        visuals = await service.visual_boxes(photo, boxes)
        said = list(await service.captions(visuals.unbind(), _BEAMS))
    rows = [{"box": box, "caption": text} for box, text in zip(boxes, said, strict=True)]
    return await _sized(began, service, photo, regions=rows)


async def _sized(began: float, service: Service, photo: Photo, **values: Any) -> Response:
    width, height = await service.size(photo)
    return _timed(began, width=width, height=height, **values)


def _timed(began: float, **values: Any) -> Response:
    return json_reply({**values, "seconds": round(time.perf_counter() - began, 4)})


def _png(photo: Photo, heat: np.ndarray, side: int) -> bytes:
    out = io.BytesIO()
    draw_heat(photo.data, heat, side).save(out, "PNG")
    return out.getvalue()
