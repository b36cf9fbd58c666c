"""A report as one HTML file that needs nothing else: photos inlined, no request ever made.

Notable choices. The page's own security policy forbids every request, so it is safe to mail or to host.
Photos are re-encoded from pixels, so no metadata (places, cameras) travels with them, and no path of the
machine is written. It reads without JavaScript; the script only enlarges, filters and copies. Style and
script are ``report.css`` and ``report.js`` beside this file.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image

from mmgem.data.images import ImageSource, image_size, open_image
from mmgem.data.moments import clock
from mmgem.data.records import Box
from mmgem.errors import ImageError, UsageError
from mmgem.report.data import (
    FindingSection,
    HeatmapCard,
    LabelledValue,
    Match,
    PhotoCard,
    QueryRow,
    RegionCard,
    Report,
    SimilarRow,
)
from mmgem.report.heatmap import draw_heatmap
from mmgem.utils.files import write_atomic

# Longest side in pixels of a photo in a strip and on the wall or with regions.
_SMALL, _LARGE = 420, 760
_JPEG_QUALITY = 80
_BOX_COLOURS = 6
_MOSAIC = 9

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#0b8a70" '
    'stroke-width="1.6" stroke-linejoin="round" aria-hidden="true"><path d="M7 3h10l5 6.5L12 21.5 2 9.5z"/>'
    '<path d="M2 9.5h20M7 3l2 6.5 3 12 3-12 2-6.5M9 9.5 12 3l3 6.5"/></svg>'
)
_INLINE_ICON = _ICON.replace("#0b8a70", "currentColor").replace(' xmlns="http://www.w3.org/2000/svg"', "")


def write_report(path: str | os.PathLike[str], report: Report) -> list[str]:
    """Write ``report`` to the HTML file ``path``, whole or not at all.

    Returns a line for each photo that could not be decoded; the page shows a blank in its place. Raises
    UsageError if ``path`` cannot be written.
    """
    pictures = _PhotoEncoder()
    page = _page(report, pictures)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, page.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}") from error
    return sorted(set(pictures.problems))


@dataclass(frozen=True, slots=True)
class _EncodedPhoto:
    """An encoded photo: ``uri`` "" if it could not be decoded; ``size`` is (width, height) as stored."""

    uri: str
    size: tuple[int, int]
    key: int

    @property
    def ratio(self) -> str:
        return f"{self.size[0] / self.size[1]:.4f}"


class _PhotoEncoder:
    """Encodes each photo once per size, and numbers the photos."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._encoded: dict[tuple[int, int], _EncodedPhoto] = {}
        self._keys: dict[object, int] = {}

    def get(self, source: ImageSource, side: int) -> _EncodedPhoto:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)
        return self._get(name, source, side)

    def match(self, match: Match, side: int) -> _EncodedPhoto:
        """The photo of a match, or the frame of its moment."""
        if match.moment is None:
            return self.get(match.image, side)
        try:
            frame = match.picture(side)
        except ImageError:
            return self.get(match.image, side)  # which says what is wrong
        return self._get((str(match.image), match.moment), frame, side)

    def _get(self, name: object, source: ImageSource, side: int) -> _EncodedPhoto:
        key = self._keys.setdefault(name, len(self._keys))
        if (key, side) not in self._encoded:
            self._encoded[key, side] = self._encode_photo(source, side, key)
        return self._encoded[key, side]

    def _encode_photo(self, source: ImageSource, side: int, key: int) -> _EncodedPhoto:
        try:
            size = image_size(source)
            image = open_image(source, min_side=side)
        except ImageError as error:
            self.problems.append(str(error))
            return _EncodedPhoto("", (4, 3), key)
        image.thumbnail((side, side))
        return self._encode(image, size, key)

    def heatmap(self, card: HeatmapCard, side: int) -> _EncodedPhoto:
        """The photo under its heat map; a picture of its own."""
        key = self._keys.setdefault(card, len(self._keys))
        try:
            return self._encode(draw_heatmap(card.image, card.heatmap, side), image_size(card.image), key)
        except ImageError as error:
            self.problems.append(str(error))
            return _EncodedPhoto("", (4, 3), key)

    @staticmethod
    def _encode(image: Image.Image, size: tuple[int, int], key: int) -> _EncodedPhoto:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=_JPEG_QUALITY, optimize=True, progressive=True)
        return _EncodedPhoto(
            f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}", size, key
        )


