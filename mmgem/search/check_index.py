"""Look at everything in a photo index: manifest, vectors, HNSW index."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from mmgem.errors import SearchIndexError
from mmgem.search.hnsw import hnsw_problem
from mmgem.search.index_checksums import BLOCK_ROWS
from mmgem.search.index_files import database_file
from mmgem.search.index_records import IndexSnapshot
from mmgem.search.index_store import read_index
from mmgem.search.region_lists import RegionLists
from mmgem.utils.checkup import Checkup
from mmgem.utils.unit_vectors import not_unit_rows

_ROWS_AT_ONCE = 8192
_LISTED = 3
_RULES = (
    (
        "vectors of no photo",
        "rows LEFT JOIN contents c ON c.id = content WHERE c.id IS NULL",
    ),
    ("photos without content", "photos LEFT JOIN contents c ON c.id = content WHERE c.id IS NULL"),
    (
        "photos without a vector",
        "photos p JOIN contents c ON c.id = p.content LEFT JOIN rows r ON r.content = c.id"
        " WHERE r.row IS NULL AND c.problem IS NULL",
    ),
)


def check_index(out: Path) -> Checkup:
    """Read all of the index ``out`` and compare it with its checksums and itself."""
    found = Checkup("index")
    again = f"delete {out} and run mmgem index again"
    try:
        snapshot = read_index(out)
    except SearchIndexError as error:
        found.add(*_parts(error, out, again))
        return found
    found.counts = {
        "photos": len({path for _, path, box in snapshot.entries if box is None}),
        "vectors": len(snapshot.entries),
    }
    if moments := sum(row in snapshot.moments for row, _, _ in snapshot.entries):
        found.counts["moments"] = moments
    repair = f"run mmgem index {snapshot.folder} --out {out} --repair"
    _check_manifest(out, found, again)
    _check_vectors(snapshot, found, repair)
    _check_short_regions(out, snapshot, found, repair)
    if problem := hnsw_problem(out, snapshot):
        found.add(out / "ann", f"the HNSW index {problem}", f"run mmgem index {snapshot.folder} --out {out}")
    if snapshot.blocks is not None and snapshot.blocks.crcs is None:
        found.notes.append(f"{out}: has no checksums, an earlier version wrote it; mmgem index adds them")
    elif not snapshot.manifest_verified:
        found.notes.append(
            f"{out}: no checksum of the last change of its manifest, a run is writing or was killed; the "
            "next mmgem index adds it"
        )
    return found


def _check_manifest(out: Path, found: Checkup, remedy: str) -> None:
    path = database_file(out)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for (line,) in db.execute("PRAGMA integrity_check(3)"):
                if line != "ok":
                    found.add(path, str(line), remedy)
            for what, join in _RULES:
                (count,) = db.execute(f"SELECT count(*) FROM {join}").fetchone()
                if count:
                    found.add(path, f"{count} {what}", remedy)
    except sqlite3.Error as error:
        found.add(path, str(error), remedy)


def _check_vectors(snapshot: IndexSnapshot, found: Checkup, remedy: str) -> None:
    blocks = snapshot.blocks
    assert blocks is not None
    rows = np.array([row for row, _, _ in snapshot.entries], np.int64)
    damaged = blocks.damaged_blocks()
    for block in damaged:
        first, stop = np.searchsorted(rows, [block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS])
        names = list(dict.fromkeys(path for _, path, _ in snapshot.entries[first:stop]))
        what = "checksum does not match" if blocks.crcs is not None else "not finite or not of unit length"
        last = min((block + 1) * BLOCK_ROWS, len(snapshot.vectors)) - 1
        found.add(blocks.path, f"rows {block * BLOCK_ROWS}-{last}: {what} ({_listed(names)})", remedy)
    rows = np.unique(rows[~np.isin(rows // BLOCK_ROWS, damaged)])
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[at : at + _ROWS_AT_ONCE]
        for row in part[not_unit_rows(snapshot.vectors[part])].tolist():
            found.add(blocks.path, f"row {row}: not finite or not of unit length", remedy)


def _check_short_regions(out: Path, snapshot: IndexSnapshot, found: Checkup, remedy: str) -> None:
    regions, state = snapshot.short_regions, snapshot.lists_state
    if regions is None:
        return
    found.counts["regions"] = int(regions.count.sum())
    names: dict[int, list[bytes]] = {}
    for row, path, _ in snapshot.entries:
        names.setdefault(row, []).append(path)
    for block in regions.blocks.damaged_blocks():
        first, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(regions.records))
        spans = np.flatnonzero((regions.first < stop) & (regions.first + regions.count > first))
        photos = [path for row in regions.photo_rows[spans].tolist() for path in names.get(row, [])]
        what = f"rows {first}-{stop - 1}: checksum does not match ({_listed(photos)})"
        found.add(regions.blocks.path, what, remedy)
    if state is not None:
        try:
            RegionLists(out, state, regions).verify()
        except SearchIndexError as error:
            found.add(*_parts(error, out, remedy))


def _listed(names: list[bytes]) -> str:
    texts = [name.decode("utf-8", "backslashreplace") for name in names[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} photos: {', '.join(texts)}{more}"


def _parts(error: SearchIndexError, out: Path, remedy: str) -> tuple[str, str, str]:
    """File, problem and remedy of an error's line."""
    file, _, rest = str(error).partition(": ")
    problem, _, advice = rest.partition("; ")
    return (file, problem, advice or remedy) if problem else (str(out), str(error), remedy)
