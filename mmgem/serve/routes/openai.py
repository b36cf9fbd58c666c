"""OpenAI's API: embeddings of texts and photos, and captions as chat completions."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from mmgem.inference.texts import truncate_embeddings
from mmgem.serve import limits
from mmgem.serve.errors import Refused, problem, refusal
from mmgem.serve.replies import json_reply, to_json
from mmgem.serve.request_body import read, takes
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import (
    ChatReply,
    ChatRequest,
    EmbeddingReply,
    EmbeddingRequest,
    ImagePart,
    ModelReply,
    ModelsReply,
    TextPart,
)
from mmgem.serve.service import Service, all_of

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)

_log = logging.getLogger(__name__)

_BEAMS, _TOKENS = 3, 30


@router.get("/models", responses={200: {"model": ModelsReply}})
async def models(request: Request) -> Response:
    """The model of this server."""
    return json_reply({"object": "list", "data": [_model(service_of(request))]})


@router.get("/models/{model:path}", responses={200: {"model": ModelReply}})
async def model(request: Request, model: str) -> Response:
    """The model of this server, by its name."""
    _check_model(service_of(request), model)
    return json_reply(_model(service_of(request)))


@router.post("/embeddings", responses={200: {"model": EmbeddingReply}}, openapi_extra=takes(EmbeddingRequest))
async def embeddings(request: Request) -> Response:
    """Unit vectors of texts and photos: the dot product of two is their similarity.

    ``dimensions``: only the first so many numbers, of unit length again. ``tiny`` loses
    little by that, a model that was never turned to its axes (``mmgem export --order``) much.
    """
    service, wanted = service_of(request), await read(request, EmbeddingRequest)
    _check_model(service, wanted.model)
    if (wanted.dimensions or 1) > service.model.dim:
        raise Refused(422, "invalid_value", f"dimensions: at most {service.model.dim}", "dimensions")
    inputs = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    found = await all_of(*(_embed(service, item) for item in inputs))
    vectors = truncate_embeddings(np.stack([vector for vector, _ in found]), wanted.dimensions)
    tokens = sum(count for _, count in found)
    rows: list[Any]
    if wanted.encoding_format == "base64":
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        rows = vectors.tolist()
    return json_reply(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": service.options.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.post(
    "/chat/completions",
    responses={200: {"model": ChatReply, "content": {"text/event-stream": {}}}},
    openapi_extra=takes(ChatRequest),
)
async def chat(request: Request) -> Response:
    """A caption of the photos of the last message that has some, a line each.

    The model describes; it reads no instructions.
    """
    service, wanted = service_of(request), await read(request, ChatRequest)
    _check_model(service, wanted.model)
    parts = next(
        (
            found
            for message in reversed(wanted.messages)
            if isinstance(message.content, list)
            and (found := [part for part in message.content if isinstance(part, ImagePart)])
        ),
        [],
    )
    if not 1 <= len(parts) <= limits.BOXES:
        told = f"give 1 to {limits.BOXES} photos as image_url parts: this model describes photos"
        raise Refused(422, "invalid_value", told, "messages")
    asked = wanted.max_completion_tokens or wanted.max_tokens or _TOKENS
    tokens = min(asked, limits.CAPTION_TOKENS)
    name = f"chatcmpl-{uuid.uuid4().hex}"
    if wanted.stream:
        usage = wanted.stream_options is not None and bool(wanted.stream_options.include_usage)
        return StreamingResponse(_stream(service, name, parts, tokens, usage), media_type="text/event-stream")
    said = await _describe(service, parts, tokens)
    return json_reply(
        {
            **_head(service, name, "chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(service, said, len(parts)),
        }
    )


async def _embed(service: Service, item: str | TextPart | ImagePart) -> tuple[np.ndarray, int]:
    """A unit vector, and the tokens it took."""
    if isinstance(item, ImagePart):
        photo = await service.photo(item.image_url.url, None)
        return await service.vector(photo, item.box), service.model.network.prefix_length
    vectors, tokens = await service.texts([item if isinstance(item, str) else item.text])
    return vectors[0], tokens


async def _describe(service: Service, parts: list[ImagePart], tokens: int) -> str:
    async def visual(part: ImagePart) -> Any:
        photo = await service.photo(part.image_url.url, None)
        if part.box is None:
            return await service.visual(photo)
        return (await service.visual_boxes(photo, [part.box]))[0]

    said = await service.captions(await all_of(*(visual(part) for part in parts)), _BEAMS, tokens)
    return "\n".join(said)


async def _stream(
    service: Service, name: str, parts: list[ImagePart], tokens: int, usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. The caption is chosen among whole ones, so its words come once it is there."""

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return _event({**_head(service, name, "chat.completion.chunk"), "choices": choices})

    yield event({"role": "assistant", "content": ""})
    try:
        async with asyncio.timeout(service.limits.seconds):
            said = await _describe(service, parts, tokens)
    except TimeoutError:
        late = Refused(504, "deadline", f"no answer within {service.limits.seconds:g} s")
        yield _event(problem(late))
        return
    except Exception as error:
        told = refusal(error)
        if told.status == 500:
            _log.exception("a stream failed")
        yield _event(problem(told))
        return
    for word in re.findall(r"\s*\S+", said):
        yield event({"content": word})
    yield event({}, "stop")
    if usage:
        head = _head(service, name, "chat.completion.chunk")
        yield _event({**head, "choices": [], "usage": _usage(service, said, len(parts))})
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _head(service: Service, name: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": service.options.name}


def _usage(service: Service, said: str, photos: int) -> dict[str, int]:
    prompt = photos * service.model.network.prefix_length
    written = sum(map(len, service.tokenizer.pieces([said])))
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.options.name, "object": "model", "created": 0, "owned_by": "mmgem"}


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.options.name):
        told = f"the model here is {service.options.name}, not {name}"
        raise Refused(404, "model_not_found", told, "model")
