"""``mmgem search``: the photos of an index that fit a text, or are like a photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.hits import (
    BuiltByOption,
    CountOption,
    HtmlOption,
    ImageOption,
    QueryArgument,
    open_index,
    parse_question,
    tell,
)
from mmgem.cli.inputs import BoxOption, load_model
from mmgem.cli.output import JsonOption, note
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.search.places import Place
    from mmgem.search.search import Hit


def search(
    idx: Annotated[Path, typer.Argument(metavar="IDX", help="Folder made by mmgem index.")],
    query: QueryArgument = None,
    image: ImageOption = None,
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
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare all, even if the index keeps a graph.")
    ] = False,
    k: CountOption = 10,
    html: HtmlOption = None,
    model: BuiltByOption = None,
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
    question = parse_question(query, image, box, html)
    if rerank and (image is not None or regions):
        raise UsageError("--rerank needs a text, and finds whole photos")
    words, place = _place(query, regions, where)
    photos, name = open_index(idx, model, exact)
    if not len(photos):
        raise UsageError(f"{idx}: the index holds no photos")
    if regions and not photos.regions:
        raise UsageError(
            f"{idx}: was made without regions; make an index with: mmgem index DIR --out NEW.idx --regions 20"
        )
    mmgem = load_model(name)
    hits: Sequence[Hit]
    if rerank and words is not None:
        hits = mmgem.rerank(photos, words, k)
    else:
        find = partial(photos.search_regions, place=place) if regions else photos.search
        hits = question.answer(partial(find, question.vector(mmgem, words)), k)
    details = ["box"] if regions else ["cosine", "log_prob"] if rerank else []
    tell(question, hits, lambda: len(photos.photos), html, as_json, details)


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
