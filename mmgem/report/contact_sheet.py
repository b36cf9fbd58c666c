"""A contact sheet: search results as one picture, for a README or a chat.

Notable choices. All photos of a row share one height and keep their shapes, and the row fills the width, as
in the HTML report. The font is the one inside Pillow, which knows ASCII and little more; for other scripts
name a font file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmgem.data.images import ImageSource, image_size, open_image
from mmgem.data.records import Box
from mmgem.errors import ImageError, UsageError
from mmgem.report.data import Match, QueryRow, SimilarRow
from mmgem.utils.files import atomic_file

_BACKGROUND, _TEXT_COLOUR, _SCORE_COLOUR, _QUERY_COLOUR, _MISSING_COLOUR = (
    "#fbfaf7",
    "#1e1d1a",
    "#69655c",
    "#0b6a57",
    "#e4e0d6",
)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# All in pixels of a sheet 1280 wide; wider sheets scale them.
_MARGIN, _GAP, _ROW_GAP, _TEXT, _SMALL_TEXT, _MAX_PHOTO_HEIGHT = 40, 10, 34, 25, 14, 230

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[QueryRow | SimilarRow],
    *,
    width: int = 1280,
    font: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Draw ``rows`` one below the other, ``width`` pixels wide, and write them to ``path``.

    The suffix of ``path`` chooses PNG, JPEG or WebP. A text query stands above its photos, a query photo
    is outlined before those like it; scores are cosine similarities. ``font`` is a TrueType or OpenType file.
    The file is written whole or not at all. Returns a line for each photo that could not be decoded, which is
    left blank. Raises UsageError if there is nothing to draw, or if ``path`` or ``font`` cannot be used.
    """
    target = Path(path)
    image_format = _FORMATS.get(target.suffix.lower())
    if image_format is None:
        raise UsageError(f"{target}: a contact sheet is one of {', '.join(sorted(_FORMATS))}")
    if not rows:
        raise UsageError(f"{target}: no rows to draw")
    renderer = _RowRenderer(width / 1280, font)
    row_images = [renderer.draw_row(row) for row in rows]
    gap, margin = renderer.px(_ROW_GAP), renderer.px(_MARGIN)
    height = 2 * margin + sum(row_image.height for row_image in row_images) + gap * (len(row_images) - 1)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    top = margin
    for row_image in row_images:
        sheet.paste(row_image, (margin, top))
        top += row_image.height + gap
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file:
            sheet.save(file, image_format, quality=88)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}") from error
    return sorted(set(renderer.problems))


class _RowRenderer:
    """Draws rows at one scale with one font."""

    def __init__(self, scale: float, font: str | os.PathLike[str] | None) -> None:
        self.scale = scale
        self.problems: list[str] = []
        self.text, self.small = (self._font(font, self.px(size)) for size in (_TEXT, _SMALL_TEXT))

    def px(self, length: float) -> int:
        """Scale a length; at least one pixel."""
        return max(1, round(length * self.scale))

    def draw_row(self, row: QueryRow | SimilarRow) -> Image.Image:
        """Draw one row: the query, its photos, their scores."""
        cells: list[tuple[ImageSource, Box | None, str]] = [
            (
                self._picture(match),
                match.box,
                match.caption if math.isnan(match.score) else f"{match.score:.3f}",
            )
            for match in row.matches
        ]
        if isinstance(row, SimilarRow):
            cells.insert(0, (row.image, row.box, "like this one"))
        width = self.px(1280) - 2 * self.px(_MARGIN)
        titled = isinstance(row, QueryRow) and bool(row.text)
        header_height = self.px(_TEXT * 1.75) if titled else 0
        gap = self.px(_GAP)
        sizes = [self._size(source) for source, _, _ in cells]
        ratios = [w / h for w, h in sizes]
        photo_height = (width - gap * (len(cells) - 1)) / sum(ratios) if cells else 0
        photo_height = max(1, round(min(photo_height, self.px(_MAX_PHOTO_HEIGHT))))
        row_image = Image.new(
            "RGB", (width, header_height + photo_height + self.px(_SMALL_TEXT * 1.9)), _BACKGROUND
        )
        draw = ImageDraw.Draw(row_image)
        if isinstance(row, QueryRow) and titled:
            draw.text((0, 0), self._fit(f"“{row.text}”", width), _TEXT_COLOUR, self.text)
        left = 0.0
        for (source, box, label), size, ratio in zip(cells, sizes, ratios, strict=True):
            edges = (
                round(left),
                header_height,
                round(left + photo_height * ratio),
                header_height + photo_height,
            )
            row_image.paste(self._photo(source, box, size, (edges[2] - edges[0], photo_height)), edges[:2])
            colour = _SCORE_COLOUR
            if isinstance(row, SimilarRow) and left == 0:
                colour = _QUERY_COLOUR
                draw.rectangle(
                    (edges[0], edges[1], edges[2] - 1, edges[3] - 1), outline=_QUERY_COLOUR, width=self.px(3)
                )
            draw.text(
                (edges[0], header_height + photo_height + self.px(_SMALL_TEXT * 0.5)),
                label,
                colour,
                self.small,
            )
            left += photo_height * ratio + gap
        return row_image

    def _photo(
        self, source: ImageSource, box: Box | None, full: tuple[int, int], size: tuple[int, int]
    ) -> Image.Image:
        """The photo at ``size``, with its box (in pixels of ``full``) drawn on it."""
        try:
            image = open_image(source, min_side=max(size))
        except ImageError as error:
            self.problems.append(str(error))
            return Image.new("RGB", size, _MISSING_COLOUR)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
        if box is not None:
            x, y = size[0] / full[0], size[1] / full[1]
            edges = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
            draw = ImageDraw.Draw(image)
            draw.rectangle(edges, outline="#101010", width=self.px(4))
            draw.rectangle(edges, outline="#ffd166", width=self.px(2.5))
        return image

    def _picture(self, match: Match) -> ImageSource:
        """The photo, or a frame of the moment; a clip that cannot be read is reported when it is drawn."""
        try:
            return match.picture(self.px(_MAX_PHOTO_HEIGHT))
        except ImageError:
            return match.image

    def _size(self, source: ImageSource) -> tuple[int, int]:
        try:
            return image_size(source)
        except ImageError:
            return 4, 3  # reported when it is drawn

    def _fit(self, text: str, width: int) -> str:
        """Shorten ``text`` until it is at most ``width`` pixels long."""
        text = " ".join(text.split())
        if self.text.getlength(text) <= width:
            return text
        while text and self.text.getlength(text + "…") > width:
            text = text[:-1]
        return text.rstrip() + "…"

    @staticmethod
    def _font(name: str | os.PathLike[str] | None, size: int) -> Font:
        if name is None:
            return ImageFont.load_default(size)
        try:
            return ImageFont.truetype(os.fspath(name), size)
        except OSError as error:
            raise UsageError(f"{os.fspath(name)}: not a font: {error}") from error
