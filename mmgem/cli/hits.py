"""What is asked of an index or a store, and how the answer is told: one way for both."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmgem.cli.clips import full_frame, parse_time
from mmgem.cli.inputs import check_photo, default_index, parse_box
from mmgem.cli.output import counted, note, prepare_output_file, print_json
from mmgem.data.moments import format_moment, is_video
from mmgem.data.texts import check_text
from mmgem.errors import CheckpointError, ImageError, UsageError
from mmgem.utils.files import same_file

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from PIL import Image

    from mmgem.api import MMGEM
    from mmgem.data.moments import Moment
    from mmgem.data.records import Box
    from mmgem.inference.query_encoder import QueryEncoder
    from mmgem.report.data import Match
    from mmgem.search.hits import Hit
    from mmgem.search.query_terms import QueryTerm
    from mmgem.search.search import PhotoIndex

QueryArgument = Annotated[
    list[str] | None, typer.Argument(metavar="TEXT", help="What to look for: words, or 'a dog' -\"snow\" +F.")
]
ImageOption = Annotated[
    Path | None, typer.Option("--image", metavar="F", help="Look for photos like this one.")
]
MinScoreOption = Annotated[
    float | None, typer.Option("--min-score", metavar="COS", help="Only photos with at least this cosine.")
]
CountOption = Annotated[int, typer.Option("-k", min=0, metavar="N", help="How many photos; 0: all.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="F", help="Write the result as a web page as well.")
]
SheetOption = Annotated[
    Path | None, typer.Option("--sheet", metavar="F", help="Write the photos as one picture as well (.jpg).")
]
PathsOption = Annotated[bool, typer.Option("--paths", help="Print the paths only.")]
NullOption = Annotated[
    bool, typer.Option("--null", "-0", help="Print the paths only, each ended by a zero byte: for xargs -0.")
]
JsonLinesOption = Annotated[
    bool, typer.Option("--jsonl", help="Print a JSON object a hit, each on a line of its own.")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Show the result in the browser.")]
PreviewOption = Annotated[
    bool, typer.Option("--preview", help="Show each photo under its line, where the output is a terminal.")
]
BuiltByOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="M", help="Where the model of the vectors is now.")
]

_PREVIEW_ROWS, _PREVIEW_PIXELS = 10, 240
_SHEET_ROW = 6  # photos in a row of a contact sheet

NOTHING_FOUND = 1
"""The exit code of a search that finds nothing, as grep's."""


@dataclass(frozen=True, slots=True)
class Query:
    """A text, a photo or a box of one, or both. ``terms``: of a query of several, also if the text is.
    ``frame``: that of ``moment``, where the image is a clip."""

    text: str | None
    image: Path | None = None
    box: Box | None = None
    terms: tuple[QueryTerm, ...] = ()
    moment: Moment | None = None
    frame: Image.Image | None = None

    @property
    def images(self) -> list[Path]:
        """The photos that are asked for."""
        images = [self.image, *(term.image for term in self.terms)]
        return [image for image in images if isinstance(image, Path)]

    def embed(
        self, mmgem: MMGEM | QueryEncoder, text: str | None = None, regions: bool = False
    ) -> np.ndarray:
        """Its embedding (D,); ``text``: the part of its text that is looked for; ``regions``: in boxes."""
        if self.terms:
            from mmgem.search.query_terms import embed_terms

            return embed_terms(mmgem, self.terms, regions)
        if self.text is not None:
            return mmgem.embed_queries([text or self.text], regions)[0]
        assert self.image is not None
        return mmgem.embed_images([self.frame or self.image], [self.box])[0]

    def search(self, find: Callable[[int], list[Hit]], k: int, folded: PhotoIndex | None = None) -> list[Hit]:
        """The first ``k`` of what ``find(count)`` finds, without the photos that are asked for; with their
        copies folded if ``folded`` is the index they are of."""
        from mmgem.search.duplicates import fold_copies

        images = self.images

        def others(count: int) -> list[Hit]:
            hits = find(count + len(images))
            return [hit for hit in hits if not any(same_file(hit.path, image) for image in images)][:count]

        return others(k) if folded is None else fold_copies(folded, others, k)

    def with_match(
        self,
        mmgem: MMGEM | QueryEncoder,
        hits: Sequence[Hit],
        vector: np.ndarray,
        photos: Callable[[], int],
    ) -> Sequence[Hit]:
        """``hits`` of whole photos for this query of embedding ``vector`` ``(D,)``, with the probability that
        they match if it is a text and the model is calibrated; ``photos`` counts what was searched."""
        from mmgem.search.hits import with_match

        if self.text is None or self.terms or mmgem.calibration is None:
            return hits
        return with_match(hits, mmgem.calibration, vector, photos())


