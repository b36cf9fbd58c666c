"""``mmgem store``: an index in a vector store, for many processes and machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.filters import (
    CameraOption,
    DateOption,
    FolderOption,
    MinHeightOption,
    MinWidthOption,
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
    QueryArgument,
    at_least,
    parse_query,
    print_hits,
    resolve_model,
    shown_as,
)
from mmgem.cli.inputs import BoxOption, DeviceOption, PrecisionOption, load_query_model
from mmgem.cli.output import JsonOption, note_skipped, print_json
from mmgem.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

PlaceArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="qdrant:URL, qdrant:FOLDER or lance:FOLDER.")
]
CollectionOption = Annotated[str, typer.Option("--name", metavar="N", help="Of the collection or table.")]


@app.callback()
def _store() -> None:
    """Keep an index in a vector store, for many processes and machines: Qdrant or LanceDB."""


@app.command("push", short_help="Bring a store up to date with an index.")
def push(
    idx: Annotated[Path, typer.Argument(metavar="IDX", help="Folder made by mmgem index.")],
    place: PlaceArgument,
    name: CollectionOption = "mmgem",
    as_json: JsonOption = False,
) -> None:
    """Bring a vector store up to date with an index: its photos and regions, with their boxes and sizes.

    Only what is new is sent, and what is gone from the index is removed; a push that was stopped goes on
    where it was. Indexes of several folders may share a collection if one model made them. With --json:
    {"points", "added", "removed", "skipped", "seconds"}.
    """
    from mmgem.search.stores import open_store
    from mmgem.search.stores.push import push as push_index
    from mmgem.utils.progress import track

    def shown(batches: Sequence[slice]) -> Iterator[slice]:
        return track(batches, "Pushing", [batch.stop - batch.start for batch in batches], " vectors")

    with open_store(place, name, create=True) as store:
        report = push_index(idx, store, shown)
    note_skipped([f"{path}: its name is not valid text" for path in report.skipped])
    if as_json:
        counts = {name: getattr(report, name) for name in ("points", "added", "removed")}
        print_json({**counts, "skipped": list(report.skipped), "seconds": round(report.seconds, 3)})
    else:
        print(
            f"{place} ({name}): {report.points} vectors ({report.added} added, {report.removed} removed), "
            f"{report.seconds:.1f} s"
        )


@app.command("search", short_help="Find photos in a store, by words or by a photo.")
def search(
    place: PlaceArgument,
    query: QueryArgument = None,
    image: ImageOption = None,
    box: BoxOption = None,
    folder: FolderOption = None,
    file_name: Annotated[
        str | None, typer.Option("--file-name", metavar="PATTERN", help="Only files of this name: 'IMG_*'.")
    ] = None,
    date: DateOption = None,
    camera: CameraOption = None,
    orientation: OrientationOption = None,
    min_width: MinWidthOption = None,
    min_height: MinHeightOption = None,
    near: NearOption = None,
    min_score: MinScoreOption = None,
    regions: Annotated[bool, typer.Option("--regions", help="Find regions, the best of each photo.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare all, even if the store has an index of its own.")
    ] = False,
    k: CountOption = 10,
    name: CollectionOption = "mmgem",
    html: HtmlOption = None,
    browser: OpenOption = False,
    paths: PathsOption = False,
    null: NullOption = False,
    jsonl: JsonLinesOption = False,
    model: BuiltByOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Find photos in a store by a text, or by a photo: as mmgem search does, with the same output.

    The model that made the vectors is used; another is refused.
    """
    from mmgem.search.stores import open_store
    from mmgem.search.stores.base import check_filters, check_model, search_store, search_store_regions

    parsed = parse_query(query or (), image, box, html)
    shown = shown_as(as_json, html, paths, null, jsonl, browser)
    filters = make_filters(folder, file_name, date, camera, orientation, min_width, min_height, near)
    with open_store(place, name) as store:
        payload = store.any_payload() if store.dim() is not None else None
        if payload is None:
            raise UsageError(f"{store.place}: holds no photos; push an index with: mmgem store push")
        check_filters(store, filters, payload)
        k = k or store.photos()
        model_name = resolve_model(payload.model, model, partial(check_model, store, payload))
        mmgem = load_query_model(model_name, parsed.images, device, precision)
        find = search_store_regions if regions else search_store
        vector = parsed.embed(mmgem, regions=regions)
        hits = parsed.search(lambda count: find(store, vector, count, exact, filters, payload), k)
        if not regions:
            hits = list(parsed.with_match(mmgem, hits, vector, store.photos))
        print_hits(parsed, at_least(hits, min_score), store.photos, shown, ["box"] if regions else [])
