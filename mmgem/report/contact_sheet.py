"""A contact sheet: search results as one picture, for a README or a chat.

Notable choices. All photos of a row share one height and keep their shapes, and the row fills the width, as
in the HTML report. The font is the one inside Pillow, which knows ASCII and little more; for other scripts
name a font file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmgem.data.images import ImageSource, image_size, open_image
from mmgem.errors import ImageError, UsageError
from mmgem.report.cards import QueryRow, SimilarRow
from mmgem.search.store import Box

_PAPER, _INK, _SOFT, _GEM, _EMPTY = "#fbfaf7", "#1e1d1a", "#69655c", "#0b6a57", "#e4e0d6"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# All in pixels of a sheet 1280 wide; wider sheets scale them.
_MARGIN, _GAP, _ROW_GAP, _TEXT, _SMALL_TEXT, _TALLEST = 40, 10, 34, 25, 14, 230

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
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise UsageError(f"{target}: a contact sheet is one of {', '.join(sorted(_FORMATS))}")
    if not rows:
        raise UsageError(f"{target}: no rows to draw")
    pen = _Pen(width / 1280, font)
    strips = [pen.strip(row) for row in rows]
    gap, margin = pen.px(_ROW_GAP), pen.px(_MARGIN)
    height = 2 * margin + sum(strip.height for strip in strips) + gap * (len(strips) - 1)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = margin
    for strip in strips:
        sheet.paste(strip, (margin, top))
        top += strip.height + gap
    part = target.with_name(f"{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(part, kind, quality=88)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{target}: {error.strerror or error}") from error
    return sorted(set(pen.problems))


class _Pen:
    """Draws rows at one scale with one font."""

    def __init__(self, scale: float, font: str | os.PathLike[str] | None) -> None:
        self.scale = scale
        self.problems: list[str] = []
        self.text, self.small = (self._font(font, self.px(size)) for size in (_TEXT, _SMALL_TEXT))

    def px(self, length: float) -> int:
        """Scale a length; at least one pixel."""
        return max(1, round(length * self.scale))

    def strip(self, row: QueryRow | SimilarRow) -> Image.Image:
        """Draw one row: the query, its photos, their scores."""
        cells: list[tuple[ImageSource, Box | None, str]] = [
            (match.image, match.box, f"{match.score:.3f}") for match in row.matches
        ]
        if isinstance(row, SimilarRow):
            cells.insert(0, (row.image, row.box, "like this one"))
        width = self.px(1280) - 2 * self.px(_MARGIN)
        head = 0 if isinstance(row, SimilarRow) else self.px(_TEXT * 1.75)
        gap = self.px(_GAP)
        sizes = [self._size(source) for source, _, _ in cells]
        ratios = [w / h for w, h in sizes]
        tall = (width - gap * (len(cells) - 1)) / sum(ratios) if cells else 0
        tall = max(1, round(min(tall, self.px(_TALLEST))))
        strip = Image.new("RGB", (width, head + tall + self.px(_SMALL_TEXT * 1.9)), _PAPER)
        draw = ImageDraw.Draw(strip)
        if isinstance(row, QueryRow):
            draw.text((0, 0), self._fit(f"“{row.text}”", width), _INK, self.text)
        left = 0.0
        for (source, box, label), size, ratio in zip(cells, sizes, ratios, strict=True):
            place = (round(left), head, round(left + tall * ratio), head + tall)
            strip.paste(self._photo(source, box, size, (place[2] - place[0], tall)), place[:2])
            colour = _SOFT
            if isinstance(row, SimilarRow) and left == 0:
                colour = _GEM
                draw.rectangle(
                    (place[0], place[1], place[2] - 1, place[3] - 1), outline=_GEM, width=self.px(3)
                )
            draw.text((place[0], head + tall + self.px(_SMALL_TEXT * 0.5)), label, colour, self.small)
            left += tall * ratio + gap
        return strip

    def _photo(
        self, source: ImageSource, box: Box | None, full: tuple[int, int], size: tuple[int, int]
    ) -> Image.Image:
        """The photo at ``size``, with its box (in pixels of ``full``) drawn on it."""
        try:
            image = open_image(source, min_side=max(size))
        except ImageError as error:
            self.problems.append(str(error))
            return Image.new("RGB", size, _EMPTY)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
        if box is not None:
            x, y = size[0] / full[0], size[1] / full[1]
            edges = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
            draw = ImageDraw.Draw(image)
            draw.rectangle(edges, outline="#101010", width=self.px(4))
            draw.rectangle(edges, outline="#ffd166", width=self.px(2.5))
        return image

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
