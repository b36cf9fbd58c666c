"""OpenAI's API: embeddings of texts and photos, and captions as chat completions."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
from mmgem.inference.texts import truncate_embeddings
from mmgem.serve import limits
from mmgem.serve.errors import APIError, error_json, to_api_error
from mmgem.serve.openai_schemas import (
    ChatReply,
    ChatRequest,
    EmbeddingReply,
    EmbeddingRequest,
    ImagePart,
    ModelReply,
    ModelsReply,
    TextPart,
)
from mmgem.serve.replies import json_reply, to_json
from mmgem.serve.request_body import body_schema, parse_body
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.service import Service, gather

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)

_log = logging.getLogger(__name__)


@router.get("/models", responses={200: {"model": ModelsReply}})
async def models(request: Request) -> Response:
    """The model of this server."""
    return json_reply({"object": "list", "data": [_model(service_of(request))]})


@router.get("/models/{model:path}", responses={200: {"model": ModelReply}})
async def model(request: Request, model: str) -> Response:
    """The model of this server, by its name."""
    _check_model(service_of(request), model)
    return json_reply(_model(service_of(request)))


@router.post(
    "/embeddings", responses={200: {"model": EmbeddingReply}}, openapi_extra=body_schema(EmbeddingRequest)
)
async def embeddings(request: Request) -> Response:
    """Unit vectors of texts and photos: the dot product of two is their similarity.

    ``dimensions``: only the first so many numbers, of unit length again. ``tiny`` loses
    little by that, a model that was never rotated (``mmgem export --pca-rotate``) much.
    """
    service, body = service_of(request), await parse_body(request, EmbeddingRequest)
    _check_model(service, body.model)
    if (body.dimensions or 1) > service.model.dim:
        raise APIError(422, "invalid_value", f"dimensions: at most {service.model.dim}", "dimensions")
    inputs = await _inputs(service, body)
    embedded: list[Any] = await gather(
        service.texts([item for item in inputs if isinstance(item, str)]),
        gather(*(_embed_photo(service, item) for item in inputs if isinstance(item, ImagePart))),
    )
    (text_rows, text_tokens), photo_rows = embedded
    texts, photos = iter(text_rows), iter(photo_rows)
    vectors = np.stack([next(texts if isinstance(item, str) else photos) for item in inputs])
    vectors = truncate_embeddings(vectors, body.dimensions)
    tokens = text_tokens + len(photo_rows) * service.model.network.prefix_length
    rows: list[Any]
    if body.encoding_format == "base64":
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
    openapi_extra=body_schema(ChatRequest),
)
async def chat(request: Request) -> Response:
    """A caption of the photos of the last message that has some, a line each.

    The model describes; it reads no instructions. ``max_completion_tokens`` is shared by the photos.
    """
    service, body = service_of(request), await parse_body(request, ChatRequest)
    _check_model(service, body.model)
    image_parts = next(
        (
            message_parts
            for message in reversed(body.messages)
            if isinstance(message.content, list)
            and (message_parts := [part for part in message.content if isinstance(part, ImagePart)])
        ),
        [],
    )
    if not 1 <= len(image_parts) <= limits.BOXES:
        reason = f"give 1 to {limits.BOXES} photos as image_url parts: this model describes photos"
        raise APIError(422, "invalid_value", reason, "messages")
    max_tokens = body.max_completion_tokens or body.max_tokens
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    options = _ChatOptions(max_tokens, [text for text in stops if text])
    name = f"chatcmpl-{uuid.uuid4().hex}"
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return StreamingResponse(
            _stream(service, name, image_parts, options, usage), media_type="text/event-stream"
        )
    answer = await _describe(service, image_parts, options)
    return json_reply(
        {
            **_reply_head(service, name, "chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": answer.finish_reason,
                }
            ],
            "usage": answer.usage,
        }
    )


async def _inputs(service: Service, body: EmbeddingRequest) -> list[str | ImagePart]:
    """What is to be embedded, token ids and text parts as texts."""
    given: Any = [body.input] if isinstance(body.input, str) or isinstance(body.input[0], int) else body.input
    if isinstance(given[0], list):
        return list(await gather(*(service.text_of(ids) for ids in given)))
    return [item.text if isinstance(item, TextPart) else item for item in given]


async def _embed_photo(service: Service, part: ImagePart) -> np.ndarray:
    photo = await service.photo(part.image_url.url, None)
    return await service.vector(photo, part.box)


@dataclass(frozen=True, slots=True)
class _ChatOptions:
    """Most tokens of the whole answer (None: as many as captions are), and texts before which it ends."""

    max_tokens: int | None
    stops: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a chat's photos show, and what OpenAI's reply says of it."""

    text: str
    finish_reason: str
    usage: dict[str, int]


async def _describe(service: Service, parts: list[ImagePart], options: _ChatOptions) -> _Answer:
    described = parts[: options.max_tokens]  # at least a token each
    each = CAPTION_DEFAULTS.max_tokens
    if options.max_tokens is not None:
        each = min(options.max_tokens // len(described), limits.CAPTION_TOKENS)

    async def visual(part: ImagePart) -> Any:
        photo = await service.photo(part.image_url.url, None)
        if part.box is None:
            return await service.visual(photo)
        return (await service.visual_boxes(photo, [part.box]))[0]

    visuals = await gather(*(visual(part) for part in described))
    captions = await service.captions(visuals, CaptionOptions(max_tokens=each))
    text, written = "\n".join(caption.text for caption in captions), sum(c.tokens for c in captions)
    whole = len(described) == len(parts) and all(caption.finished for caption in captions)
    ends = [at for stop in options.stops if (at := text.find(stop)) >= 0]
    if ends:
        text, whole = text[: min(ends)], True
        written = len(service.tokenizer.pieces([text])[0])
    prompt = len(described) * service.model.network.prefix_length
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    return _Answer(text, "stop" if whole else "length", usage)


async def _stream(
    service: Service, name: str, parts: list[ImagePart], options: _ChatOptions, usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. The caption is chosen among whole ones, so its words come once it is there. With
    ``usage`` every event has it, null until the last."""
    no_usage = {"usage": None} if usage else {}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        head = _reply_head(service, name, "chat.completion.chunk")
        return _sse_event({**head, "choices": choices, **no_usage})

    yield event({"role": "assistant", "content": "", "refusal": None})
    try:
        async with asyncio.timeout(service.limits.seconds):
            answer = await _describe(service, parts, options)
    except TimeoutError:
        late = APIError(504, "deadline", f"no answer within {service.limits.seconds:g} s")
        yield _sse_event(error_json(late))
        return
    except Exception as error:
        api_error = to_api_error(error)
        if api_error.status == 500:
            _log.exception("a stream failed")
        yield _sse_event(error_json(api_error))
        return
    for word in re.findall(r"\s*\S+|\s+$", answer.text):
        yield event({"content": word})
    yield event({}, answer.finish_reason)
    if usage:
        head = _reply_head(service, name, "chat.completion.chunk")
        yield _sse_event({**head, "choices": [], "usage": answer.usage})
    yield b"data: [DONE]\n\n"


def _sse_event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _reply_head(service: Service, name: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": service.options.name}


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.options.name, "object": "model", "created": 0, "owned_by": "mmgem"}


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.options.name):
        message = f"the model here is {service.options.name}, not {name}"
        raise APIError(404, "model_not_found", message, "model")
