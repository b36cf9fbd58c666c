"""``mmgem search``: the photos of an index that fit a text, or are like a photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmgem.cli.inputs import Box, BoxOption, load_model, parse_box
from mmgem.cli.output import JsonOption, note, print_json
from mmgem.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from mmgem.search.places import Place
    from mmgem.search.search import Hit, PhotoIndex


def search(
    idx: Annotated[Path, typer.Argument(metavar="IDX", help="Folder made by mmgem index.")],
    query: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="F", help="Look for photos like this one instead.")
    ] = None,
    box: BoxOption = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Find regions, best of each photo; needs an index with some.")
    ] = False,
    where: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Only regions there: bottom-left, top, middle, ...")
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Ask the model how likely the text is of each of the best.")
    ] = False,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many photos.")] = 10,
    html: Annotated[
        Path | None, typer.Option(metavar="F", help="Write the result as a web page as well.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="M", help="Where the index's model is now.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find photos by a text, or photos like a photo: similarity, a tab, the path; best first.

    The index's own model is used. A photo that is the query is not among its results. With --regions a line
    has the box as well, and place words at the end of a text ("a dog at the bottom left") mean what --where
    does; what lies well there gains up to 0.1. --rerank orders the first 16 (or N, if more) by similarity and
    the probability of the text given each photo: more are right, for more time. With --json: {"query":
    {"text"} or {"image", "box"}, "hits": [{"file", "score"}, with --regions "box", with --rerank "cosine" and
    "log_prob", a token, in nats], "photos"}.
    """
    region = parse_box(box)
    if (query is None) == (image is None):
        raise UsageError("give a text or --image, one of the two")
    if rerank and (image is not None or regions):
        raise UsageError("--rerank needs a text, and finds whole photos")
    if region is not None and image is None:
        raise UsageError("--box needs --image")
    if query is not None and not query.strip():
        raise UsageError("the text to search for is empty")
    if image is not None and not image.is_file():
        raise UsageError(f"{image}: no such file")
    words, place = _place(query, regions, where)
    photos, name = _open(idx, model)
    if regions and not photos.regions:
        raise UsageError(f"{idx}: was made without regions; make an index with: mmgem index DIR --regions 20")
    mmgem = load_model(name)

    def find(vector: np.ndarray, count: int) -> list[Hit]:
        return photos.search_regions(vector, count, place) if regions else photos.search(vector, count)

    hits: Sequence[Hit]
    if rerank and words is not None:
        hits = mmgem.rerank(photos, words, k)
    elif words is not None:
        hits = find(mmgem.embed_texts([words])[0], k)
    else:
        assert image is not None
        vector = mmgem.embed_images([image], [region])[0]
        hits = [hit for hit in find(vector, k + 1) if not _same(hit.path, image)][:k]
    if html is not None:
        _write_page(html, query, image, region, hits)
    if as_json:
        asked = {"text": query} if image is None else {"image": str(image), "box": region}
        found: list[dict[str, Any]] = [{"file": str(h.path), "score": round(h.score, 6)} for h in hits]
        for told, hit in zip(found, hits, strict=True):
            told |= {"box": hit.box} if regions else {}
            told |= {name: round(getattr(hit, name), 6) for name in ("cosine", "log_prob") if rerank}
        print_json({"query": asked, "hits": found, "photos": len(photos.photos)})
    else:
        for hit in hits:
            box_text = "\t" + ",".join(f"{x:g}" for x in hit.box) if hit.box else ""
            print(f"{hit.score:.3f}\t{hit.path}{box_text}")


def _place(query: str | None, regions: bool, where: str | None) -> tuple[str | None, Place | None]:
    """What to look for, and where: by ``--where``, else by the words of the query."""
    from mmgem.search.places import parse_place, split_place

    if where is not None:
        if not regions:
            raise UsageError("--where needs --regions")
        return query, parse_place(where)
    if query is None:
        return None, None
    words, place = split_place(query)
    if regions or place is None:
        return words if regions else query, place if regions else None
    note("place words count with --regions only")
    return query, None


def _open(idx: Path, model: str | None) -> tuple[PhotoIndex, str]:
    """The index and the name of its model, checked to be the one that built it. Needs no torch."""
    from mmgem.models.registry import fingerprint, lasting_name, resolve
    from mmgem.search.search import PhotoIndex
    from mmgem.search.store import check_fingerprint

    photos = PhotoIndex.open(idx)
    if not len(photos):
        raise UsageError(f"{idx}: the index holds no photos")
    name = photos.model if model is None else lasting_name(model)
    try:
        found = fingerprint(resolve(name))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; if the model has moved, say where it is with --model") from error
    check_fingerprint(idx, photos.fingerprint, found)
    return photos, name


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _write_page(
    path: Path, query: str | None, image: Path | None, box: Box | None, hits: Sequence[Hit]
) -> None:
    from mmgem.search.cards import Match, QueryRow, Report, SimilarRow
    from mmgem.search.report import write_report

    matches = [Match(hit.path, hit.score, hit.box) for hit in hits]
    if query is not None:
        report = Report(title=query, queries=[QueryRow(query, matches)])
    else:
        assert image is not None
        report = Report(title=f"Photos like {image.name}", similar=[SimilarRow(image, matches, box)])
    for problem in write_report(path, report):
        note(f"left blank in {path}: {problem}")
    note(f"wrote {path}")