def _page(report: Report, pictures: _PhotoEncoder) -> str:
    sections = [
        ("search", "Search", len(report.queries), _queries(report.queries, pictures)),
        (
            "places",
            "Search in photos",
            len(report.region_queries),
            _region_queries(report.region_queries, pictures),
        ),
        ("similar", "Photos like this one", len(report.similar), _similar(report.similar, pictures)),
        ("regions", "Regions", len(report.regions), _regions(report.regions, pictures)),
        ("heat", "Where it is", len(report.heatmaps), _heatmaps(report.heatmaps, pictures)),
        ("photos", "Photos", len(report.photos), _wall(report.photos, pictures)),
        *((part.key, part.title, part.count, _findings(part, pictures)) for part in report.findings),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(
        f'<li><a href="#{key}">{name}</a> <small>{n}</small></li>' for key, name, n, _ in sections
    )
    if report.commands:
        links += '<li><a href="#made">How it was made</a></li>'
    nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n' if links else ""
    files = resources.files("mmgem.report")
    style, script = (files.joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mmgem">
<title>{_escape(report.title)}</title>
<link rel="icon" href="data:image/svg+xml;base64,{base64.b64encode(_ICON.encode()).decode()}">
<style>
{style}</style>
</head>
<body>
<header class="top">
<p class="brand">{_INLINE_ICON} mmgem</p>
<div class="intro">
<div>
<h1>{_escape(report.title)}</h1>
{_paragraph("lead", report.lead)}</div>
{_mosaic(report.photos, pictures)}</div>
{_definition_list("figures", report.figures)}{_definition_list("facts", report.details)}</header>
{nav}<main>
{"".join(body for _, _, _, body in sections)}</main>
{_footer(report)}<dialog aria-label="Enlarged photo"></dialog>
<script>
{script}</script>
</body>
</html>
"""


def _mosaic(cards: Sequence[PhotoCard], pictures: _PhotoEncoder) -> str:
    """Nine photos of the wall, or none, for the head of the page; decoration only."""
    uris = [pictures.get(card.image, _SMALL).uri for card in cards[: 2 * _MOSAIC]]
    tiles = [f'<img src="{uri}" alt="">' for uri in uris if uri][:_MOSAIC]
    return f'<div class="mosaic" aria-hidden="true">{"".join(tiles)}</div>\n' if len(tiles) == _MOSAIC else ""


def _queries(rows: Sequence[QueryRow], pictures: _PhotoEncoder) -> str:
    about = "Words against pixels: no tags, no file names. Numbers are cosine similarity."
    return _section("search", "Search", about, _query_rows(rows, pictures))


def _region_queries(rows: Sequence[QueryRow], pictures: _PhotoEncoder) -> str:
    about = (
        "The best box of each photo, found without a detector; words for a place in the photo restrict it."
    )
    return _section("places", "Search in photos", about, _query_rows(rows, pictures))


def _query_rows(rows: Sequence[QueryRow], pictures: _PhotoEncoder) -> str:
    top = _top_score(rows)
    return "".join(
        f'<div class="row">\n<h3 class="query">{_escape(row.text)}</h3>\n{_verdict(row.matches)}'
        f'<div class="strip">\n{_matches(row.matches, top, pictures)}</div>\n</div>\n'
        for row in rows
    )


def _verdict(matches: Sequence[Match]) -> str:
    """A line for a query whose matches are all doubtful."""
    if not matches or not all(match.is_doubtful for match in matches):
        return ""
    return _paragraph("verdict", "Probably no match: none of the photos fits these words well.")


def _heatmaps(cards: Sequence[HeatmapCard], pictures: _PhotoEncoder) -> str:
    body = ""
    for card in cards:
        picture = pictures.heatmap(card, _SMALL)
        photo = _photo(picture, f"Heat map of {card.text}", card.text)
        body += f"{_figure('match', picture)}{photo}<figcaption>{_escape(card.text)}</figcaption></figure>\n"
    about = "How well each place of the photo fits the words: colours span the map, so they say where."
    return _section("heat", "Where it is", about, f'<div class="row strip">\n{body}</div>\n')


def _similar(rows: Sequence[SimilarRow], pictures: _PhotoEncoder) -> str:
    top = _top_score(rows)
    body = ""
    for row in rows:
        picture = pictures.get(row.image, _SMALL)
        photo = _photo(
            picture, row.caption or "The query photo", row.caption, _boxes([row.box], picture.size)
        )
        source = f"{_figure('source', picture)}{photo}<figcaption>Like this one</figcaption></figure>\n"
        matches = _matches(row.matches, top, pictures)
        body += f'<div class="row strip">\n{source}{matches}</div>\n'
    about = "The outlined photo is the query; the others are its nearest neighbours in the index."
    return _section("similar", "Photos like this one", about, body)


def _matches(matches: Sequence[Match], top: float, pictures: _PhotoEncoder) -> str:
    body = ""
    for rank, match in enumerate(matches, 1):
        picture = pictures.match(match, _SMALL)
        alt = match.caption or f"Result {rank}"
        photo = _photo(picture, alt, match.caption, _boxes([match.box], picture.size))
        score = f'<p class="score"><span>{match.score:.3f}</span>{_bar(match.score / top)}</p>'
        doubt = _paragraph("doubt", "probably no match") if match.is_doubtful else ""
        time = _paragraph("moment", "–".join(map(clock, match.moment))) if match.moment else ""
        css_class = "match doubtful" if match.is_doubtful else "match"
        body += f"{_figure(css_class, picture)}{photo}{score}{time}{doubt}</figure>\n"
    return body


def _regions(cards: Sequence[RegionCard], pictures: _PhotoEncoder) -> str:
    body = ""
    for card in cards:
        picture = pictures.get(card.image, _LARGE)
        boxes = _boxes([region.box for region in card.regions], picture.size, tags=True)
        legend = ""
        for number, region in enumerate(card.regions):
            score = "" if region.score is None else f"<span>{region.score:.3f}</span>"
            legend += f"<li>{_tag(number)}<p>{_escape(region.caption)}</p>{score}</li>\n"
        alt = card.caption or "Photo with numbered boxes"
        photo = _photo(picture, alt, card.caption, boxes)
        body += f"{_figure('large', picture)}{photo}<ol>\n{legend}</ol></figure>\n"
    about = "Each box is embedded and captioned by the same weights as the whole photo."
    return _section("regions", "Regions", about, f'<div class="regions">\n{body}</div>\n')


def _wall(cards: Sequence[PhotoCard], pictures: _PhotoEncoder) -> str:
    body = ""
    for number, card in enumerate(cards, 1):
        picture = pictures.get(card.image, _LARGE)
        guesses = "".join(
            f"<li><span>{_escape(name)}</span>{_bar(share)}<span>{share:.0%}</span></li>"
            for name, share in card.guesses
        )
        text = _paragraph("", card.caption) + (f'<ul class="guesses">{guesses}</ul>' if guesses else "")
        photo = _photo(picture, card.caption or card.name or f"Photo {number}", card.caption)
        body += (
            f'<figure class="card large" data-name="{_escape(card.name)}" style="--r:{picture.ratio}">{photo}'
            f"<figcaption>{text}</figcaption></figure>\n"
        )
    search = (
        '<div class="filter" hidden><input type="search" aria-label="Filter the photos by caption" '
        'placeholder="Filter by what the captions say" autocomplete="off">'
        '<output aria-live="polite"></output></div>'
    )
    about = "Captions are generated; below each are the most likely classes, from the same embedding."
    return _section("photos", "Photos", about, f'{search}\n<div class="wall">\n{body}</div>\n')


def _findings(part: FindingSection, pictures: _PhotoEncoder) -> str:
    body = ""
    for row in part.rows:
        photos = ""
        for card in row.photos:
            picture = pictures.get(card.image, _SMALL)
            photo = _photo(picture, card.caption or card.name, card.caption)
            photos += (
                f"{_figure('match', picture)}{photo}<figcaption>{_escape(card.name)}</figcaption></figure>\n"
            )
        strip = f'<div class="strip">\n{photos}</div>\n' if photos else ""
        body += f'<div class="row">\n{_paragraph("about", row.text)}{strip}</div>\n'
    more = "" if len(part.rows) == part.count else f", the first {len(part.rows)}"
    return _section(part.key, _escape(part.title), f"{part.count}{more}", body)


def _footer(report: Report) -> str:
    commands = "\n".join(f"<span>{_escape(command)}</span>" for command in report.commands)
    if commands:
        commands = (
            '<h2 id="made">How it was made</h2>\n<div class="commands">'
            f'<button class="copy" type="button" hidden>Copy</button><pre>{commands}</pre></div>\n'
        )
    return (
        f"<footer>\n{commands}{_paragraph('note', report.note)}</footer>\n" if commands or report.note else ""
    )


def _section(key: str, title: str, about: str, body: str) -> str:
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n'
        f'<p class="about">{about}</p>\n{body}</section>\n'
    )


def _figure(css_class: str, picture: _EncodedPhoto) -> str:
    return f'<figure class="{css_class}" style="--r:{picture.ratio}">'


def _photo(picture: _EncodedPhoto, alt: str, caption: str, overlay: str = "") -> str:
    """A photo that can be enlarged, with boxes over it; ``caption`` goes with the enlarged one."""
    if not picture.uri:
        return f'<div class="gone">{_escape(alt)}<br>(photo not readable)</div>'
    width, height = picture.size
    image = (
        f'<img src="{picture.uri}" alt="{_escape(alt)}" width="{width}" height="{height}" '
        f'data-photo="{picture.key}" decoding="async">'
    )
    return (
        f'<button class="zoom" type="button" data-caption="{_escape(caption)}">'
        f'<span class="frame" style="--r:{picture.ratio}">{image}{overlay}</span></button>'
    )


def _boxes(boxes: Sequence[Box | None], size: tuple[int, int], tags: bool = False) -> str:
    """Outlines over a photo of ``size`` (width, height) pixels, numbered from 1 if ``tags``."""
    outlines, labels = "", ""
    for number, box in enumerate(boxes):
        if box is None:
            continue
        x0, y0, x1, y1 = box
        place = f'x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}"'
        colour = f"c{number % _BOX_COLOURS}"
        outlines += f'<g class="{colour}"><rect class="halo" {place}/><rect class="edge" {place}/></g>'
        if tags:
            labels += _tag(number, f"left:{100 * x0 / size[0]:.2f}%;top:{100 * y0 / size[1]:.2f}%")
    if not outlines:
        return ""
    view = f'viewBox="0 0 {size[0]} {size[1]}" preserveAspectRatio="none" aria-hidden="true"'
    return f'<svg class="boxes" {view}>{outlines}</svg>{labels}'


def _tag(number: int, style: str = "") -> str:
    return f'<span class="tag c{number % _BOX_COLOURS}" style="{style}">{number + 1}</span>'


def _bar(share: float) -> str:
    """A thin bar filled to ``share`` (0..1, clipped)."""
    width = 100 * min(max(share, 0), 1)
    return f'<span class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def _top_score(rows: Sequence[QueryRow] | Sequence[SimilarRow]) -> float:
    """The score that fills a bar: one scale for a whole section."""
    return max([match.score for row in rows for match in row.matches if match.score > 0], default=1.0)


def _definition_list(css_class: str, entries: Sequence[LabelledValue]) -> str:
    lines = "".join(f"<div><dt>{_escape(f.label)}</dt><dd>{_escape(f.value)}</dd></div>\n" for f in entries)
    return f'<dl class="{css_class}">\n{lines}</dl>\n' if lines else ""


def _paragraph(css_class: str, text: str) -> str:
    return f'<p class="{css_class}">{_escape(text)}</p>\n' if text else ""


def _escape(text: str) -> str:
    return html.escape(text)
