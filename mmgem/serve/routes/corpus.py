"""The corpus of texts: its passages, and answers from them."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from mmgem.serve.replies import json_reply
from mmgem.serve.request_body import body_schema, parse_body
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import AnswerReply, AskRequest, PassagesReply, QuestionRequest

router = APIRouter(prefix="/corpus", tags=["texts"], responses=ERRORS)


@router.post("/search", responses={200: {"model": PassagesReply}}, openapi_extra=body_schema(QuestionRequest))
async def search(request: Request) -> Response:
    """The passages that answer a question."""
    began = time.perf_counter()
    body = await parse_body(request, QuestionRequest)
    hits = [hit.to_json() for hit in await service_of(request).passages(body.query, body.k)]
    return json_reply({"query": body.query, "hits": hits, "seconds": round(time.perf_counter() - began, 4)})


@router.post("/ask", responses={200: {"model": AnswerReply}}, openapi_extra=body_schema(AskRequest))
async def ask(request: Request) -> Response:
    """The answer to a question, with its passages."""
    began = time.perf_counter()
    body = await parse_body(request, AskRequest)
    answer = await service_of(request).answer(body.query, body.k)
    return json_reply(
        {
            "query": body.query,
            "answer": answer.text,
            "source": answer.source,
            "hits": [hit.to_json() for hit in answer.hits],
            "seconds": round(time.perf_counter() - began, 4),
        }
    )
