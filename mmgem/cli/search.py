"""``mmgem search``: the photos of an index that fit a text, or are like a photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.clips import TimeOption
from mmgem.cli.filters import (
    CameraOption,
    ChangedOption,
    DateOption,
    FolderOption,
    LacksOption,
    MinHeightOption,
    MinWidthOption,
    NameOption,
    NearOption,
    OrientationOption,
    make_filters,
)
from mmgem.cli.hits import (
    BuiltByOption,
    CountOption,
    HtmlOption,
    ImageOption,
    JsonLinesOption,
    MinScoreOption,
    NullOption,
    OpenOption,
    PathsOption,
    PreviewOption,
    SheetOption,
    at_least,
    open_index,
    parse_query,
    print_hits,
    shown_as,
    split_words,
)
from mmgem.cli.inputs import BoxOption, DeviceOption, PrecisionOption, load_model, load_query_model
from mmgem.cli.output import JsonOption, note
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.search.hits import Hit
    from mmgem.search.spatial_filter import SpatialFilter


def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IDX] TEXT",
            help="Folder made by mmgem index, if it is not the default one, and what to look for.",
        ),
    ] = None,
    image: ImageOption = None,
    box: BoxOption = None,
    time: TimeOption = None,
    folder: FolderOption = None,
    name: NameOption = None,
    date: DateOption = None,
    camera: CameraOption = None,
    orientation: OrientationOption = None,
    min_width: MinWidthOption = None,
    min_height: MinHeightOption = None,
    near: NearOption = None,
    changed: ChangedOption = None,
    lacks: LacksOption = None,
    min_score: MinScoreOption = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Find regions, best of each photo; needs an index with some.")
    ] = False,
    where: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Only regions there: bottom-left, top, middle, ...")
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Ask the model how likely the text is of each of the best.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare all, even if the index keeps an HNSW index.")
    ] = False,
    by_date: Annotated[
        bool, typer.Option("--by-date", help="The newest first, with dates; without TEXT of all photos.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="List copies of a photo too, not once with their number.")
    ] = False,
    k: CountOption = 10,
    html: HtmlOption = None,
    sheet: SheetOption = None,
    browser: OpenOption = False,
    paths: PathsOption = False,
    null: NullOption = False,
    preview: PreviewOption = False,
    jsonl: JsonLinesOption = False,
    model: BuiltByOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Find photos by a text, or photos like a photo: similarity, a tab, the path; best first.

    Words need no quotes. A quoted text, or one with a sign, is a term of its own: '"a dog" -"snow"' is a dog
    but rather no snow, '"a dog"^2 +photo.jpg' a dog that is like the photo, and twice as much a dog. The exit
    code is 1 if nothing is found.

    The index's own model is used. A photo that is the query is not among its results, and copies of one, the
    same bytes or the same picture resized, compressed again, brightened or slightly cropped, are listed once,
    with their number (not with --regions).

    With --regions a line has the box as well, and place words at the end of a text ("a dog at the bottom
    left") mean what --where does; what lies well there gains up to 0.1. --rerank orders the first 16 (or N,
    if more) by similarity and the probability of the text given each photo: more are right, for longer.

    A clip is found by its moments: a line has their start and end in seconds as well. With --image of a clip
    and --time it is a frame of it that is looked for.

    With --json: {"query": {"text", "image", "box", "time", "terms"}, what there is of them, "hits": [{"file",
    "score", "match", "copies", "start", "end": of a moment, null for a photo}, with --regions "box", with
    --rerank "cosine" and "log_prob", a token, in nats], "photos": how many pass the filters}.

    "match" is the probability that a whole photo is what a text asked for, null if the model has no
    calibration (mmgem calibrate). If no hit reaches 0.5, a line on standard error says so.
    """
    idx, query = split_words(words or [])
    parsed = parse_query(query, image, box, html, by_date, sheet, time)
    shown = shown_as(as_json, html, paths, null, jsonl, browser, preview, sheet)
    places = near, changed, lacks
    filters = make_filters(folder, name, date, camera, orientation, min_width, min_height, *places)
    if rerank and (parsed.text is None or parsed.terms or regions):
        raise UsageError("--rerank needs a text, and finds whole photos")
    from mmgem.search.by_date import hit_dates, newest, newest_first
    from mmgem.search.duplicates import fold_copies

    text, spatial_filter = _spatial_filter(None if parsed.terms else parsed.text, regions, where)
    photos, model_name = open_index(idx, model, exact)
    if not len(photos):
        raise UsageError(f"{idx}: the index holds no photos")
    if regions and not photos.regions:
        raise UsageError(
            f"{idx}: was made without regions; make an index with: mmgem index DIR --out NEW.idx --regions 20"
        )
    photos = photos.filtered(filters)
    k = k or max(1, len(photos.photos))
    hits: Sequence[Hit] = []
    if not len(photos):
        note("no photo passes the filters")
    elif parsed.text is None and parsed.image is None:
        if regions or min_score is not None:
            raise UsageError("--regions and --min-score need a text or --image")
        hits = newest(photos, k)
    elif rerank and text is not None:
        rerank_photos = load_model(model_name, device, precision).reranker(photos, text)
        hits = rerank_photos(k) if everything else fold_copies(photos, rerank_photos, k)
    else:
        mmgem = load_query_model(model_name, parsed.images, device, precision)
        find = partial(photos.search_regions, where=spatial_filter) if regions else photos.search
        vector = parsed.embed(mmgem, text, regions)
        hits = parsed.search(partial(find, vector), k, None if everything or regions else photos)
        if not regions:
            hits = parsed.with_match(mmgem, hits, vector, lambda: len(photos.photos))
    hits = at_least(hits, min_score)
    if by_date:
        hits = newest_first(photos, hits)
    dates = hit_dates(photos, hits) if by_date or shown.html is not None else []
    details = ["box"] if regions else ["cosine", "log_prob"] if rerank else []
    print_hits(parsed, hits, lambda: len(photos.photos), shown, details, dates, by_date)


def _spatial_filter(
    query: str | None, regions: bool, where: str | None
) -> tuple[str | None, SpatialFilter | None]:
    """What to look for, and where: by ``--where``, else by the words of the query."""
    from mmgem.search.spatial_filter import parse_spatial_filter, split_query

    if where is not None:
        if not regions:
            raise UsageError("--where needs --regions")
        return query, parse_spatial_filter(where)
    if query is None:
        return None, None
    text, spatial_filter = split_query(query)
    if regions or spatial_filter is None:
        return text if regions else query, spatial_filter if regions else None
    note("place words count with --regions only")
    return query, None
