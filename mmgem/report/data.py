"""What a report or a contact sheet shows: photos, and rows of search results.

Images are whatever :func:`mmgem.data.images.open_image` takes. Boxes are pixels of the upright stored image,
(x0, y0, x1, y1). Scores are cosine similarities, guesses are (class name, probability 0..1), best first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmgem.data.clips import middle_frame
from mmgem.data.images import ImageSource
from mmgem.data.moments import Moment
from mmgem.data.records import Box
from mmgem.inference.calibration import MATCH_THRESHOLD


@dataclass(frozen=True, slots=True, eq=False)
class LabelledValue:
    """A line about the model or the run, or a figure to show large: ``Fact("photos a second", "41")``."""

    label: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class PhotoCard:
    """A photo with what the model says of it; ``name`` (a file name) is used by the filter."""

    image: ImageSource
    caption: str = ""
    guesses: Sequence[tuple[str, float]] = ()
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """One search result; with a box, the region of the photo that was found. ``match``: the probability
    that it is what was asked for, None if that is not known. ``moment``: of the clip ``image`` (a path), of
    which the middle frame is shown."""

    image: ImageSource
    score: float
    box: Box | None = None
    caption: str = ""
    match: float | None = None
    moment: Moment | None = None

    def picture(self, side: int) -> ImageSource:
        """What is shown of it: the photo, or the middle frame of the moment, whose shorter side has at most
        ``side`` pixels. Raises ImageError for a clip that cannot be read."""
        if self.moment is None or not isinstance(self.image, str | os.PathLike):
            return self.image
        return middle_frame(self.image, self.moment, side)

    @property
    def is_doubtful(self) -> bool:
        """Whether it is probably no match."""
        return self.match is not None and self.match < MATCH_THRESHOLD


@dataclass(frozen=True, slots=True, eq=False)
class QueryRow:
    """A text query and its photos, best first."""

    text: str
    matches: Sequence[Match]


@dataclass(frozen=True, slots=True, eq=False)
class SimilarRow:
    """A query photo, or a box of one, and the photos like it, best first (without the photo itself)."""

    image: ImageSource
    matches: Sequence[Match]
    box: Box | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A box of a photo and the caption generated for it, with a score if there is one to tell."""

    box: Box
    caption: str
    score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RegionCard:
    """A photo with boxes to draw and caption."""

    image: ImageSource
    regions: Sequence[Region]
    caption: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class HeatmapCard:
    """A photo, a text, and how well each place fits it: ``heatmap`` (h, w), rows from the top."""

    image: ImageSource
    text: str
    heatmap: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class FindingRow:
    """Something to look at: a line of text, and the photos it is about."""

    text: str
    photos: Sequence[PhotoCard]


@dataclass(frozen=True, slots=True, eq=False)
class FindingSection:
    """Findings of one kind; ``key``: of its place in the page (ASCII letters), ``count``: of all of the
    kind, of which ``rows`` are examples."""

    key: str
    title: str
    count: int
    rows: Sequence[FindingRow]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A page to show: empty parts are left out.

    ``figures`` are shown large and should be few; ``details`` are lines. ``commands`` are shell commands,
    exactly those that made the page. ``note`` ends the page.
    """

    title: str
    lead: str = ""
    figures: Sequence[LabelledValue] = ()
    details: Sequence[LabelledValue] = ()
    queries: Sequence[QueryRow] = ()
    similar: Sequence[SimilarRow] = ()
    region_queries: Sequence[QueryRow] = ()
    regions: Sequence[RegionCard] = ()
    heatmaps: Sequence[HeatmapCard] = ()
    photos: Sequence[PhotoCard] = ()
    findings: Sequence[FindingSection] = ()
    commands: Sequence[str] = ()
    note: str = ""
