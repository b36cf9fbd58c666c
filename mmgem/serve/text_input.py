"""Texts of requests as tokens: counted as they are read, and refused when they are too many."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmgem.data.tokens import Tokenizer
from mmgem.errors import DataError
from mmgem.serve.errors import APIError
from mmgem.serve.limits import Limits

_AT_ONCE = 16  # texts between two looks at how many tokens there are


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], limits: Limits) -> list[list[Tensor]]:
    """Token ids (1-D int64) of the pieces that each text is embedded in.

    Raises ``APIError`` (413) if a text or all of them have more tokens than one request may bring,
    ``DataError`` for an empty text."""
    pieces: list[list[Tensor]] = [[] for _ in texts]
    total = 0
    for at in range(0, len(texts), _AT_ONCE):
        for ids, n in zip(*tokenizer.encode_parts(texts[at : at + _AT_ONCE]), strict=True):
            pieces[at + n].append(ids)
        counts = [sum(map(len, text_pieces)) for text_pieces in pieces[at : at + _AT_ONCE]]
        if max(counts) > limits.text_tokens:
            message = f"a text of {max(counts)} tokens is over the {limits.text_tokens} that one may have"
            raise _too_many(message)
        total += sum(counts)
        if total > limits.request_tokens:
            count = str(total) if at + _AT_ONCE >= len(texts) else f"{total} or more"
            message = f"{count} tokens of text are over the {limits.request_tokens} that one request may have"
            raise _too_many(message)
    return pieces


def check_question(tokenizer: Tokenizer, question: str, limits: Limits) -> None:
    """Raise ``APIError`` (413) for a question to the corpus of more tokens than it may have."""
    count = len(tokenizer.pieces([question])[0])
    if count > limits.question_tokens:
        raise _too_many(f"a question of {count} tokens is over the {limits.question_tokens} it may have")


def decode_token_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text that token ids of the model's own tokenizer stand for. Raises ``APIError`` (422) for ids that
    are not its, or say nothing."""
    try:
        text = tokenizer.text_of(ids)
    except DataError as error:
        hint = "send texts instead (LangChain: check_embedding_ctx_length=False)"
        raise APIError(422, "invalid_value", f"input: {error}; {hint}", "input") from error
    if not text.strip():
        raise APIError(422, "invalid_value", "input: the token ids are no text", "input")
    return text


def _too_many(message: str) -> APIError:
    return APIError(413, "too_many_tokens", message)