def parse_query(
    words: Sequence[str],
    image: Path | None,
    box: str | None,
    html: Path | None,
    optional: bool = False,
    sheet: Path | None = None,
    time: str | None = None,
) -> Query:
    """What the command line asks for; ``words`` are joined; ``optional``: it may be nothing; ``time``: of the
    image, a clip.

    Raises UsageError for nothing, for a query that cannot be read, for a box outside the photo and an
    ``html`` or ``sheet`` that cannot be; ImageError for what is no photo."""
    from mmgem.search.query_terms import QueryTerm, parse_terms

    region, text, moment = parse_box(box), " ".join(words) if words else None, parse_time(time)
    if text is None and image is None and not optional:
        raise UsageError("give a text or --image")
    if region is not None and image is None:
        raise UsageError("--box needs --image")
    if moment is not None and image is None:
        raise UsageError("--time needs --image, a clip")
    if text is not None and not text.strip():
        raise UsageError("the text to search for is empty")
    if text is not None:
        check_text(text, "the text to search for")
    if image is not None and not image.is_file():
        raise UsageError(f"{image}: no such file")
    if image is not None:
        check_photo(image, region)
    frame = None
    if image is not None and (moment is not None or is_video(image)):
        frame = full_frame(image, moment)
    if html is not None:
        prepare_output_file(html, ".html", ".htm")
    if sheet is not None:
        prepare_output_file(sheet, ".jpg", ".jpeg", ".png", ".webp")
    terms = () if text is None else tuple(parse_terms(text) or ())
    for term in terms:
        if isinstance(term.image, Path):
            check_photo(term.image, None)
    if text is not None and image is not None:
        terms = (*(terms or (QueryTerm(text),)), QueryTerm(image=frame or image, box=region))
    return Query(text, image, region, terms, moment, frame)


def at_least(hits: Sequence[Hit], cosine: float | None) -> Sequence[Hit]:
    """The hits with at least this cosine; notes it if there are none."""
    if cosine is None:
        return hits
    kept = [hit for hit in hits if getattr(hit, "cosine", hit.score) >= cosine]
    if hits and not kept:
        best = max(getattr(hit, "cosine", hit.score) for hit in hits)
        note(f"no photo has a cosine of {cosine:g}; the highest is {best:.3f}")
    return kept


