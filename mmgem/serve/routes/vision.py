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
from mmgem.inference.calibration import MATCH_THRESHOLD
from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
from mmgem.report.heatmap import draw_heatmap
from mmgem.search.duplicates import fold_copies
from mmgem.search.hits import Hit, with_match
from mmgem.search.spatial_filter import parse_spatial_filter, split_query
from mmgem.serve import limits
from mmgem.serve.image_input import PhotoSource
from mmgem.serve.index_watcher import Gallery
from mmgem.serve.replies import json_reply
from mmgem.serve.request_body import body_schema, parse_body
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
    TermField,
)
from mmgem.serve.service import Service

_FOLDED = 3  # times as many hits as are wanted are looked at where copies are folded

router = APIRouter(tags=["photos"], responses=ERRORS)


@router.post(
    "/search", responses={200: {"model": SearchReply}}, openapi_extra=body_schema(SearchRequest, form=True)
)
async def search(request: Request) -> Response:
    """Find photos of the index, or boxes of them, by words or by a photo."""
    began = time.perf_counter()
    service, body = service_of(request), await parse_body(request, SearchRequest, form=True)
    gallery = await service.in_thread(service.gallery.filtered, body.filters.filters)
    k = body.k
    if body.fold:
        body = body.model_copy(update={"k": _FOLDED * k + 16})
    if body.text is not None:
        query, hits = await _by_words(service, gallery, body.text, body)
    elif body.terms is not None:
        query, hits = await _by_terms(service, gallery, body.terms, body)
    else:
        query, hits = await _by_photo(service, gallery, body)
    if body.fold:
        hits = await service.in_thread(fold_copies, gallery.index, lambda count: hits[:count], k)
    if body.min_score is not None:
        hits = [hit for hit in hits if getattr(hit, "cosine", hit.score) >= body.min_score]
    hit_rows = [await _hit(service, gallery, hit) for hit in hits]
    return _timed_reply(began, query=query, hits=hit_rows, photos=len(gallery))


@router.post(
    "/caption", responses={200: {"model": CaptionReply}}, openapi_extra=body_schema(CaptionRequest, form=True)
)
async def caption(request: Request) -> Response:
    """Describe a photo, or boxes of it, in a sentence each."""
    began = time.perf_counter()
    service, body = service_of(request), await parse_body(request, CaptionRequest, form=True)
    photo = await service.photo(body.image, body.photo)
    boxes: Sequence[Box | None] = body.boxes or [None]
    if body.boxes is None:
        visuals: Sequence[Tensor] = [await service.visual(photo)]
    else:
        visuals = (await service.visual_boxes(photo, body.boxes)).unbind()
    captions = await service.captions(visuals, CaptionOptions(body.beams))
    rows = [
        {"box": box, "text": made.text, "log_prob": made.log_prob, "confidence": made.confidence}
        for box, made in zip(boxes, captions, strict=True)
    ]
    return await _sized_reply(began, service, photo, captions=rows)


@router.post(
    "/classify",
    responses={200: {"model": ClassifyReply}},
    openapi_extra=body_schema(ClassifyRequest, form=True),
)
async def classes(request: Request) -> Response:
    """Say which of the classes a photo shows."""
    began = time.perf_counter()
    service, body = service_of(request), await parse_body(request, ClassifyRequest, form=True)
    names = list(dict.fromkeys(body.classes))
    prompts = [fill_prompt(template, name) for name in names for template in PROMPTS]
    photo = await service.photo(body.image, body.photo)
    vector = await service.vector(photo, body.box)
    rows, _ = await service.texts(prompts)
    prototypes = class_embeddings(lambda _: rows, names)
    probabilities = classify(vector[None], prototypes, service.model.temperature)[0]
    best = (-probabilities).argsort(kind="stable")[: body.top]
    guesses = [{"class": names[i], "probability": round(float(probabilities[i]), 6)} for i in best]
    calibration = service.model.calibration
    none = None if calibration is None else calibration.none_of_these(vector[None], prototypes)
    doubt = None if none is None else round(float(none[0]), 6)
    fits = names[best[0]] if (doubt or 0) <= MATCH_THRESHOLD else None
    return _timed_reply(began, **{"class": fits}, guesses=guesses, none=doubt)


