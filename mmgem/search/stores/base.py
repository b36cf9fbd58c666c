"""What every vector store is asked to do, and what is the same for all of them.

Notable choices. A point's id is a hash of its photo, its box and its vector, so the same thing has the same
id in every push, and whatever changed has another: bringing a store up to date is comparing two sets of ids.
Each point says which model made it, so a store needs no record beside its points. A store only proposes;
scores are computed here from the vectors it kept, and equal ones are ordered as in an index, so the results
are those of :class:`mmgem.search.search.PhotoIndex`.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from mmgem.data.records import Box
from mmgem.errors import SearchIndexError, UsageError
from mmgem.search.filters import NO_FILTERS, Filters
from mmgem.search.hits import Hit, best_of_each_photo
from mmgem.utils.unit_vectors import not_unit_rows

_EXTRA_CANDIDATES = 16  # found beyond what is wanted, so that equal scores at the end are not left to chance


@dataclass(frozen=True, slots=True)
class Payload:
    """What a point tells of itself.

    ``path`` is absolute, ``folder`` that of the index it came from. ``box`` is in pixels of the upright
    photo, None for the whole, as ``region`` says too; ``width`` and ``height`` are the photo's, None if not
    known. ``fingerprint`` identifies the model, ``model`` is a name or path that loads it. The others are
    what filters ask for, as the columns of :class:`mmgem.search.index_metadata.PhotoTable`; ``below`` is the
    path relative to the folder. None where they are not known, ``below`` in points of an earlier version.
    ``start`` and ``end``: of a moment of a clip, in seconds, None for a photo.
    """

    path: str
    folder: str
    box: Box | None
    region: bool
    width: int | None
    height: int | None
    fingerprint: str
    model: str
    below: str | None = None
    name: str | None = None
    taken: int | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    start: float | None = None
    end: float | None = None

    @property
    def place(self) -> str | None:
        """Where in time a moment is, as its id has it; None for a photo."""
        return None if self.start is None else moment_text(self.start, self.end)

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Payload:
        """The payload whose fields a store gave back; raises ValueError if they are of something else."""
        try:
            fields = {name: stored[name] for name in REQUIRED_FIELDS}
            fields |= {name: stored.get(name) for name in cls.__dataclass_fields__}
            box = fields["box"]
            return cls(**fields | {"box": None if box is None else tuple(box)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"holds points that mmgem did not push ({error})") from error

    def fields(self) -> dict[str, Any]:
        """Plain values, for a store."""
        return asdict(self)


REQUIRED_FIELDS = [field.name for field in fields(Payload) if field.default is MISSING]
"""Of a payload; points that an earlier version pushed lack the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Points of a store: their ids, vectors (n, D) float32 and payloads."""

    ids: Sequence[str]
    vectors: np.ndarray
    payloads: Sequence[Payload]


@contextmanager
def errors_naming(place: str, *failures: type[Exception]) -> Iterator[None]:
    """Turn what a store's library complains about into a SearchIndexError of one line, with ``place``."""
    try:
        yield
    except failures as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SearchIndexError(f"{place}: {reason[0]}") from error


