"""``mmgem index``: bring the search index of a folder up to date."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import ModelOption, load_model, note_foreign
from mmgem.cli.output import JsonOption, note_skipped, print_json
from mmgem.errors import ImageError, UsageError

if TYPE_CHECKING:
    from mmgem.search.index import Embedder


def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos; subfolders are searched.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="IDX", help="Folder of the index.")],
    regions: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Make up to N regions of each photo findable too; kept."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What mmgem bulk wrote: photos in it are not embedded again."),
    ] = None,
    model: ModelOption = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Make a search index of a folder of photos, or bring it up to date.

    Only new and changed photos are embedded, so running it again is cheap, and a run that was stopped goes
    on where it was. Photos that cannot be read are listed and left out; if there are no others, the exit code
    is 1. With --json: {"photos", "embedded", "reused", "unchanged", "removed",
    "failed": [{"file", "reason"}], "seconds"}.
    """
    from mmgem.models.registry import fingerprint, lasting_name, resolve
    from mmgem.progress import track
    from mmgem.search.index import update_index

    known = fingerprint(resolve(model))
    report = update_index(
        out,
        folder,
        _embedder(model, known, vectors),
        known,
        model=lasting_name(model),
        regions=regions,
        progress=partial(track, label="Indexing", unit=" photos"),
    )
    note_foreign(folder)
    if not report.photos and not report.failed:
        raise UsageError(f"{folder}: no photos in this folder")
    note_skipped([f"{folder / bad.path}: {bad.reason}" for bad in report.failed])
    if not report.photos:
        raise ImageError(f"{folder}: none of the {len(report.failed)} photos could be read")
    if as_json:
        failed = [{"file": str(folder / bad.path), "reason": bad.reason} for bad in report.failed]
        counts = {
            name: getattr(report, name) for name in ("photos", "embedded", "reused", "unchanged", "removed")
        }
        print_json({**counts, "failed": failed, "seconds": round(report.seconds, 3)})
        return
    failures = f", {len(report.failed)} not readable" if report.failed else ""
    print(
        f"{out}: {report.photos} photos ({report.embedded} embedded, {report.reused} moved or copied, "
        f"{report.unchanged} unchanged, {report.removed} removed){failures}, {report.seconds:.1f} s"
    )


def _embedder(model: str, fingerprint: str, vectors: Path | None) -> Callable[[], Embedder]:
    """What makes the embedder: the model, or what is known of it in ``vectors``, which is looked at now."""

    def load() -> Embedder:
        return load_model(model)

    if vectors is None:
        return load
    from mmgem.bulk.vectors import BulkVectors

    found = BulkVectors(vectors, fingerprint, load)
    return lambda: found
