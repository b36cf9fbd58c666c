"""Inverted lists of short regions: which to look at for a query (IVF, doi:10.1109/TPAMI.2010.57).

    IDX/region-lists-V.bin   centroids, the lists' sizes and checksums, then the lists

Regions are assigned to the nearest of some thousand centroids (k-means on a sample of the first axes of their
codec). A list has, for each of its regions, 22 bytes: the row of its record, its centre, and 4 bits of the
difference to the centroid along each of the first axes. A query goes through the lists whose centroids it is
nearest to, contiguous on the disk, and the best by these few bits are the candidates: scores come from the
records. Regions that are not in the lists yet are all candidates.

The lists are made from the records and can be made again, like an HNSW index: a damaged file is an error
that names it, and goes with ``mmgem index --repair``. A file is never changed in place: the next version is
written and synced before the manifest names it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmgem.errors import SearchIndexError
from mmgem.search.index_files import errors_naming, read_meta
from mmgem.search.region_codes import RegionCodec
from mmgem.search.region_records import ListsState, ShortRegions
from mmgem.search.region_rows import count_records, read_codec, read_short_regions
from mmgem.search.spatial_filter import SPATIAL_WEIGHT, SpatialFilter
from mmgem.utils.files import sync_folder

LISTS_FROM = 20_000
"""Regions beside the lists from which on they are added to them."""
_META = "region_lists"
_COARSE_AXES = 64  # of centroids
_LEAD_BYTES = 16
_LEAD_AXES = 2 * _LEAD_BYTES  # of a region in its list
_LEAD_STEP = 0.3352  # standard deviations, see region_codes
_LISTS_A_ROOT = 2  # as many lists as this times the root of the regions
_SAMPLE_A_LIST = 32
_ROUNDS = 8
_REFIT_GROWTH = 4  # times the regions that the centroids were fitted on, from which on they are fitted anew
_ROWS_AT_ONCE = 4096
_COMPARED_AT_ONCE = 512  # rows with all centroids
_PROBED = 0.15  # of all regions that are looked at
_MIN_PROBED = 100_000
_SAMPLED = 32  # scores of one in so many tell where the highest begin
_CENTRE = 255  # shares of a photo's side, in which a centre is kept
_EDGE = np.float32(0.02)  # what a rounded centre can lack of a place's bonus
_ENTRY = np.dtype([("row", "<u4"), ("centre", "u1", (2,)), ("lead", "u1", (_LEAD_BYTES,))])


class RegionLists:
    """The lists of ``regions``, memory-mapped. Raises SearchIndexError if they are damaged."""

    def __init__(self, out: Path, state: ListsState, regions: ShortRegions) -> None:
        self.path, self.state, self.rows = out / state.file, state, state.rows
        size = state.head_bytes + state.rows * _ENTRY.itemsize
        with errors_naming(self.path):
            if self.path.stat().st_size != size:
                raise self._damaged()
            data = np.memmap(self.path, np.uint8, "r")
        head = data[: state.head_bytes].tobytes()
        if zlib.crc32(head) != state.crc:
            raise self._damaged()
        floats = 4 * (state.lists * state.axes + state.leads)
        numbers = np.frombuffer(head[:floats], "<f4")
        self.centroids = numbers[: state.lists * state.axes].reshape(state.lists, state.axes)
        self.steps = numbers[state.lists * state.axes :]
        self.sizes = np.frombuffer(head[floats : floats + 8 * state.lists], "<i8")
        self._crcs = np.frombuffer(head[floats + 8 * state.lists :], "<u4")
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.entries = data[state.head_bytes :].view(_ENTRY)
        self._seen = np.zeros(state.lists, bool)
        self._inverse_steps = 1 / regions.codec.steps

    def _damaged(self) -> SearchIndexError:
        return SearchIndexError(f"{self.path}: damaged; mmgem index --repair makes it again")

    def verify(self, lists: np.ndarray | None = None) -> None:
        """Compare the checksums of ``lists`` (None: all) that have not been."""
        wanted = np.arange(self.state.lists) if lists is None else lists
        for number in wanted[~self._seen[wanted]].tolist():
            if zlib.crc32(self._entries(number).tobytes()) != self._crcs[number]:
                raise self._damaged()
            self._seen[number] = True

    def _entries(self, number: int) -> np.ndarray:
        start = self.starts[number]
        return self.entries[start : start + self.sizes[number]]

    def candidates(
        self, query: np.ndarray, count: int, passed: np.ndarray | None, where: SpatialFilter | None
    ) -> np.ndarray:
        """``count`` rows, int64, that are best for ``query`` (d,) float32 in the place ``where`` by what the
        lists have of them, in no order, of those that ``passed`` (R,) bool (None: all)."""
        in_vectors = query * self._inverse_steps  # of the codec: for coordinates, not for steps
        lead_query = np.zeros(_LEAD_AXES, np.float32)
        lead_query[: self.state.leads] = in_vectors[: self.state.leads] * self.steps
        low, high, middle = lead_query[:_LEAD_BYTES], lead_query[_LEAD_BYTES:], 7.5 * lead_query.sum()
        near = self.centroids @ in_vectors[: self.state.axes]
        best_first = np.argsort(-near)
        budget = max(_MIN_PROBED, _PROBED * self.rows)
        probed = best_first[: int(np.searchsorted(np.cumsum(self.sizes[best_first]), budget)) + 1]
        probed = np.sort(probed[self.sizes[probed] > 0])
        self.verify(probed)
        pieces = [self._entries(number) for number in probed.tolist()]
        if not pieces:
            return np.zeros(0, np.int64)

        def scores_of(numbers: slice) -> list[np.ndarray]:
            return [
                (piece["lead"] & 15).astype(np.float32) @ low
                + (piece["lead"] >> 4).astype(np.float32) @ high
                + (near[number] - middle)
                for number, piece in zip(probed[numbers].tolist(), pieces[numbers], strict=True)
            ]

        half = len(pieces) // 2
        with ThreadPoolExecutor(2) as pool:
            parts = pool.map(scores_of, (slice(half), slice(half, None)))
            scores = np.concatenate([piece for part in parts for piece in part])
        if where is not None:
            centres = np.concatenate([piece["centre"] for piece in pieces]).view("<u2")[:, 0]
            bonus = _scores_of_centres(where)[centres]
            scores = np.where(bonus > -_EDGE, scores + SPATIAL_WEIGHT * bonus, -np.inf)
        if passed is not None:
            scores[~passed[np.concatenate([piece["row"] for piece in pieces])]] = -np.inf
        chosen = _highest(scores, count)
        ends = np.cumsum([len(piece) for piece in pieces])
        places = np.searchsorted(ends, chosen, "right")
        offsets = chosen - ends[places] + self.sizes[probed][places] + self.starts[probed][places]
        return self.entries["row"][offsets].astype(np.int64)


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` highest of ``scores`` (n,) are, in no order; fewer if the rest are ``-inf``."""
    candidates = np.zeros(0, np.int64)
    sample, rank = scores[::_SAMPLED], 2 * count // _SAMPLED
    if 0 < rank < len(sample):  # a threshold that about twice as many pass, all of the highest among them
        candidates = np.flatnonzero(scores >= np.partition(sample, len(sample) - rank)[len(sample) - rank])
    if len(candidates) < count:
        candidates = np.arange(len(scores))
    candidates = candidates[scores[candidates] > -np.inf]
    if len(candidates) <= count:
        return candidates
    return candidates[np.argpartition(-scores[candidates], count)[:count]]


