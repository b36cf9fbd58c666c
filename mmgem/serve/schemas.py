"""The JSON of requests and replies; the OpenAPI document is made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)

from mmgem.inference.caption_options import CAPTION_DEFAULTS
from mmgem.search.filters import Filters, Lacking, Orientation
from mmgem.search.query_terms import MAX_TERMS
from mmgem.serve import limits
from mmgem.serve.image_input import Upload

_BRANCHES = {str: "(string)", list: "(list)", type(None): "(null)", Upload: "(file)"}


def branch(value: Any) -> str | None:
    """The tag of the branch of a union that ``value`` is for; errors are of that branch, and leave it out."""
    if isinstance(value, dict):
        kind = value.get("type")
        return f"({kind})" if kind in ("text", "image_url") else "(other)"
    return _BRANCHES.get(type(value))


def one_of(message: str) -> Discriminator:
    """What chooses the branch of a union; ``message``: why none fits."""
    return Discriminator(branch, "wrong_kind", message)


BoxField = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
"""x0, y0, x1, y1 in pixels of the upright photo."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=limits.TEXT_CHARS, pattern=r"\S")]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=limits.CLASS_CHARS, pattern=r"\S")]
PhotoId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sent = Annotated[
    Annotated[str, Tag("(string)")] | Annotated[Upload, Tag("(file)")],
    one_of("must be a data URI, or a file of a form"),
    WithJsonSchema(
        {"type": "string", "description": "data:image/...;base64,... (or an address, if allowed)"}
    ),
]