def split_words(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The index that a command line is about, and its other words: the first word if it is (or looks like) a
    folder, else the default index."""
    from mmgem.search.index_files import database_file

    default = default_index()
    if words:
        first = Path(words[0])
        if (
            first.is_dir()
            or not database_file(default).is_file()
            or os.sep in words[0]
            or first.suffix == ".idx"
        ):
            return first, list(words[1:])
        if first.name == words[0].strip() and any(" " in word for word in words[1:]):
            note(f"{first} is no folder, so it is a word of what is looked for in {default}")
    return default, list(words)


def resolve_model(recorded: str, requested: str | None, check: Callable[[str], None]) -> str:
    """The name of the model to load: ``requested``, else as ``recorded`` with the vectors. ``check`` is
    called with its fingerprint, and raises if it is another. Needs no torch."""
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve

    name = recorded if requested is None else lasting_name(requested)
    try:
        model_fingerprint = fingerprint(resolve(name))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; if the model has moved, say where it is with --model") from error
    check(model_fingerprint)
    return name


def open_index(idx: Path, model: str | None, exact: bool = False) -> tuple[PhotoIndex, str]:
    """The index and the name of its model, checked to be the one that built it. Needs no torch."""
    from mmgem.search.index_store import check_fingerprint
    from mmgem.search.search import PhotoIndex

    photos = PhotoIndex.open(idx, exact=exact)
    return photos, resolve_model(photos.model, model, partial(check_fingerprint, idx, photos.fingerprint))


@dataclass(frozen=True, slots=True)
class Shown:
    """How hits are told: by ``lines``, as ``json``, as ``jsonl``, or their ``paths`` alone, each ended by
    ``end``; beside that as a page at ``html``, as a picture at ``sheet``, in the browser; ``preview``: lines
    with their photos."""

    form: str
    end: str = "\n"
    html: Path | None = None
    browser: bool = False
    preview: bool = False
    sheet: Path | None = None


def shown_as(
    as_json: bool,
    html: Path | None,
    paths: bool = False,
    null: bool = False,
    jsonl: bool = False,
    browser: bool = False,
    preview: bool = False,
    sheet: Path | None = None,
) -> Shown:
    """How the options say. Raises UsageError for more than one form."""
    chosen = [
        name for name, given in (("json", as_json), ("jsonl", jsonl), ("paths", paths or null)) if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"give one of {' and '.join(f'--{name}' for name in chosen)}")
    if browser and html is None:
        html = Path(tempfile.mkdtemp(prefix="mmgem-")) / "hits.html"
    return Shown(chosen[0] if chosen else "lines", "\0" if null else "\n", html, browser, preview, sheet)


def print_hits(
    query: Query,
    hits: Sequence[Hit],
    photos: Callable[[], int],
    shown: Shown,
    details: Sequence[str] = (),
    dates: Sequence[datetime | None] = (),
    dated: bool = False,
) -> None:
    """Print the hits, of moments with their seconds, and write them as a page; exits with 1 if there are
    none. ``photos`` counts what was searched; ``details`` are further fields of the hits that the JSON has.
    ``dates``: that of each hit, for a page; ``dated``: for the lines, the JSON and a sheet as well."""
    if shown.html is not None and hits:
        _write_page(shown.html, query, hits, dates)
        if shown.browser:
            import webbrowser

            webbrowser.open(shown.html.resolve().as_uri())
    if shown.sheet is not None and hits:
        _write_sheet(shown.sheet, query, hits, dates if dated else ())
    from mmgem.inference.calibration import MATCH_THRESHOLD

    best = max((hit.match for hit in hits if hit.match is not None), default=1.0)
    if best < MATCH_THRESHOLD and not shown.form.startswith("json"):
        note(f"probably no match: that the best one fits is {best:.0%} likely")
    rows = [_hit_json(hit, details) for hit in hits]
    for row, date in zip(rows, dates if dated else (), strict=False):
        row["date"] = None if date is None else date.isoformat()
    if shown.form == "json":
        _print_object(query, rows, photos)
    if shown.form == "paths":
        for path in dict.fromkeys(hit.path for hit in hits):  # a clip may have several moments
            print(path, end=shown.end)
    for number, hit in enumerate(hits if shown.form in ("jsonl", "lines") else ()):
        if shown.form == "jsonl":
            print_json(rows[number])
        else:
            time = f"\t{format_moment(hit.moment)}" if hit.moment else ""
            box = "\t" + ",".join(f"{x:g}" for x in hit.box) if hit.box else ""
            copies = f"\t{counted(hit.copies, 'copy', 'copies')}" if hit.copies else ""
            first = f"{hit.score:.3f}"
            if dated:
                first = f"{dates[number]:%Y-%m-%d %H:%M}" if dates[number] is not None else "-"
            print(f"{first}\t{hit.path}{time}{box}{copies}")
            if shown.preview and _is_terminal():
                _print_preview(hit)
    if not hits:
        raise typer.Exit(NOTHING_FOUND)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _print_preview(hit: Hit) -> None:
    """The photo of a hit, or its box, in the terminal."""
    from mmgem.data.clips import middle_frame
    from mmgem.data.images import image_size, open_image
    from mmgem.report.terminal import show_in_terminal, terminal_protocol

    protocol = terminal_protocol(os.environ)
    try:
        if hit.moment is None:
            image = open_image(hit.path, min_side=_PREVIEW_PIXELS)
        else:
            image = middle_frame(hit.path, hit.moment, _PREVIEW_PIXELS)
        if hit.box:
            scale = image.width / image_size(hit.path)[0]
            x0, y0, x1, y1 = (round(side * scale) for side in hit.box)
            image = image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    except ImageError as error:
        note(f"no preview of {error}")
        return
    print(show_in_terminal(image, protocol, shutil.get_terminal_size().columns - 1, _PREVIEW_ROWS), end="")


def _print_object(query: Query, rows: Sequence[dict[str, Any]], photos: Callable[[], int]) -> None:
    query_json: dict[str, Any] = {} if query.text is None else {"text": query.text}
    if query.image is not None:
        query_json |= {"image": str(query.image), "box": query.box}
    if query.moment is not None:
        query_json["time"] = query.moment
    if query.terms:
        query_json["terms"] = [_term_json(term) for term in query.terms]
    print_json({"query": query_json, "hits": rows, "photos": photos()})


def _hit_json(hit: Hit, details: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(hit, name) for name in ("score", "match", "copies", "start", "end", *details)}
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
    return {"file": str(hit.path), **rounded, "score": None if math.isnan(hit.score) else rounded["score"]}


def _term_json(term: QueryTerm) -> dict[str, Any]:
    image = str(term.image) if isinstance(term.image, Path) else "frame"
    what = {"text": term.text} if term.text is not None else {"image": image}
    return {**what, "weight": term.weight}


def _write_page(path: Path, query: Query, hits: Sequence[Hit], dates: Sequence[datetime | None]) -> None:
    from mmgem.report.data import QueryRow, Report, SimilarRow
    from mmgem.report.html import write_report

    matches = _matches(hits, dates)
    title = query.text or "Photos by date"
    results: QueryRow | SimilarRow = QueryRow(title, matches)
    if query.image is not None:
        title = query.text or f"Photos like {query.image.name}"
        results = SimilarRow(query.frame or query.image, matches, query.box)
    report = Report(title=title, results=results)
    for problem in write_report(path, report):
        note(f"left blank in {path}: {problem}")
    note(f"wrote {path}")


def _write_sheet(path: Path, query: Query, hits: Sequence[Hit], dates: Sequence[datetime | None]) -> None:
    from mmgem.report.contact_sheet import contact_sheet
    from mmgem.report.data import QueryRow, SimilarRow

    matches = _matches(hits, dates)
    chunks = [matches[at : at + _SHEET_ROW] for at in range(0, len(matches), _SHEET_ROW)]
    rows: list[QueryRow | SimilarRow] = [QueryRow("", chunk) for chunk in chunks]
    if query.text is not None:
        rows[0] = QueryRow(query.text, chunks[0])
    elif query.image is not None:
        rows[0] = SimilarRow(query.frame or query.image, chunks[0], query.box)
    for problem in contact_sheet(path, rows):
        note(f"left blank in {path}: {problem}")
    note(f"wrote {path}")


def _matches(hits: Sequence[Hit], dates: Sequence[datetime | None]) -> list[Match]:
    """The hits for a page or a sheet."""
    from mmgem.report.data import Match

    told = [f"{date:%Y-%m-%d %H:%M}" if date is not None else "" for date in dates] or [""] * len(hits)
    return [
        Match(hit.path, hit.score, hit.box, "", hit.match, hit.moment, hit.path.name, date)
        for hit, date in zip(hits, told, strict=True)
    ]