def _scores_of_centres(where: SpatialFilter) -> np.ndarray:
    """What ``where`` says of every centre that a list can have, (65536,) float32, by its two bytes."""
    down, across = np.divmod(np.arange(1 << 16, dtype=np.float32), np.float32(_CENTRE + 1))
    return where.scores(np.stack([across, down, across, down], axis=1) / _CENTRE)


class NewLists:
    """A version of the lists: on the disk, and not yet named."""

    def __init__(self, out: Path, state: ListsState) -> None:
        self._out, self._state = out, state

    def name(self, db: sqlite3.Connection) -> None:
        """Name it, in a transaction."""
        db.execute("REPLACE INTO meta VALUES (?, ?)", (_META, json.dumps(dataclasses.asdict(self._state))))

    def sweep(self) -> None:
        """Remove other versions."""
        for stray in self._out.glob("region-lists-*.bin"):
            if stray.name != self._state.file:
                with suppress(OSError):  # Windows keeps a file that a reader has mapped
                    stray.unlink()


def read_lists_state(db: sqlite3.Connection) -> ListsState | None:
    """The lists of the records as they are numbered now; None: there are none."""
    stored = read_meta(db, _META)
    if stored is None:
        return None
    state = ListsState(**json.loads(stored))
    return state if state.generation == read_meta(db, "generation") else None


def forget_damaged_lists(db: sqlite3.Connection, out: Path) -> None:
    """Have lists that are damaged made again, in a transaction."""
    state, regions = read_lists_state(db), read_short_regions(db, out)
    if state is None or regions is None:
        return
    try:
        RegionLists(out, state, regions).verify()
    except SearchIndexError:  # of no generation: the next version has another name
        forgotten = dataclasses.replace(state, generation=-1)
        db.execute("REPLACE INTO meta VALUES (?, ?)", (_META, json.dumps(dataclasses.asdict(forgotten))))


def new_region_lists(db: sqlite3.Connection, out: Path) -> NewLists | None:
    """Write lists of all records, if those that there are lack many; None: it is not needed."""
    state = read_lists_state(db)
    if read_codec(db) is None or count_records(db) - (0 if state is None else state.rows) < LISTS_FROM:
        return None
    regions = read_short_regions(db, out)
    assert regions is not None
    regions.blocks.verify()
    version = int(json.loads(read_meta(db, _META) or '{"version": 0}')["version"]) + 1
    builder = _Builder(regions)
    if state is None or len(regions.records) >= _REFIT_GROWTH * state.fitted:
        builder.fit()
    else:
        builder.go_on(RegionLists(out, state, regions))
    generation = int(read_meta(db, "generation"))
    return NewLists(out, builder.write(out, generation, version))