class Request(BaseModel):
    """A body whose fields are all known."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class PhotoRequest(Request):
    """A photo: sent, or of the index."""

    image: Sent | None = None
    photo: PhotoId | None = None

    @model_validator(mode="after")
    def _one(self) -> PhotoRequest:
        if (self.image is None) == (self.photo is None):
            raise ValueError("give one of image and photo")
        return self


FilterText = Annotated[str, StringConstraints(min_length=1, max_length=limits.WHERE_CHARS)]


class FiltersField(Request):
    """What photos must be to be found, all of it; see :class:`mmgem.search.filters.Filters`."""

    folder: Annotated[str, StringConstraints(min_length=1, max_length=limits.FOLDER_CHARS)] | None = None
    name: FilterText | None = None
    date: FilterText | None = None
    camera: FilterText | None = None
    orientation: Orientation | None = None
    min_width: int | None = None
    min_height: int | None = None
    near: FilterText | None = None
    changed: FilterText | None = None
    lacks: Lacking | None = None

    @property
    def filters(self) -> Filters:
        """The same for a search. Raises ``UsageError`` for what is no filter."""
        return Filters(**self.model_dump())


class TermField(Request):
    """A part of a query: a text, or a photo (or a ``box`` of it). ``weight``: how much it counts; below 0: to
    be avoided."""

    text: Text | None = None
    image: Sent | None = None
    photo: PhotoId | None = None
    box: BoxField | None = None
    weight: FiniteFloat = Field(1.0, ge=-100, le=100)

    @model_validator(mode="after")
    def _fits(self) -> TermField:
        if sum(x is not None for x in (self.text, self.image, self.photo)) != 1:
            raise ValueError("give one of text, image and photo")
        if self.box is not None and self.text is not None:
            raise ValueError("box needs image or photo")
        if self.weight == 0:
            raise ValueError("weight must not be 0")
        return self


class SearchRequest(Request):
    """Words, a photo, or terms that are several of them, to search the index for."""

    text: Text | None = None
    image: Sent | None = None
    photo: PhotoId | None = None
    terms: list[TermField] | None = Field(None, min_length=1, max_length=MAX_TERMS)
    filters: FiltersField = FiltersField()
    min_score: FiniteFloat | None = None
    fold: bool = False
    box: BoxField | None = None
    k: int = Field(10, ge=1, le=limits.HITS)
    regions: bool = False
    where: Annotated[str, StringConstraints(max_length=limits.WHERE_CHARS)] | None = None
    rerank: bool = False

    @model_validator(mode="after")
    def _fits(self) -> SearchRequest:
        if sum(x is not None for x in (self.text, self.image, self.photo, self.terms)) != 1:
            raise ValueError("give one of text, image, photo and terms")
        if self.box is not None and self.image is None and self.photo is None:
            raise ValueError("box needs image or photo")
        if self.rerank and (self.text is None or self.regions):
            raise ValueError("rerank needs text, and finds whole photos")
        if self.fold and self.regions:
            raise ValueError("fold is for whole photos")
        if self.where is not None and not self.regions:
            raise ValueError("where needs regions")
        return self


class CaptionRequest(PhotoRequest):
    """A photo, or boxes of it, to describe."""

    boxes: list[BoxField] | None = Field(None, min_length=1, max_length=limits.BOXES)
    beams: int = Field(CAPTION_DEFAULTS.beams, ge=1, le=8)


class ClassifyRequest(PhotoRequest):
    """A photo and what it may show."""

    classes: list[ClassName] = Field(min_length=2, max_length=limits.CLASSES)
    box: BoxField | None = None
    top: int = Field(3, ge=1, le=limits.CLASSES)


class RegionsRequest(PhotoRequest):
    """A photo whose telling boxes are wanted."""

    count: int = Field(8, ge=1, le=limits.BOXES)
    captions: bool = False


class HeatmapRequest(PhotoRequest):
    """A photo and what to look for in it."""

    text: Text
    cells: int = Field(28, ge=4, le=64)
    format: Literal["json", "png"] = "json"
    side: int = Field(760, ge=64, le=limits.THUMB)


class QuestionRequest(Request):
    """A question to the corpus."""

    query: Text
    k: int = Field(5, ge=1, le=limits.PASSAGES)


class AskRequest(Request):
    """A question to be answered from so many passages."""

    query: Text
    k: int = Field(3, ge=1, le=limits.PASSAGES)


class Timed(BaseModel):
    """``seconds``: what the answer took."""

    seconds: float


class Status(BaseModel):
    """A state in a word."""

    status: str


class IndexInfo(BaseModel):
    """``generation`` grows with the index; ``regions``: most boxes of a photo."""

    photos: int
    regions: int
    generation: int


class CorpusInfo(BaseModel):
    """The corpus of texts."""

    model: str
    passages: int
    titles: int


class Info(BaseModel):
    """What this server can do. ``local``: it is for this machine alone, and opens folders of photos."""

    version: str
    model: str
    dim: int
    index: IndexInfo | None
    corpus: CorpusInfo | None
    remote: bool
    local: bool
    limits: dict[str, float]


class PhotoName(BaseModel):
    """A photo of the index; ``name`` is its path in the folder. Of a clip each moment is one: from ``start``
    to ``end``, in seconds; null for a photo."""

    id: str
    name: str
    start: float | None
    end: float | None


class PhotosQuery(FiltersField):
    """Which photos of the index to list: a page of those that pass the filters."""

    offset: int = Field(0, ge=0)
    limit: int = Field(100, ge=1, le=limits.PAGE)

    @property
    def filters(self) -> Filters:
        """The filters. Raises ``UsageError`` for what is none."""
        return Filters(**self.model_dump(exclude={"offset", "limit"}))


class PhotosReply(BaseModel):
    """A page of the index; ``next``: where the next one begins."""

    photos: list[PhotoName]
    total: int
    offset: int
    next: int | None
    generation: int


class PhotoInfo(PhotoName):
    """What is known of a photo. ``path``: of its file, null where the server is not for this machine alone.
    ``date`` by the clock on the wall, of EXIF if ``dated``, else of the file. ``bytes`` of the file;
    ``latitude`` and ``longitude`` in degrees. ``shots``: the moments of its clip, none of a photo."""

    path: str | None
    date: str | None
    dated: bool
    camera: str | None
    latitude: float | None
    longitude: float | None
    width: int | None
    height: int | None
    bytes: int | None
    shots: list[PhotoName]


class FilterValue(BaseModel):
    """Something to filter by, and how many photos pass."""

    value: str
    photos: int


class FilterValues(BaseModel):
    """The folders and the cameras of the index."""

    folders: list[FilterValue]
    cameras: list[FilterValue]


class HitReply(PhotoName):
    """A photo, or a box of it, that was found. ``match``: the probability that a whole photo is what a text
    asked for; null for other searches, and where the model is not calibrated. ``copies``: how many were
    folded into it."""

    score: float
    match: float | None
    copies: int
    width: int | None
    height: int | None
    box: BoxField | None
    cosine: float | None
    log_prob: float | None


class SearchReply(Timed):
    """Hits, best first; ``query``: what was looked for; ``photos``: how many there are that pass the
    filters."""

    query: dict[str, Any]
    hits: list[HitReply]
    photos: int


class Sized(Timed):
    """The size of the upright photo in pixels."""

    width: int
    height: int


class Caption(BaseModel):
    """A sentence about a box, or about the whole photo (null). ``log_prob``: log P of it a token, in nats;
    ``confidence``: the share of its words that people are expected to say of it too, null where the model is
    not calibrated for captions."""

    box: BoxField | None
    text: str
    log_prob: float
    confidence: float | None


class CaptionReply(Sized):
    """A caption a box, in order."""

    captions: list[Caption]


class Guess(BaseModel):
    """A class and its probability among those given."""

    name: str = Field(alias="class")
    probability: float


class ClassifyReply(Timed):
    """The likeliest classes, best first, by their probabilities among those given. ``none``: the probability
    that no class fits, null where the model is not calibrated. ``class``: the likeliest, null where none of
    them is likelier."""

    best: str | None = Field(alias="class")
    guesses: list[Guess]
    none: float | None


class Region(BaseModel):
    """A box and, if asked for, what it shows."""

    box: BoxField
    caption: str | None


class RegionsReply(Sized):
    """Boxes, the most telling first."""

    regions: list[Region]


class HeatmapReply(Sized):
    """Cosines, rows from the top; where the highest is, in pixels; it; and how likely the text fits the
    photo (null: the model is not calibrated)."""

    heat: list[list[float]]
    peak: Annotated[list[float], Field(min_length=2, max_length=2)]
    score: float
    match: float | None


class PassageReply(BaseModel):
    """A passage, and why it was found (see mmgem.self_retrieval.retriever.ScoredPassage)."""

    id: str
    title: str
    text: str
    score: float
    title_prob: float | None
    passage_prob: float | None
    rejection: float | None
    likelihood: float | None


class PassagesReply(Timed):
    """Passages, best first."""

    query: str
    hits: list[PassageReply]


class AnswerReply(PassagesReply):
    """``answer`` from the passage with id ``source``; both null if the passages hold none."""

    answer: str | None
    source: str | None
