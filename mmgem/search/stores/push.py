"""Bring a store up to date with an index: add what it lacks, remove what the index no longer has.

Ids say what is the same (:mod:`mmgem.search.stores.base`), so nothing is sent twice, and a push that was
stopped goes on where it was. What is gone is removed first: a changed photo is never found as it was. Points
from the index of another folder are left alone, so several indexes can share a collection.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import SearchIndexError
from mmgem.search.index_metadata import PhotoTable
from mmgem.search.index_store import IndexSnapshot, read_index
from mmgem.search.stores.base import Payload, Points, VectorStore, check_model, moment_text, point_id

_log = logging.getLogger(__name__)

_REMOVE_BATCH_SIZE = 1000


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
    if snapshot.short_regions is not None:
        _log.warning("%s: holds short regions, which stay in it; only its photos are pushed", out)
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
    folder, number_by_id, skipped = str(snapshot.folder), {}, []
    for number, (row, path, box) in enumerate(snapshot.entries):
        try:
            path.decode()
        except UnicodeDecodeError:
            skipped += [os.fsdecode(path)] if box is None else []
        else:
            place = moment_text(*snapshot.moments[row]) if row in snapshot.moments else box
            number_by_id[
                point_id(
                    str(snapshot.folder), path.decode(), place, snapshot.fingerprint, snapshot.vectors[row]
                )
            ] = number
    stored_ids = store.ids(folder)
    stale = sorted(stored_ids - number_by_id.keys())
    for at in range(0, len(stale), _REMOVE_BATCH_SIZE):
        store.remove(stale[at : at + _REMOVE_BATCH_SIZE])
    missing = [(name, number) for name, number in number_by_id.items() if name not in stored_ids]
    step = store.batch
    for batch in progress([slice(at, min(at + step, len(missing))) for at in range(0, len(missing), step)]):
        store.add(_points(snapshot, folder, missing[batch], facts))
    seconds = time.perf_counter() - began
    return PushReport(len(number_by_id), len(missing), len(stale), tuple(dict.fromkeys(skipped)), seconds)


def _points(
    snapshot: IndexSnapshot,
    folder: str,
    entries: Sequence[tuple[str, int]],
    facts: Mapping[bytes, Mapping[str, Any]],
) -> Points:
    """The points of some (id, number of the entry); ``facts``: what filters ask for, by path."""
    assert snapshot.sizes is not None
    payloads, rows = [], []
    for _, number in entries:
        row, path, box = snapshot.entries[number]
        width, height = snapshot.sizes[row].tolist()
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
    return Points([name for name, _ in entries], np.asarray(snapshot.vectors[rows]), payloads)
