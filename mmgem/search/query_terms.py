"""Queries of several terms: ``"a dog" -"snow" +photo.jpg``.

A term is a text or an image with a weight; their unit vectors, times the weights, are added, and the sum is
brought to unit length: its score of a photo is the weighted sum of the terms' cosines, up to a factor that
is the same for all photos. What is to be avoided has half the weight of what is looked for, else photos that
show neither come before those that show both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mmgem.data.image_kinds import IMAGE_SUFFIXES
from mmgem.data.images import ImageSource
from mmgem.data.records import Box
from mmgem.data.texts import check_text
from mmgem.errors import UsageError

AVOIDED = -0.5
"""The weight of a term with a minus."""
MAX_TERMS = 32
_TERM = re.compile(
    r'(?P<sign>[+-]?)(?:"(?P<quoted>[^"]*)"|(?P<word>[^\s"^]\S*?))(?:\^(?P<weight>\S*))?(?=\s|$)'
)
_WEIGHT = re.compile(r"\d+(\.\d+)?|\.\d+")


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """A ``text`` or an ``image`` (or a ``box`` of it, in pixels), and how much it counts; below 0: to be
    avoided."""

    text: str | None = None
    image: ImageSource | None = None
    weight: float = 1.0
    box: Box | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UsageError("a term of a query is a text or an image, one of the two")
        if self.text is not None:
            check_text(self.text)
        if self.box is not None and self.image is None:
            raise UsageError("a box needs an image")
        if not 0 < abs(self.weight) <= 100:
            raise UsageError(
                f"weight {self.weight:g}: must be above 0 and at most 100, or below 0 for what to avoid"
            )


class QueryEmbedder(Protocol):
    """What searching by texts and images needs of a model: unit vectors ``(n, D)`` float32 of them."""

    def embed_queries(self, texts: Sequence[str], regions: bool = False, /) -> np.ndarray: ...  # noqa: D102
    def embed_images(  # noqa: D102
        self, images: Sequence[ImageSource], boxes: Sequence[Box | None] | None = None, /
    ) -> np.ndarray: ...


def embed_terms(embedder: QueryEmbedder, terms: Sequence[QueryTerm], regions: bool = False) -> np.ndarray:
    """The unit vector ``(D,)`` float32 of a query of ``terms``, for photos or for ``regions``. Raises
    UsageError for none, and for terms that cancel out; ImageError for an image that cannot be read."""
    texts = [term for term in terms if term.text is not None]
    images = [term for term in terms if term.text is None]
    vectors: list[np.ndarray] = []
    if texts:
        vectors += list(embedder.embed_queries([term.text or "" for term in texts], regions))
    if images:
        sources = [term.image for term in images if term.image is not None]
        vectors += list(embedder.embed_images(sources, [term.box for term in images]))
    return combined_vector(vectors, [term.weight for term in (*texts, *images)])


def combined_vector(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted sum of unit vectors ``(D,)``, of unit length again, float32. Raises UsageError for none,
    if no weight is positive, and if they cancel out."""
    if not any(weight > 0 for weight in weights):
        raise UsageError("a query needs something to look for, not only what to avoid")
    total = np.asarray(weights, np.float64) @ np.stack(vectors).astype(np.float64)
    length = np.linalg.norm(total)
    if length < 1e-3 * max(map(abs, weights)):
        raise UsageError("the terms of the query cancel out")
    return (total / length).astype(np.float32)


def parse_terms(query: str) -> list[QueryTerm] | None:
    """The terms of a query; None for plain words.

    A term is ``"quoted"``, or has a ``+`` or ``-`` before it; ``^2`` after it is its weight. With a sign,
    what is the name of a file of a photo is that photo. All other words, in order, are one term. Raises
    UsageError naming the character for a quote that is not closed, a weight that is none and a photo that is
    not there.
    """
    terms: list[QueryTerm] = []
    plain: list[tuple[int, str]] = []
    for start, word in _words(query):
        signed = word[0] in "+-" and len(word) > 1
        if not signed and word[0] != '"':
            plain.append((start, word))
            continue
        found = _TERM.fullmatch(word)
        if found is None:
            raise _error(
                start, f'{word!r} is no term; write "words", -"words" or +photo.jpg, and ^2 after it'
            )
        terms.append(_term(start, found))
    if not terms:
        return None
    for start, word in plain:
        if word in ("+", "-"):
            raise _error(start, f'a lone {word}; write it right before its words: {word}"snow"')
    if len(terms) >= MAX_TERMS:
        raise UsageError(f"query: more than {MAX_TERMS} terms")
    return [QueryTerm(" ".join(word for _, word in plain)), *terms] if plain else terms


def _words(query: str) -> list[tuple[int, str]]:
    """The words of a query and where they start; what a quote at their start (or after a sign) holds is part
    of one."""
    words: list[tuple[int, str]] = []
    at = 0
    while at < len(query):
        if query[at].isspace():
            at += 1
            continue
        start = at
        quote = at + (query[at] in "+-")
        if query[quote : quote + 1] == '"':
            at = query.find('"', quote + 1)
            if at < 0:
                raise _error(quote, "the quote is not closed")
        while at < len(query) and not query[at].isspace():
            at += 1
        words.append((start, query[start:at]))
    return words


def _term(start: int, found: re.Match[str]) -> QueryTerm:
    text = found["quoted"] if found["quoted"] is not None else found["word"]
    if not text.strip():
        raise _error(start, "there is nothing between the quotes")
    factor = 1.0
    if found["weight"] is not None:
        if not _WEIGHT.fullmatch(found["weight"]) or not 0 < float(found["weight"]) <= 100:
            raise _error(
                start + found.start("weight"), f"^{found['weight']}: a weight is a number up to 100, as ^2"
            )
        factor = float(found["weight"])
    weight = factor * (AVOIDED if found["sign"] == "-" else 1)
    if found["sign"]:
        image = Path(text).expanduser()
        if image.is_file():
            return QueryTerm(image=image, weight=weight)
        if text.lower().endswith(IMAGE_SUFFIXES):
            raise _error(start, f"{text}: no such file")
    return QueryTerm(text, weight=weight)


def _error(at: int, problem: str) -> UsageError:
    return UsageError(f"query, character {at + 1}: {problem}")
