"""``mmgem watch``: keep an index up to date while photos come, change and go."""

from __future__ import annotations

import time
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.index import ExcludeOption, IndexedFoldersArgument, OutOption, index_model, refresh_hnsw_index
from mmgem.cli.inputs import DeviceOption, PrecisionOption, default_index, load_model
from mmgem.cli.output import exit_now, note, note_skipped
from mmgem.errors import BusyError, EmptyFolderError, MissingFolderError, SearchIndexError

if TYPE_CHECKING:
    from mmgem.search.index import IndexReport


def watch(
    folders: IndexedFoldersArgument = None,
    out: OutOption = None,
    exclude: ExcludeOption = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="M", help="The index's own, or tiny, if not given.")
    ] = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
) -> None:
    """Keep an index up to date as photos are added, changed, moved and removed, until interrupted.

    It is made as mmgem index makes it, and brought up to date whenever something has changed and nothing
    more does for a moment: a line each time, "12:03:05 3 embedded, 1 removed; 1204 photos". While another
    process writes the index it waits, and a folder that is gone keeps its photos until it comes back.
    """
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
    from mmgem.search.index import update_index
    from mmgem.search.index_files import stored_folders
    from mmgem.search.watch import require_watchfiles, watch_folders
    from mmgem.utils.progress import track

    require_watchfiles()
    out = default_index() if out is None else out
    name = index_model(model, out)
    run = partial(
        update_index,
        out,
        fingerprint=fingerprint(resolve(name)),
        make_embedder=cache(partial(load_model, name, device, precision)),
        model=lasting_name(name),
        progress=partial(track, label="Indexing", unit=" photos"),
    )

    def bring_up_to_date(folders: list[Path], exclude: list[str] | None = None) -> IndexReport:
        report = run(folders=folders, exclude=exclude)
        if report.embedded or report.reused or report.removed:
            refresh_hnsw_index(out, None)
        return report

    first = bring_up_to_date(folders or [], None if exclude is None else [p for p in exclude if p])
    state = _Told()
    state.tell(first)
    note(f"watching {', '.join(map(str, first.folders))}; stop with Ctrl-C")

    def update() -> bool:
        try:
            report = bring_up_to_date([])
        except (SearchIndexError, MissingFolderError) as error:
            away = isinstance(error, EmptyFolderError | MissingFolderError)
            if not away and not isinstance(error.__cause__, BusyError):
                raise
            state.wait(str(error))
            return False
        state.tell(report)
        return True

    try:
        watch_folders(lambda: stored_folders(out) or first.folders, out, update)
    except KeyboardInterrupt:
        note("stopped watching")
        exit_now()  # at once; what was done is on the disk


class _Told:
    """What has been said already."""

    def __init__(self) -> None:
        self.problem = ""
        self.failed: set[str] = set()

    def wait(self, problem: str) -> None:
        """Say once what an update waits for."""
        if problem != self.problem:
            note(f"waiting: {problem}")
        self.problem = problem

    def tell(self, report: IndexReport) -> None:
        """A line for what a run did, and one for each photo that it could not read; nothing if it did
        nothing."""
        self.problem = ""
        failed = {f"{report.folders[0] / bad.path}: {bad.explanation}" for bad in report.failed}
        note_skipped(sorted(failed - self.failed))
        self.failed = failed
        counts = {
            "embedded": report.embedded,
            "moved or copied": report.reused,
            "removed": report.removed,
        }
        if not any(counts.values()):
            return
        done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        print(f"{time.strftime('%H:%M:%S')} {done}; {report.photos} photos", flush=True)
