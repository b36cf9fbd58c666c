"""OpenAI's JSON of requests and replies, by its published description.

Their clients send many fields that make no difference to a photo's embedding or caption (temperature, user,
detail, ...): those, and unknown ones, are let through. What would change the kind of answer, and cannot be
given, is refused. Every field that is optional may be null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, WithJsonSchema, field_validator

from mmgem.serve import limits
from mmgem.serve.schemas import BoxField, Text, branch, one_of


class ImageUrl(BaseModel):
    """Where a photo is. ``detail`` makes no difference."""

    url: str
    detail: str | None = None


class TextPart(BaseModel):
    """A text among photos."""

    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    """A photo among texts. ``box`` is ours."""

    type: Literal["image_url"]
    image_url: ImageUrl
    box: BoxField | None = None


class ChatTextPart(BaseModel):
    """A text among the parts of a message, which the model does not read."""

    type: Literal["text"]
    text: str


_Text = Annotated[TextPart, Tag("(text)")]
_ChatText = Annotated[ChatTextPart, Tag("(text)")]
_Image = Annotated[ImagePart, Tag("(image_url)")]
_Item = Annotated[
    Annotated[Text, Tag("(string)")] | _Text | _Image,
    one_of("must be a text, or a part of type text or image_url"),
]
_Items = Annotated[list[_Item], Field(min_length=1, max_length=limits.INPUTS)]
_TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=limits.TEXT_CHARS)
]
_TokenLists = Annotated[list[_TokenIds], Field(min_length=1, max_length=limits.INPUTS)]


def _input_branch(value: Any) -> str | None:
    """As :func:`branch`; a list by what its first item is."""
    if isinstance(value, list) and value and type(value[0]) is int:
        return "(tokens)"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "(token lists)"
    return branch(value)


_Other = Annotated[
    dict[str, Any],
    Tag("(other)"),
    WithJsonSchema({"type": "object", "properties": {"type": {"not": {"enum": ["text", "image_url"]}}}}),
]


class EmbeddingRequest(BaseModel):
    """Texts and photos to embed; texts also as token ids of the model's own tokenizer."""

    input: Annotated[
        Annotated[Text, Tag("(string)")]
        | Annotated[_Items, Tag("(list)")]
        | Annotated[_TokenIds, Tag("(tokens)")]
        | Annotated[_TokenLists, Tag("(token lists)")],
        Discriminator(_input_branch, "wrong_kind", "must be a text, a list of texts and parts, or token ids"),
    ]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class Embedding(BaseModel):
    """A unit vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(BaseModel):
    """A vector an input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Message(BaseModel):
    """A turn of a chat."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Annotated[
        Annotated[str, Tag("(string)")]
        | Annotated[list[Annotated[_ChatText | _Image | _Other, one_of("must be a part")]], Tag("(list)")]
        | Annotated[None, Tag("(null)")],
        one_of("must be a text, or a list of parts"),
    ] = None


class StreamOptions(BaseModel):
    """``include_usage``: count the tokens in a last chunk."""

    include_usage: bool | None = None


class ResponseFormat(BaseModel):
    """``type``: text."""

    type: str


class ChatRequest(BaseModel):
    """A chat whose last photos are described. ``max_completion_tokens``, or ``max_tokens``: of the whole
    answer, at most. ``stop``: texts before which it ends."""

    messages: list[Message] = Field(min_length=1, max_length=limits.MESSAGES)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=1)
    stop: (
        Annotated[
            Annotated[str, Tag("(string)")] | Annotated[list[str], Field(max_length=4), Tag("(list)")],
            one_of("must be a text, or a list of texts"),
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    tool_choice: str | dict[str, Any] | None = None

    @field_validator("logprobs", "top_logprobs", "response_format", "modalities", "tool_choice")
    @classmethod
    def _can_be_given(cls, value: Any) -> Any:
        if isinstance(value, ResponseFormat) and value.type != "text":
            raise ValueError("this model answers in plain text only")
        if isinstance(value, list) and set(value) - {"text"}:
            raise ValueError("this model answers in plain text only")
        if value is True or (type(value) is int and value > 0):
            raise ValueError("this model gives no log-probabilities")
        if isinstance(value, dict) or (isinstance(value, str) and value not in ("none", "auto")):
            raise ValueError("this model calls no tools")
        return value


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """The one answer; ``length``: it was cut at the most tokens."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatUsage(Usage):
    """Tokens read and written."""

    completion_tokens: int


class ChatReply(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class ModelReply(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(BaseModel):
    """The one model."""

    object: Literal["list"]
    data: list[ModelReply]