class _Builder:
    """The lists of ``regions``, in memory while they are made."""

    def __init__(self, regions: ShortRegions) -> None:
        self.regions, self.codec = regions, regions.codec
        axes = len(self.codec.steps)
        self.axes, self.leads = min(_COARSE_AXES, axes), min(_LEAD_AXES, axes)
        self.fitted = len(regions.records)
        self.labels = np.zeros(0, np.int32)
        self.entries = np.zeros(0, _ENTRY)

    def _coordinates(self, records: np.ndarray) -> np.ndarray:
        return self.codec.units(records, self.axes) * self.codec.steps[: self.axes]

    def fit(self) -> None:
        """Centroids and steps from a sample."""
        total = self.fitted
        lists = max(1, int(_LISTS_A_ROOT * total**0.5))
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(total, min(total, lists * _SAMPLE_A_LIST), replace=False))
        sample = self._coordinates(self.regions.records[rows])
        self.centroids = sample[rng.choice(len(sample), lists, replace=False)]
        for _ in range(_ROUNDS):
            labels = nearest_centroids(sample, self.centroids)
            order = np.argsort(labels, kind="stable")
            used, starts = np.unique(labels[order], return_index=True)
            sums = np.add.reduceat(sample[order].astype(np.float64), starts)
            counts = np.diff(np.append(starts, len(sample)))
            self.centroids[used] = (sums / counts[:, None]).astype(np.float32)
        rest = (sample - self.centroids[nearest_centroids(sample, self.centroids)])[:, : self.leads]
        self.steps = (np.maximum(rest.std(0), 1e-9) * _LEAD_STEP).astype(np.float32)

    def go_on(self, before: RegionLists) -> None:
        """Take over what ``before`` has."""
        before.verify()
        self.centroids, self.steps = before.centroids, before.steps
        self.fitted = before.state.fitted
        self.labels = np.repeat(np.arange(before.state.lists, dtype=np.int32), before.sizes)
        self.entries = np.array(before.entries)

    def write(self, out: Path, generation: int, version: int) -> ListsState:
        """Assign the records that are not in the lists yet, and write all of them, synced."""
        records, lists = self.regions.records, len(self.centroids)
        done, total = len(self.entries), len(records)
        entries, labels = np.empty(total, _ENTRY), np.empty(total, np.int32)
        entries[:done], labels[:done] = self.entries, self.labels
        for at in range(done, total, _ROWS_AT_ONCE):
            block = slice(at, min(at + _ROWS_AT_ONCE, total))
            coordinates = self._coordinates(records[block])
            labels[block] = nearest_centroids(coordinates, self.centroids)
            rest = (coordinates - self.centroids[labels[block]])[:, : self.leads]
            entries["row"][block] = np.arange(block.start, block.stop)
            levels = np.full((len(rest), _LEAD_AXES), 8, np.uint8)
            levels[:, : self.leads] = (np.floor(rest / self.steps) + 8).clip(0, 15)
            entries["lead"][block] = levels[:, :_LEAD_BYTES] | levels[:, _LEAD_BYTES:] << 4
            boxes = RegionCodec.boxes(records[block])
            entries["centre"][block] = np.rint((boxes[:, :2] + boxes[:, 2:]) / 2 * _CENTRE)
        order = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=lists).astype("<i8")
        stops = np.cumsum(sizes).tolist()
        file = f"region-lists-{version}.bin"
        path, crcs = out / file, []
        with errors_naming(path), path.open("wb") as target:
            state = ListsState(file, generation, total, lists, self.axes, self.leads, self.fitted, 0, version)
            target.seek(state.head_bytes)
            for start, stop in zip([0, *stops], stops, strict=False):
                data = entries[order[start:stop]].tobytes()
                crcs.append(zlib.crc32(data))
                target.write(data)
            head = self.centroids.astype("<f4").tobytes() + self.steps.astype("<f4").tobytes()
            head += sizes.tobytes() + np.array(crcs, "<u4").tobytes()
            target.seek(0)
            target.write(head)
            target.flush()
            os.fsync(target.fileno())
            sync_folder(out)
        return dataclasses.replace(state, crc=zlib.crc32(head))


def nearest_centroids(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of ``centroids`` (m, d) to each of ``rows`` (n, d) float32: (n,) int32."""
    half_squares = np.square(centroids).sum(1) / 2
    labels = np.empty(len(rows), np.int32)
    for at in range(0, len(rows), _COMPARED_AT_ONCE):
        block = slice(at, at + _COMPARED_AT_ONCE)
        labels[block] = (rows[block] @ centroids.T - half_squares).argmax(1)
    return labels
