"""``mmgem index``: bring the search index of a folder up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import ModelOption, load_model, note_foreign
from mmgem.cli.output import JsonOption, note, note_skipped, print_json
from mmgem.errors import ImageError, UsageError

if TYPE_CHECKING:
    from mmgem.search.ann import Ann, GraphReport
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
    ann: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Keep a graph for fast search among very many: int8, float16, float32 or binary; int8:256: "
            "of so many dimensions; none: no more. Kept.",
        ),
    ] = None,
    model: ModelOption = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Make a search index of a folder of photos, or bring it up to date.

    Only new and changed photos are embedded, so running it again is cheap, and a run that was stopped goes
    on where it was. Photos that cannot be read are listed and left out; if there are no others, the exit code
    is 1. With --json: {"photos", "embedded", "reused", "unchanged", "removed",
    "failed": [{"file", "reason"}], "seconds", "graph": {"kind", "vectors", "added", "bytes", "seconds"} or
    null}.
    """
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
    from mmgem.search.ann import Ann, drop_graph, require_usearch
    from mmgem.search.index import update_index
    from mmgem.utils.progress import track

    known = fingerprint(resolve(model))
    wanted = None if ann in (None, "none") else Ann.parse(ann)
    if wanted is not None:
        require_usearch()
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
    graph = None
    if ann == "none":
        drop_graph(out)
    else:
        graph = _update_graph(out, wanted)
    if as_json:
        failed = [{"file": str(folder / bad.path), "reason": bad.reason} for bad in report.failed]
        counts = {
            name: getattr(report, name) for name in ("photos", "embedded", "reused", "unchanged", "removed")
        }
        told = None
        if graph is not None:
            told = {"kind": str(graph.ann), "vectors": graph.rows, "added": graph.added, "bytes": graph.bytes}
            told["seconds"] = round(graph.seconds, 3)
        print_json({**counts, "failed": failed, "seconds": round(report.seconds, 3), "graph": told})
        return
    failures = f", {len(report.failed)} not readable" if report.failed else ""
    print(
        f"{out}: {report.photos} photos ({report.embedded} embedded, {report.reused} moved or copied, "
        f"{report.unchanged} unchanged, {report.removed} removed){failures}, {report.seconds:.1f} s"
    )
    if graph is not None:
        print(
            f"{out}: {graph.ann} graph of {graph.rows} vectors ({graph.added} added), "
            f"{graph.bytes / 1e6:.1f} MB, {graph.seconds:.1f} s"
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


def _update_graph(out: Path, wanted: Ann | None) -> GraphReport | None:
    """Bring the graph up to date; one that is there but was not asked for may stay behind."""
    from mmgem.search.ann import update_graph
    from mmgem.utils.progress import track

    def shown(parts: Sequence[slice]) -> Iterator[slice]:
        return track(parts, "Graph", [part.stop - part.start for part in parts], " vectors")

    try:
        return update_graph(out, wanted, progress=shown)
    except UsageError as problem:
        if wanted is not None:
            raise
        note(f"the graph stays as it was: {problem}")
        return None
