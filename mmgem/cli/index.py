"""``mmgem index``: bring the search index of a folder of photos and clips up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import (
    DeviceOption,
    PrecisionOption,
    default_index,
    default_model,
    load_model,
    note_left_out,
)
from mmgem.cli.output import JsonOption, counted, note, note_skipped, print_json
from mmgem.errors import ImageError, UsageError

if TYPE_CHECKING:
    from mmgem.bulk.precomputed import PrecomputedEmbedder
    from mmgem.search.hnsw import HNSWConfig, HNSWReport
    from mmgem.search.index import Embedder


IndexedFoldersArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DIR", help="Folders of photos, added to those that the index has."),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="IDX", help="Folder of the index, if not the default one."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave out files and folders of this name or path. Kept."),
]


def index(
    folders: IndexedFoldersArgument = None,
    out: OutOption = None,
    exclude: ExcludeOption = None,
    regions: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Make up to N regions of each photo findable too; kept."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What mmgem bulk wrote: photos in it are not embedded again."),
    ] = None,
    hnsw: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Keep an HNSW index for fast search among very many, quantized to int8, float16, float32 or "
            "binary; int8:256: of so many dimensions; none: no more. Kept.",
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Look for damaged vectors, and embed their photos again.")
    ] = False,
    ann: Annotated[str | None, typer.Option(hidden=True)] = None,  # the name of --hnsw until 0.1
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="M", help="The index's own, or tiny, if not given.")
    ] = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Make a search index of folders of photos, or bring it up to date; without DIR, of those it has.

    Without --out it is the one that mmgem search looks into when it is given none: $MMGEM_INDEX, or
    mmgem/photos.idx in ~/.local/share.
    Only new and changed photos are embedded, so running it again is cheap, and a run that was stopped goes
    on where it was. Photos that cannot be read are listed and left out; if there are no others, the exit code
    is 1. mmgem check says whether an index is still whole.

    Videos (pip install 'mmgem[video]') and animated pictures are clips: each shot of one is a moment, which a
    search finds with its seconds.

    With --json: {"photos": of which "clips" move, and have "moments", "embedded", "reused", "unchanged",
    "removed", "failed": [{"file", "reason"}], "seconds", with --vectors "taken_over",
    "graph": {"kind", "vectors", "added", "bytes", "seconds"} or null}.
    """
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
    from mmgem.search.hnsw import HNSWConfig, drop_hnsw_index, require_usearch
    from mmgem.search.index import update_index
    from mmgem.utils.progress import track

    out = default_index() if out is None else out
    model = index_model(model, out)
    model_fingerprint = fingerprint(resolve(model))
    hnsw = ann if hnsw is None else hnsw
    config = None if hnsw in (None, "none") else HNSWConfig.parse(hnsw)
    if config is not None:
        require_usearch()
    load = partial(load_model, model, device, precision)
    precomputed = None if vectors is None else _precomputed(vectors, model_fingerprint, load)
    report = update_index(
        out,
        folders or [],
        load if precomputed is None else lambda: precomputed,
        model_fingerprint,
        exclude=None if exclude is None else [pattern for pattern in exclude if pattern],
        model=lasting_name(model),
        regions=regions,
        repair=repair,
        progress=partial(track, label="Indexing", unit=" photos"),
    )
    note_left_out(report.folders, out)
    folder = report.folders[0]
    if not report.photos and not report.failed:
        raise UsageError(f"{folder}: no photos in this folder")
    note_skipped([f"{folder / bad.path}: {bad.explanation}" for bad in report.failed])
    if not report.photos:
        raise ImageError(f"{folder}: none of the {len(report.failed)} photos could be read")
    if report.shortened:
        note(f"{out}: its regions are many and kept in short codes from now on, a tenth of the disk")
    hnsw_report = None
    if hnsw == "none":
        drop_hnsw_index(out)
    else:
        hnsw_report = refresh_hnsw_index(out, config)
    if as_json:
        failed = [{"file": str(folder / bad.path), "reason": bad.explanation} for bad in report.failed]
        counts = {
            name: getattr(report, name)
            for name in ("photos", "clips", "moments", "embedded", "reused", "unchanged", "removed")
        }
        if precomputed is not None:
            counts["taken_over"] = precomputed.taken
        hnsw_json = None
        if hnsw_report is not None:
            hnsw_json = {
                "kind": str(hnsw_report.config),
                "vectors": hnsw_report.rows,
                "added": hnsw_report.added,
                "bytes": hnsw_report.bytes,
            }
            hnsw_json["seconds"] = round(hnsw_report.seconds, 3)
        print_json({**counts, "failed": failed, "seconds": round(report.seconds, 3), "graph": hnsw_json})
        return
    taken = "" if precomputed is None else f", {precomputed.taken} of them taken over from {vectors}"
    failures = f", {len(report.failed)} not readable" if report.failed else ""
    clips = f", {report.clips} of them clips of {report.moments} moments" if report.clips else ""
    print(
        f"{out}: {counted(report.photos, 'photo')}{clips} ({report.embedded} embedded{taken}, "
        f"{report.reused} moved or copied, {report.unchanged} unchanged, {report.removed} removed)"
        f"{failures}, {report.seconds:.1f} s"
    )
    if hnsw_report is not None:
        print(
            f"{out}: {hnsw_report.config} HNSW index of {hnsw_report.rows} vectors "
            f"({hnsw_report.added} added), {hnsw_report.bytes / 1e6:.1f} MB, {hnsw_report.seconds:.1f} s"
        )


def index_model(model: str | None, out: Path) -> str:
    """The model to index with: ``model``, else that of the index ``out``, else the default one."""
    from mmgem.search.index_files import stored_model

    return model or stored_model(out) or default_model()


def _precomputed(vectors: Path, fingerprint: str, load: Callable[[], Embedder]) -> PrecomputedEmbedder:
    from mmgem.bulk.precomputed import PrecomputedEmbedder

    return PrecomputedEmbedder(vectors, fingerprint, load)


def refresh_hnsw_index(out: Path, config: HNSWConfig | None) -> HNSWReport | None:
    """Bring the HNSW index up to date; one that is there but was not asked for may stay behind."""
    from mmgem.search.hnsw import update_hnsw_index
    from mmgem.utils.progress import track

    def shown(batches: Sequence[slice]) -> Iterator[slice]:
        return track(batches, "HNSW index", [batch.stop - batch.start for batch in batches], " vectors")

    try:
        return update_hnsw_index(out, config, progress=shown)
    except UsageError as problem:
        if config is not None:
            raise
        note(f"the HNSW index stays as it was: {problem}")
        return None
