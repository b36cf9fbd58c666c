"""What is asked of an index or a store, and how the answer is told: one way for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmgem.cli.inputs import Box, look_at, parse_box
from mmgem.cli.output import make_room, note, print_json
from mmgem.errors import CheckpointError, UsageError
from mmgem.utils.files import same_file

if TYPE_CHECKING:
    import numpy as np

    from mmgem.api import MMGEM
    from mmgem.search.search import Hit, PhotoIndex

QueryArgument = Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")]
ImageOption = Annotated[
    Path | None, typer.Option("--image", metavar="F", help="Look for photos like this one instead.")
]
CountOption = Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many photos.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="F", help="Write the result as a web page as well.")
]
BuiltByOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="M", help="Where the model of the vectors is now.")
]


@dataclass(frozen=True, slots=True)
class Question:
    """A text, or a photo or a box of one."""

    text: str | None
    image: Path | None = None
    box: Box | None = None

    def vector(self, mmgem: MMGEM, words: str | None = None) -> np.ndarray:
        """Its embedding (D,); ``words`` are the part of the text that is looked for."""
        if self.text is not None:
            return mmgem.embed_texts([words or self.text])[0]
        assert self.image is not None
        return mmgem.embed_images([self.image], [self.box])[0]

    def answer(self, find: Callable[[int], list[Hit]], k: int) -> list[Hit]:
        """The first ``k`` of what ``find(count)`` finds, without the photo that is asked for."""
        if self.image is None:
            return find(k)
        return [hit for hit in find(k + 1) if not same_file(hit.path, self.image)][:k]


def parse_question(text: str | None, image: Path | None, box: str | None, html: Path | None) -> Question:
    """What the command line asks for. Raises UsageError for nothing, or for more than one thing, for a box
    outside the photo and an ``html`` that cannot be; ImageError for what is no photo."""
    region = parse_box(box)
    if (text is None) == (image is None):
        raise UsageError("give a text or --image, one of the two")
    if region is not None and image is None:
        raise UsageError("--box needs --image")
    if text is not None and not text.strip():
        raise UsageError("the text to search for is empty")
    if image is not None and not image.is_file():
        raise UsageError(f"{image}: no such file")
    if image is not None:
        look_at(image, region)
    if html is not None:
        make_room(html, ".html", ".htm")
    return Question(text, image, region)


def model_of(recorded: str, given: str | None, check: Callable[[str], None]) -> str:
    """The name of the model to load: ``given``, else as ``recorded`` with the vectors. ``check`` is called
    with its fingerprint, and raises if it is another. Needs no torch."""
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve

    name = recorded if given is None else lasting_name(given)
    try:
        found = fingerprint(resolve(name))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; if the model has moved, say where it is with --model") from error
    check(found)
    return name


def open_index(idx: Path, model: str | None, exact: bool = False) -> tuple[PhotoIndex, str]:
    """The index and the name of its model, checked to be the one that built it. Needs no torch."""
    from mmgem.search.search import PhotoIndex
    from mmgem.search.store import check_fingerprint

    photos = PhotoIndex.open(idx, exact=exact)
    return photos, model_of(photos.model, model, partial(check_fingerprint, idx, photos.fingerprint))


def tell(
    question: Question,
    hits: Sequence[Hit],
    photos: Callable[[], int],
    html: Path | None,
    as_json: bool,
    details: Sequence[str] = (),
) -> None:
    """Print the hits, and write them as a page. ``photos`` counts what was searched; ``details`` are further
    fields of the hits that the JSON has."""
    if html is not None:
        _write_page(html, question, hits)
    if not as_json:
        for hit in hits:
            box = "\t" + ",".join(f"{x:g}" for x in hit.box) if hit.box else ""
            print(f"{hit.score:.3f}\t{hit.path}{box}")
        return
    asked: dict[str, Any] = {"text": question.text}
    if question.image is not None:
        asked = {"image": str(question.image), "box": question.box}
    found = []
    for hit in hits:
        more = {name: getattr(hit, name) for name in details}
        rounded = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in more.items()
        }
        found.append({"file": str(hit.path), "score": round(hit.score, 6), **rounded})
    print_json({"query": asked, "hits": found, "photos": photos()})


def _write_page(path: Path, question: Question, hits: Sequence[Hit]) -> None:
    from mmgem.report.cards import Match, QueryRow, Report, SimilarRow
    from mmgem.report.html import write_report

    matches = [Match(hit.path, hit.score, hit.box) for hit in hits]
    if question.text is not None:
        report = Report(title=question.text, queries=[QueryRow(question.text, matches)])
    else:
        assert question.image is not None
        title = f"Photos like {question.image.name}"
        report = Report(title=title, similar=[SimilarRow(question.image, matches, question.box)])
    for problem in write_report(path, report):
        note(f"left blank in {path}: {problem}")
    note(f"wrote {path}")