@router.post(
    "/regions", responses={200: {"model": RegionsReply}}, openapi_extra=body_schema(RegionsRequest, form=True)
)
async def regions_of(request: Request) -> Response:
    """Boxes of a photo that show something of their own, with captions on demand."""
    return await _regions(service_of(request), await parse_body(request, RegionsRequest, form=True))


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
    openapi_extra=body_schema(HeatmapRequest, form=True),
)
async def heatmap(request: Request) -> Response:
    """Where in a photo a text is: numbers, or the photo under their colours."""
    began = time.perf_counter()
    service, body = service_of(request), await parse_body(request, HeatmapRequest, form=True)
    photo = await service.photo(body.image, body.photo)
    cosines = await service.heatmap(photo, body.text, body.cells)
    if body.format == "png":
        return Response(await service.in_thread(_png, photo, cosines, body.side), media_type="image/png")
    row, column = divmod(int(cosines.argmax()), cosines.shape[1])
    width, height = await service.size(photo)
    peak = [(column + 0.5) / cosines.shape[1] * width, (row + 0.5) / cosines.shape[0] * height]
    calibration = service.model.calibration
    match = None
    if calibration is not None:
        match = calibration.fits(await service.vector(photo), await service.query(body.text))
    return await _sized_reply(
        began,
        service,
        photo,
        heat=cosines.round(4).astype(float).round(4).tolist(),
        peak=[round(x, 1) for x in peak],
        score=round(float(cosines.max()), 6),
        match=match,
    )


async def _by_words(
    service: Service, gallery: Gallery, text: str, body: SearchRequest
) -> tuple[dict[str, Any], list[Hit]]:
    where = None
    if body.regions:
        text, where = (text, parse_spatial_filter(body.where)) if body.where else split_query(text)
    query = {"text": text, "where": where and {"across": where.across, "down": where.down}}
    if body.rerank:
        return query, await service.rerank(gallery, text, body.k)
    vector = await service.query(text, body.regions)
    hits = await service.search(gallery, vector, body.k, body.regions, where)
    if not body.regions:
        hits = with_match(hits, service.model.calibration, vector, len(gallery))
    return query, hits


async def _by_photo(
    service: Service, gallery: Gallery, body: SearchRequest
) -> tuple[dict[str, Any], list[Hit]]:
    photo = await service.photo(body.image, body.photo)
    where = None if body.where is None else parse_spatial_filter(body.where)
    vector = await service.vector(photo, body.box)
    hits = await service.search(gallery, vector, body.k + 1, body.regions, where)
    query = {"photo": body.photo} if body.photo is not None else {"image": True}
    others = [hit for hit in hits if body.photo is None or gallery.id_of(hit) != body.photo]
    return {**query, "box": body.box}, others[: body.k]


async def _by_terms(
    service: Service, gallery: Gallery, terms: Sequence[TermField], body: SearchRequest
) -> tuple[dict[str, Any], list[Hit]]:
    vector = await service.terms_vector(terms, body.regions)
    where = None if body.where is None else parse_spatial_filter(body.where)
    photos = {term.photo for term in terms if term.photo is not None}
    hits = await service.search(gallery, vector, body.k + len(photos), body.regions, where)
    others = [hit for hit in hits if gallery.id_of(hit) not in photos]
    described = [
        {"text": term.text, "photo": term.photo, "image": term.image is not None, "weight": term.weight}
        for term in terms
    ]
    return {"terms": described}, others[: body.k]


async def _hit(service: Service, gallery: Gallery, hit: Hit) -> dict[str, Any]:
    photo = gallery.id_of(hit)
    width, height = await service.indexed_photo_size(gallery, photo) or (None, None)
    further_scores = {name: getattr(hit, name, None) for name in ("match", "cosine", "log_prob")}
    return {
        **gallery.told(photo),
        "score": round(hit.score, 6),
        "copies": hit.copies,
        "width": width,
        "height": height,
        "box": hit.box,
        **{name: value if value is None else round(value, 6) for name, value in further_scores.items()},
    }


async def _regions(service: Service, body: RegionsRequest) -> Response:
    began = time.perf_counter()
    photo = await service.photo(body.image, body.photo)
    boxes = await service.regions(photo, body.count)
    captions: list[str | None] = [None] * len(boxes)
    if body.captions and boxes:
        visuals = await service.visual_boxes(photo, boxes)
        captions = [made.text for made in await service.captions(visuals.unbind(), CAPTION_DEFAULTS)]
    rows = [{"box": box, "caption": text} for box, text in zip(boxes, captions, strict=True)]
    return await _sized_reply(began, service, photo, regions=rows)


async def _sized_reply(began: float, service: Service, photo: PhotoSource, **values: Any) -> Response:
    width, height = await service.size(photo)
    return _timed_reply(began, width=width, height=height, **values)


def _timed_reply(began: float, **values: Any) -> Response:
    return json_reply({**values, "seconds": round(time.perf_counter() - began, 4)})


def _png(photo: PhotoSource, cosines: np.ndarray, side: int) -> bytes:
    buffer = io.BytesIO()
    draw_heatmap(photo.data, cosines, side).save(buffer, "PNG")
    return buffer.getvalue()
