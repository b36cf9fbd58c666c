"""Bring a store up to date with an index: add what it lacks, remove what the index no longer has.

Ids say what is the same (:mod:`mmgem.search.stores.base`), so nothing is sent twice, and a push that was
stopped goes on where it was. What is gone is removed first: a changed photo is never found as it was. Points
from the index of another folder are left alone, so several indexes can share a collection. Short regions
(:mod:`mmgem.search.region_rows`) are sent as the float32 vectors that their codes stand for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import SearchIndexError
from mmgem.search.index_store import IndexSnapshot, read_index
from mmgem.search.photo_table import PhotoTable
from mmgem.search.stores.base import Payload, Points, VectorStore, check_model, moment_text, point_id

_REMOVE_BATCH_SIZE = 1000
_HASHED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did: ``points`` of the index are in the store now, ``added`` of them new; ``removed`` were
    there before. ``skipped`` are photos whose paths are not valid text, which stores cannot hold."""

    points: int
    added: int
    removed: int
    skipped: tuple[str, ...]
    seconds: float


def push(
    out: Path,
    store: VectorStore,
    progress: Callable[[Sequence[slice]], Iterable[slice]] = iter,
) -> PushReport:
    """Make ``store`` hold the photos and regions of the index ``out``, making the collection if need be.

    ``progress`` is handed the slices of points to add and gives them back one by one, showing a bar. Raises
    SearchIndexError if the index cannot be read, the store cannot be written, or holds vectors of another
    model or length.
    """
    began = time.perf_counter()
    snapshot = read_index(out, sizes=True)
    if not snapshot.entries:
        raise SearchIndexError(f"{out}: the index holds no photos")
    snapshot.verify()
    dim = snapshot.vectors.shape[1]
    if (store_dim := store.dim()) is None:
        store.create(dim)
    elif store_dim != dim:
        raise SearchIndexError(f"{store.place}: holds vectors of {store_dim} numbers, {out} of {dim}")
    elif (payload := store.any_payload()) is not None:
        check_model(store, payload, snapshot.fingerprint)
    table = PhotoTable(out)
    facts = {} if table.unread else table.facts()
    source, folder, number_by_id, skipped = _Source(snapshot), str(snapshot.folder), {}, []
    for at in range(0, len(source.entries), _HASHED_AT_ONCE):
        entries = source.entries[at : at + _HASHED_AT_ONCE]
        vectors = source.vectors([row for row, _, _ in entries])
        for number, ((row, path, box), vector) in enumerate(zip(entries, vectors, strict=True), at):
            try:
                name = path.decode()
            except UnicodeDecodeError:
                skipped += [os.fsdecode(path)] if box is None else []
                continue
            place = moment_text(*snapshot.moments[row]) if row in snapshot.moments else box
            number_by_id[point_id(folder, name, place, snapshot.fingerprint, vector)] = number
    stored_ids = store.ids(folder)
    stale = sorted(stored_ids - number_by_id.keys())
    for at in range(0, len(stale), _REMOVE_BATCH_SIZE):
        store.remove(stale[at : at + _REMOVE_BATCH_SIZE])
    missing = [(name, number) for name, number in number_by_id.items() if name not in stored_ids]
    step = store.batch
    for batch in progress([slice(at, min(at + step, len(missing))) for at in range(0, len(missing), step)]):
        store.add(_points(source, folder, missing[batch], facts))
    seconds = time.perf_counter() - began
    return PushReport(len(number_by_id), len(missing), len(stale), tuple(dict.fromkeys(skipped)), seconds)


class _Source:
    """What an index holds, as points want it: ``entries`` are those of ``snapshot``, then its short regions,
    whose rows come after those of its vectors."""

    def __init__(self, snapshot: IndexSnapshot) -> None:
        self.snapshot, self.entries = snapshot, list(snapshot.entries)
        self._whole_rows = len(snapshot.vectors)
        regions = snapshot.short_regions
        if regions is None:
            return
        paths_at: dict[int, list[bytes]] = {}
        for row, path, _ in snapshot.entries:
            paths_at.setdefault(row, []).append(path)
        spans = zip(regions.first.tolist(), regions.count.tolist(), strict=True)
        for rows in (np.arange(first, first + count) for first, count in spans):
            photo_rows, boxes = regions.places(rows)
            for row, photo_row, box in zip(rows.tolist(), photo_rows, boxes, strict=True):
                place = json.dumps(box)
                self.entries += [(self._whole_rows + row, path, place) for path in paths_at[photo_row]]

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Of rows (n,): (n, D) float32."""
        numbers = np.asarray(rows, np.int64)
        whole = numbers < self._whole_rows
        vectors = np.empty((len(numbers), self.snapshot.vectors.shape[1]), np.float32)
        vectors[whole] = self.snapshot.vectors[numbers[whole]]
        if self.snapshot.short_regions is not None:
            vectors[~whole] = self.snapshot.short_regions.vectors(numbers[~whole] - self._whole_rows)
        return vectors

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the photo of a row, 0 where they are not known."""
        regions = self.snapshot.short_regions
        if regions is not None and row >= self._whole_rows:
            (width, height) = regions.sizes[regions.spans_of(np.array([row - self._whole_rows]))[0]].tolist()
        else:
            assert self.snapshot.sizes is not None
            width, height = self.snapshot.sizes[row].tolist()
        return width, height


def _points(
    source: _Source,
    folder: str,
    entries: Sequence[tuple[str, int]],
    facts: Mapping[bytes, Mapping[str, Any]],
) -> Points:
    """The points of some (id, number of the entry); ``facts``: what filters ask for, by path."""
    snapshot, payloads, rows = source.snapshot, [], []
    for _, number in entries:
        row, path, box = source.entries[number]
        width, height = source.size(row)
        start, end = snapshot.moments.get(row, (None, None))
        payloads.append(
            Payload(
                path=str(snapshot.folder / path.decode()),
                folder=folder,
                box=None if box is None else tuple(json.loads(box)),
                region=box is not None,
                width=width or None,
                height=height or None,
                fingerprint=snapshot.fingerprint,
                model=snapshot.model,
                below=path.decode() if path in facts else None,
                start=start,
                end=end,
                **facts.get(path, {}),
            )
        )
        rows.append(row)
    return Points([name for name, _ in entries], source.vectors(rows), payloads)