class VectorStore(Protocol):
    """One collection of a store; a context manager. Methods raise SearchIndexError if the store fails."""

    place: str
    """Kind, where and name, for messages."""
    batch: int
    """How many points are best sent at once."""
    lossless: bool = False
    """Whether vectors come back bit for bit; then points are compared with their ids, and damage is seen."""
    filterable: frozenset[str] = frozenset()
    """The filters that it can apply itself, by their names; then :meth:`nearest` is given ``filters``."""

    def dim(self) -> int | None:
        """D of its vectors; None if the collection does not exist."""
        ...

    def create(self, dim: int) -> None:
        """Make the collection, of vectors of ``dim`` numbers compared by their dot product."""
        ...

    def any_payload(self) -> Payload | None:
        """That of any point of an existing collection, None if it has none."""
        return next((payload for points in self.read() for payload in points.payloads), None)

    def ids(self, folder: str) -> set[str]:
        """The ids of all points that came from the index of ``folder``."""
        ...

    def add(self, points: Points) -> None:
        """Add points; those whose ids are there already are replaced."""
        ...

    def remove(self, ids: Sequence[str]) -> None:
        """Remove points by their ids."""
        ...

    def read(self) -> Iterator[Points]:
        """All points, in no order."""
        ...

    def nearest(
        self, vector: np.ndarray, count: int, region: bool, exact: bool, filters: Filters = NO_FILTERS
    ) -> Points:
        """The ``count`` points nearest to ``vector`` (D,), of regions or of whole photos, in no order;
        ``exact``: compare all, even if the store has a faster way. ``filters``: those of ``filterable``;
        stores without any are not given it."""
        ...

    def photos(self) -> int:
        """How many whole photos there are."""
        return sum(not payload.region for points in self.read() for payload in points.payloads)

    def close(self) -> None:
        """Let go of it."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def moment_text(start: float, end: float | None) -> str:
    """Where in time a moment is, for :func:`point_id`."""
    return json.dumps([start, end])


def point_id(folder: str, path: str, box: str | None, fingerprint: str, vector: np.ndarray) -> str:
    """The id of a point, a UUID: the same for the same thing. ``path`` is relative to ``folder``, ``box`` is
    JSON, or :func:`moment_text` of a moment, ``vector`` (D,) float32."""
    parts = [os.fsencode(folder), path.encode(), (box or "").encode(), fingerprint.encode()]
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=16)
    digest.update(vector.tobytes())
    return str(uuid.UUID(bytes=digest.digest()))


def damaged_points(store: VectorStore, points: Points) -> list[int]:
    """Which of ``points`` of ``store`` are not what was pushed: their vectors are not finite and of unit
    length or, where the store keeps all bits, do not fit their ids."""
    damaged = set(not_unit_rows(points.vectors).tolist()) if len(points.ids) else set()
    if store.lossless:
        for number, (point, payload) in enumerate(zip(points.ids, points.payloads, strict=True)):
            vector = points.vectors[number]
            path = Path(payload.path)
            name = path.relative_to(payload.folder) if path.is_relative_to(payload.folder) else path
            if not any(
                point == point_id(payload.folder, name.as_posix(), box, payload.fingerprint, vector)
                for box in ([payload.place] if payload.place else _box_texts(payload.box))
            ):
                damaged.add(number)
    return sorted(damaged)


def _box_texts(box: Box | None) -> list[str | None]:
    """How an index may write a box: stores make whole numbers floats."""
    if box is None:
        return [None]
    return [json.dumps(list(box)), json.dumps([int(x) if x == int(x) else x for x in box])]


def check_model(store: VectorStore, payload: Payload, fingerprint: str) -> None:
    """Raise SearchIndexError unless the points of ``store``, one of which is ``payload``'s, were made by the
    model with this fingerprint."""
    if payload.fingerprint != fingerprint:
        raise SearchIndexError(
            f"{store.place}: holds vectors of another model ({payload.fingerprint}, not {fingerprint}); "
            "use that model, or another --name"
        )


def search_store(
    store: VectorStore,
    vector: np.ndarray,
    k: int = 10,
    exact: bool = False,
    filters: Filters = NO_FILTERS,
) -> list[Hit]:
    """The ``k`` whole photos most similar to ``vector`` (D,) float32 of unit length that pass ``filters``,
    best first, as :meth:`mmgem.search.search.PhotoIndex.search` finds them; ``exact``: even if the store
    would rather guess. Raises UsageError for filters that the store cannot apply.
    """
    check_filters(store, filters)
    return _hits(store, vector, k, False, exact, filters)[:k]


def search_store_regions(
    store: VectorStore,
    vector: np.ndarray,
    k: int = 10,
    exact: bool = False,
    filters: Filters = NO_FILTERS,
) -> list[Hit]:
    """The best box of each of the ``k`` photos with the best boxes for ``vector`` (D,), as
    :func:`search_store`."""
    check_filters(store, filters)
    return best_of_each_photo(lambda count: _hits(store, vector, count, True, exact, filters), k)


def check_filters(store: VectorStore, filters: Filters) -> None:
    """Raise UsageError for filters that ``store`` cannot apply, or not to what it holds."""
    if not filters:
        return
    if unable := [name for name in filters.given if name not in store.filterable]:
        raise UsageError(
            f"{store.place}: cannot filter by {', '.join(unable)}; mmgem search IDX, of the index itself, can"
        )
    payload = store.any_payload()
    if payload is not None and payload.below is None:
        raise UsageError(
            f"{store.place}: was pushed without what filters need, by an earlier version or from its index; "
            "bring the index up to date, remove the collection and push again"
        )


def _hits(
    store: VectorStore, vector: np.ndarray, count: int, region: bool, exact: bool, filters: Filters
) -> list[Hit]:
    """``count`` hits and some more, best first; all if there are fewer."""
    options = {"filters": filters} if filters else {}
    points = store.nearest(vector, count + _EXTRA_CANDIDATES, region, exact, **options)
    if not points.ids:
        return []
    if damaged := damaged_points(store, points):
        raise SearchIndexError(
            f"{store.place}: damaged, {len(damaged)} of the points found, the first is of "
            f"{points.payloads[damaged[0]].path}; remove the collection and push the index again"
        )
    scores = (points.vectors @ vector).tolist()
    ranked = sorted(
        (-score, os.fsencode(payload.path), payload.box or (), payload.start or 0.0, number)
        for number, (score, payload) in enumerate(zip(scores, points.payloads, strict=True))
    )
    hits = []
    for score, path, box, _, number in ranked:
        payload = points.payloads[number]
        hits.append(Hit(Path(os.fsdecode(path)), -score, box or None, start=payload.start, end=payload.end))
    return hits
