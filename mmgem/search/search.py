"""Search an index of photos, by the dot product of unit vectors: exact, or by an HNSW index if there is one.

Notable choices. The vectors stay on the disk, memory-mapped: opening costs the list of paths only, and the
system's page cache keeps the vectors between searches. One pass of a matrix product over all rows, then a
partial sort, is exact and fast enough for hundreds of thousands of photos. An HNSW index
(:mod:`mmgem.search.hnsw`) says which rows to score instead: a few right ones may be missing, but what is
found has its exact score.
Equal scores are ordered by path, then box, so the same search always gives the same list.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache, cached_property
from itertools import compress
from pathlib import Path

import numpy as np

from mmgem.data.images import ImageSource
from mmgem.data.moments import Moment
from mmgem.data.records import Box
from mmgem.data.texts import check_text
from mmgem.errors import SearchIndexError, UsageError
from mmgem.search.filters import Filters
from mmgem.search.hits import Hit, best_of_each_photo, with_match
from mmgem.search.hnsw import HNSWIndex
from mmgem.search.index_store import IndexSnapshot, check_fingerprint, read_index
from mmgem.search.photo_table import PhotoTable
from mmgem.search.query_terms import QueryEmbedder, QueryTerm, embed_terms
from mmgem.search.region_search import RegionSearcher, top_rows
from mmgem.search.spatial_filter import SpatialFilter, apply_spatial_filter
from mmgem.utils.files import same_file
from mmgem.utils.unit_vectors import unit_mean

_log = logging.getLogger(__name__)

# Queries scored at once: bounds the score matrix to 32 numbers per row of the index.
_QUERY_BATCH_SIZE = 32
_FEW = 8  # rows of one in so many, or fewer, are taken out before they are compared


class PhotoIndex:
    """A read-only view of an index as it was when opened.

    Its entries are the things that can be found: a photo (or, with a box, a region of one; or a moment of a
    clip) per entry, in a fixed order shared by :attr:`paths`, :attr:`boxes`, :attr:`moments` and
    :attr:`vectors`. Short regions, of an index with very many (:mod:`mmgem.search.region_rows`), are no
    entries: :meth:`boxes_of` and the searches have them.
    """

    def __init__(
        self,
        snapshot: IndexSnapshot,
        folder: Path,
        hnsw: HNSWIndex | None = None,
        out: Path | None = None,
        exact: bool = False,
    ) -> None:
        """``hnsw``: that of ``snapshot``; None: every search is exact. ``out``: its folder, for filters.
        ``exact``: compare all short regions."""
        self.folder = folder
        self._out = out
        self.hnsw = hnsw
        self.load_embedder: Callable[[], QueryEmbedder] | None = None
        """What :meth:`search_text` and :meth:`search_image` embed with, asked for when it is first needed;
        :func:`mmgem.open_index` sets it."""
        self.fingerprint = snapshot.fingerprint
        self.model = snapshot.model
        self.regions = snapshot.regions
        self._stored, self._verify = snapshot.vectors, snapshot.verify
        self._relative_boxes, self._moments = snapshot.relative_boxes, snapshot.moments
        # Those that filters leave out are still there, and not _passed.
        self._all_entries = snapshot.entries
        self._all_rows = np.array([row for row, _, _ in snapshot.entries], np.int64)
        self._passed: np.ndarray | None = None
        # Entries of row r are _starts[r] : _starts[r + 1]; none for a row no photo points to.
        self._entry_starts = np.searchsorted(self._all_rows, np.arange(len(self._stored) + 1))
        self._is_region = (
            snapshot.is_region if snapshot.is_region is not None else np.zeros(len(self._stored), bool)
        )
        dead = np.diff(self._entry_starts) == 0
        self._not_photos, self._not_boxes = self._is_region | dead, ~self._is_region | dead
        self._short = RegionSearcher.open(snapshot, out, ~self._not_photos, exact)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        folder: Path | None = None,
        fingerprint: str | None = None,
        exact: bool = False,
    ) -> PhotoIndex:
        """Open the index at ``path``; ``folder`` says where the photos are if they have moved since.

        Without ``folder`` they are where they were when indexed or, if that is gone, at the same place
        relative to the index. An HNSW index that it keeps is used, unless ``exact``; one that cannot be is a
        warning in the log, and the search is exact. Raises SearchIndexError if the index is missing or
        damaged, or if ``fingerprint`` is given and the index was built by another model.
        """
        out = Path(path)
        snapshot = read_index(out)
        if fingerprint is not None:
            check_fingerprint(out, snapshot.fingerprint, fingerprint)
        hnsw = None
        try:
            hnsw = None if exact else HNSWIndex.open(out, snapshot)
        except (SearchIndexError, UsageError) as problem:
            _log.warning("%s; searching all vectors until then", problem)
        return cls(snapshot, snapshot.folder if folder is None else Path(folder), hnsw, out, exact)

    def __len__(self) -> int:
        return len(self._all_entries) if self._passed is None else int(self._passed.sum())

    @cached_property
    def _entries(self) -> list[tuple[int, bytes, str | None]]:
        if self._passed is None:
            return self._all_entries
        return list(compress(self._all_entries, self._passed.tolist()))

    @property
    def _rows(self) -> np.ndarray:
        return self._all_rows if self._passed is None else self._all_rows[self._passed]

    def filtered(self, filters: Filters) -> PhotoIndex:
        """This index as if it held only the photos that pass ``filters``, for any search.

        What is known of the photos is read when it is first asked for, as it is then. Raises SearchIndexError
        if an earlier version made the index and nothing is known yet, UsageError for a folder outside of it.
        """
        if not filters:
            return self
        table, numbers = self.photo_table, self._table_numbers
        if filters.needs_metadata and table.unread:
            raise SearchIndexError(
                f"{self._out}: an earlier version made it, without dates, cameras and places; to read them "
                f"(no photo is embedded again) run: mmgem index {self.folder} --out {self._out}"
            )
        passed = np.append(table.select(filters, self.folder), False)[numbers]
        view = copy(self)
        for name in ("_entries", "_row_of_photo", "paths", "names", "photos", "files", "boxes", "moments"):
            view.__dict__.pop(name, None)  # what was remembered of all of them
        view._passed = passed if self._passed is None else passed & self._passed
        dead = np.bincount(view._rows, minlength=len(self._stored)) == 0
        view._not_photos, view._not_boxes = self._is_region | dead, ~self._is_region | dead
        view._short = None if self._short is None else self._short.filtered(~view._not_photos)
        return view

    @cached_property
    def photo_table(self) -> PhotoTable:
        """What is known of the photos' files, as it was when this was first asked for."""
        if self._out is None:
            raise UsageError("filters and dates need an index that was opened from its folder")
        return PhotoTable(self._out)

    @cached_property
    def _table_numbers(self) -> np.ndarray:
        """The number in the table of each entry's photo, -1 where it has none."""
        number_by_path = self.photo_table.number_by_path
        numbers = (number_by_path.get(path, -1) for _, path, _ in self._all_entries)
        return np.fromiter(numbers, np.int64, len(self._all_entries))

    @cached_property
    def paths(self) -> list[Path]:
        """The photo or clip of each entry."""
        return [self.folder / os.fsdecode(path) for _, path, _ in self._entries]

    @cached_property
    def names(self) -> list[str]:
        """The photo of each entry by its path in the folder, with forward slashes."""
        return [os.fsdecode(path) for _, path, _ in self._entries]

    @cached_property
    def photos(self) -> list[int]:
        """Which entries are whole photos, or moments."""
        return [number for number, (_, _, box) in enumerate(self._entries) if box is None]

    @cached_property
    def files(self) -> list[int]:
        """Which entries are whole photos, or the first moment of a clip: one a file."""
        if not self._moments:
            return self.photos
        entries = self._entries
        return [
            number for number in self.photos if self._row_of_photo[entries[number][1]] == entries[number][0]
        ]

    @cached_property
    def moments(self) -> list[Moment | None]:
        """When the moment of each entry starts and ends, in seconds; None where it is a photo."""
        return [self._moments.get(row) for row, _, _ in self._entries]

    @cached_property
    def boxes(self) -> list[Box | None]:
        """The box of each entry in pixels of the upright photo; None where it is the whole photo."""
        return [_box(text) for _, _, text in self._entries]

    @property
    def vectors(self) -> np.ndarray:
        """The (len, D) float32 vector of each entry, read-only; memory-mapped if each row is an entry. Raises
        SearchIndexError if they are damaged, as all does that reads them."""
        self._verify()
        if np.array_equal(self._rows, np.arange(len(self._stored))):
            return self._stored
        return self._stored[self._rows]

    def vector_of(self, path: str | os.PathLike[str], start: float | None = None) -> np.ndarray:
        """Return the (D,) float32 vector of a photo in the index, of the moment of a clip that starts at
        ``start`` or, None, of all of it: the mean of its moments by their length. Raises UsageError if it is
        not in it."""
        row, key = self._find(path)
        rows = [row] if row not in self._moments else self._moment_rows(row, key)
        if start is not None:
            rows = [row for row in rows if row in self._moments and self._moments[row][0] == start]
            if not rows:
                raise UsageError(f"{path}: no moment of it starts at {start:g} s")
        self._verify(np.array(rows))
        if len(rows) == 1:
            return self._stored[rows[0]]
        spans = np.array([self._moments[row] for row in rows], np.float32)
        return unit_mean(self._stored[rows], spans[:, 1] - spans[:, 0])

    def is_moment(self, row: int) -> bool:
        """Whether a row is a moment of a clip."""
        return row in self._moments

    def _moment_rows(self, first: int, key: bytes) -> list[int]:
        """The rows of the moments of a clip, which come one after the other."""
        rows = [first]
        for row in range(first + 1, len(self._stored)):
            entries = self._all_entries[self._entry_starts[row] : self._entry_starts[row + 1]]
            if row not in self._moments or not any(name == key for _, name, _ in entries):
                break
            rows.append(row)
        return rows

    def row_of(self, entry: int) -> int:
        """The row of an entry; entries of the same content share it."""
        return int(self._rows[entry])

    def row_vectors(self, rows: Sequence[int]) -> np.ndarray:
        """The vectors (n, D) float32 of rows. Raises SearchIndexError if they are damaged."""
        self._verify(np.asarray(rows, np.int64))
        return self._stored[rows]

    def same_content(self, one: str | os.PathLike[str], two: str | os.PathLike[str]) -> bool:
        """Whether two photos of the index are the same file, byte for byte."""
        return self._find(one)[0] == self._find(two)[0]

    def boxes_of(self, path: str | os.PathLike[str]) -> list[Box]:
        """The boxes of a photo in the index in pixels of the upright photo, the most telling first; raises
        UsageError if it is not in it."""
        first, key = self._find(path)
        if self._short is not None:
            return self._short.boxes_of(first)
        boxes: list[Box] = []
        for row in range(first + 1, len(self._stored)):  # the rows of its boxes come right after its own
            entries = self._all_entries[self._entry_starts[row] : self._entry_starts[row + 1]]
            row_boxes = [box for _, name, text in entries if name == key and (box := _box(text))]
            if not row_boxes:
                break
            boxes += row_boxes
        return boxes

    def search(self, vector: np.ndarray, k: int = 10) -> list[Hit]:
        """Return the ``k`` entries most similar to ``vector`` (D,), best first; all if there are fewer.

        ``vector`` is expected to have unit length: the scores are dot products. Raises UsageError if it has
        another shape, or if ``k`` is below 1.
        """
        return next(self._search(np.asarray(vector, np.float32)[None], k), [])

    def search_text(self, text: str, k: int = 10, regions: bool = False) -> list[Hit]:
        """Return the ``k`` photos that fit ``text`` best, best first: :meth:`search` for its embedding, with
        the probability that they match if the model is calibrated.

        ``regions``: their best boxes instead, as :meth:`search_regions` finds them. Raises DataError for an
        empty text, UsageError as those do, and if this index was opened without a model.
        """
        vector = self._embedder.embed_queries([check_text(text)], regions)[0]
        if regions:
            return self.search_regions(vector, k)
        calibration = getattr(self._embedder, "calibration", None)
        return with_match(self.search(vector, k), calibration, vector, len(self.photos))

    def search_image(
        self, image: ImageSource, k: int = 10, box: Box | None = None, regions: bool = False
    ) -> list[Hit]:
        """Return the ``k`` photos most like ``image``, or like a ``box`` of it in pixels, best first.

        A photo of the index that is the query is not among them. ``regions`` as in :meth:`search_text`.
        Raises ImageError for an image that cannot be read, UsageError as :meth:`search_text` does.
        """
        vector = self._embedder.embed_images([image], [box])[0]
        hits = self.search_regions(vector, k + 1) if regions else self.search(vector, k + 1)
        if isinstance(image, str | os.PathLike):
            hits = [hit for hit in hits if not same_file(hit.path, Path(image))]
        return hits[:k]

    def search_terms(self, terms: Sequence[QueryTerm], k: int = 10, regions: bool = False) -> list[Hit]:
        """Return the ``k`` photos that fit texts and images together best, best first: see
        :mod:`mmgem.search.query_terms`.

        Photos of the index that are terms are not among them. ``regions`` as in :meth:`search_text`. Raises
        UsageError and ImageError as :func:`mmgem.search.query_terms.embed_terms` does.
        """
        vector = embed_terms(self._embedder, terms, regions)
        images = [Path(term.image) for term in terms if isinstance(term.image, str | os.PathLike)]
        hits = (self.search_regions if regions else self.search)(vector, k + len(images))
        return [hit for hit in hits if not any(same_file(hit.path, image) for image in images)][:k]

    @cached_property
    def _embedder(self) -> QueryEmbedder:
        if self.load_embedder is None:
            raise UsageError("this index was opened without a model; open it with mmgem.open_index")
        return self.load_embedder()

    def search_regions(
        self, vector: np.ndarray, k: int = 10, where: SpatialFilter | None = None
    ) -> list[Hit]:
        """Return the best box of each of the ``k`` photos with the best boxes for ``vector`` (D,).

        ``where``: only boxes there count, and the nearer to its middle the better: up to 0.1 is added to the
        cosine. Raises UsageError as :meth:`search` does, and if the index was made without regions.
        """
        return self.search_regions_many(np.asarray(vector, np.float32)[None], k, [where])[0]

    def search_regions_many(
        self, vectors: np.ndarray, k: int = 10, where: Sequence[SpatialFilter | None] | None = None
    ) -> list[list[Hit]]:
        """Search for each row of ``vectors`` (q, D) with its filter: as :meth:`search_regions`, but faster
        than one at a time."""
        if not self.regions:
            raise UsageError(
                "this index has no regions; make one with: mmgem index DIR --out NEW.idx --regions 20"
            )
        queries = self._check_queries(np.asarray(vectors, np.float32), k)
        filters = list(where) if where is not None else [None] * len(queries)
        find = self._best_boxes if self._short is None else self._best_short_boxes
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), _QUERY_BATCH_SIZE):
            batch = slice(start, start + _QUERY_BATCH_SIZE)
            hits += find(queries[batch], k, filters[batch])
        return hits

    def _best_boxes(
        self, queries: np.ndarray, k: int, filters: Sequence[SpatialFilter | None]
    ) -> list[list[Hit]]:
        """The best box of each of the k best photos, for each of ``queries`` (q, D) with its filter."""

        @cache
        def score_matrix() -> np.ndarray:  # one pass over the vectors, if needed
            self._verify()
            return queries @ self._stored.T

        def search(number: int) -> list[Hit]:
            where = filters[number]
            scores: np.ndarray | None = None

            def best(depth: int) -> list[Hit]:
                nonlocal scores
                if scores is None and where is None:
                    (ranked,) = self._hnsw_search(queries[number, None], depth, regions=True)
                    if ranked is not None:
                        return self._hits(*ranked)
                if scores is None:
                    scores = score_matrix()[number]
                    if where is not None:
                        assert self._relative_boxes is not None
                        scores = apply_spatial_filter(scores, self._relative_boxes, where)
                    scores[self._not_boxes] = -np.inf
                rows = top_rows(scores, depth)
                return self._hits(rows, scores[rows])

            return best_of_each_photo(best, k)

        return [search(number) for number in range(len(queries))]

    def _best_short_boxes(
        self, queries: np.ndarray, k: int, filters: Sequence[SpatialFilter | None]
    ) -> list[list[Hit]]:
        """As :meth:`_best_boxes`, of short regions."""
        assert self._short is not None
        filtered = zip(queries, filters, strict=True)
        finders = [self._short.finder(query, k, where, self._photos_at) for query, where in filtered]
        return [best_of_each_photo(best, k) for best in finders]

    def search_many(self, vectors: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """Search for each row of ``vectors`` (q, D): as :meth:`search`, but faster than one at a time."""
        return list(self._search(np.asarray(vectors, np.float32), k))

    def _search(self, queries: np.ndarray, k: int) -> Iterator[list[Hit]]:
        self._check_queries(queries, k)
        if len(self) == 0:
            yield from ([] for _ in queries)
            return
        for start in range(0, len(queries), _QUERY_BATCH_SIZE):
            batch = queries[start : start + _QUERY_BATCH_SIZE]
            ranked = self._hnsw_search(batch, k)
            exact_numbers = [number for number, result in enumerate(ranked) if result is None]
            if exact_numbers:
                for number, result in zip(exact_numbers, self._exact(batch[exact_numbers], k), strict=True):
                    ranked[number] = result
            yield from (self._hits(*result)[:k] for result in ranked if result is not None)

    def _exact(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows and scores of the ``k`` best photos for each of ``queries`` (q, D), and of ties."""
        photos = np.flatnonzero(~self._not_photos)
        few = len(photos) * _FEW < len(self._stored)
        self._verify(photos if few else None)
        scores = queries @ (self._stored[photos] if few else self._stored).T
        if not few:
            scores[:, self._not_photos] = -np.inf
        tops = [top_rows(row, k) for row in scores]
        return [(photos[top] if few else top, row[top]) for top, row in zip(tops, scores, strict=True)]

    def _hnsw_search(
        self, queries: np.ndarray, depth: int, regions: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """For each of ``queries`` (q, D) the rows and scores of the ``depth`` best photos, or boxes, that the
        HNSW index leads to or does not have yet; None where the search has to be exact."""
        candidates = None if self.hnsw is None else self.hnsw.candidates(queries, depth, regions)
        if self.hnsw is None or candidates is None:
            return [None] * len(queries)
        total = len(self._stored)
        unindexed_rows = np.arange(self.hnsw.rows, total)
        excluded = self._not_boxes if regions else self._not_photos
        ranked: list[tuple[np.ndarray, np.ndarray] | None] = []
        for query, rows in zip(queries, candidates, strict=True):
            rows = np.concatenate([np.sort(rows[rows < total]), unindexed_rows])
            rows = rows[~excluded[rows]]
            self._verify(rows)
            scores = self._stored[rows] @ query
            top = top_rows(scores, depth)
            ranked.append((rows[top], scores[top]) if len(top) >= depth else None)
        return ranked

    def _check_queries(self, queries: np.ndarray, k: int) -> np.ndarray:
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        if len(self) and (queries.ndim != 2 or queries.shape[1] != self._stored.shape[1]):
            raise UsageError(
                f"this index holds vectors of {self._stored.shape[1]} numbers, not {queries.shape[1:]}"
            )
        return queries

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        """The entries of ``rows`` (n,), whose scores are ``scores``, best first."""
        entries = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            for number in range(self._entry_starts[row], self._entry_starts[row + 1]):
                _, path, box = self._all_entries[number]
                if self._passed is None or self._passed[number]:
                    entries.append((-score, path, _box(box) or (), self._moments.get(row, (None, None))))
        return [
            Hit(self.folder / os.fsdecode(path), -score, box or None, start=moment[0], end=moment[1])
            for score, path, box, moment in sorted(
                entries, key=lambda entry: (*entry[:3], entry[3][0] or 0.0)
            )
        ]

    def _photos_at(self, row: int) -> list[Path]:
        """The photos of the entries of a row."""
        numbers = range(self._entry_starts[row], self._entry_starts[row + 1])
        passed = [n for n in numbers if self._passed is None or self._passed[n]]
        return [self.folder / os.fsdecode(self._all_entries[n][1]) for n in passed]

    def name_of(self, path: Path) -> str:
        """The name of a photo, as :attr:`names` has it, by its path."""
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def _find(self, path: str | os.PathLike[str]) -> tuple[int, bytes]:
        """The row of a photo and its path as it is stored."""
        key = os.fsencode(self.name_of(Path(path)))
        if key not in self._row_of_photo:
            raise UsageError(f"{path}: not in this index of {self.folder}")
        return self._row_of_photo[key], key

    @cached_property
    def _row_of_photo(self) -> dict[bytes, int]:
        """The row of each file; of a clip, that of its first moment."""
        return {path: row for row, path, box in reversed(self._entries) if box is None}


def _box(text: str | None) -> Box | None:
    return None if text is None else tuple(json.loads(text))
