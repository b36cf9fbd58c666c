"""Qdrant: a server, or its local mode in a folder.

Notable choices. Vectors are compared by their dot product: they have unit length already, and Qdrant stores
those as they are, while its cosine distance would normalise them again. A server finds neighbours by a graph
of its own once a collection is large; ``exact`` compares all. Local mode compares all, holds everything in
memory and keeps its points on the disk as pickles: open only folders that you made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mmgem.errors import MissingIndexError, SearchIndexError, UsageError
from mmgem.search.filters import NO_FILTERS, Filters, parse_near, parse_period, shape
from mmgem.search.index_metadata import wall_seconds
from mmgem.search.stores.base import Payload, Points, VectorStore, errors_naming

_PAGE = 10_000  # ids read at once
_TIMEOUT = 60  # seconds a request may take
_URLS = ("http://", "https://")


class QdrantStore(VectorStore):
    """A collection at a URL (``$QDRANT_API_KEY`` is its key, if it needs one) or in a folder."""

    batch = 256
    lossless = True
    filterable = frozenset(("folder", "date", "orientation", "min_width", "min_height", "near"))

    def __init__(self, where: str, name: str, create: bool = False) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError as error:
            raise UsageError("qdrant: needs qdrant-client: pip install 'mmgem[qdrant]'") from error
        self.place, self._name, self._models = f"qdrant:{where} ({name})", name, models
        self._remote = where.startswith(_URLS)
        folder = Path(where).expanduser()
        if not self._remote and not create and not folder.is_dir():
            raise MissingIndexError(f"{self.place}: no such folder; mmgem store push makes it")
        with self._errors_naming():
            if self._remote:
                key = os.environ.get("QDRANT_API_KEY")
                self._client: Any = QdrantClient(url=where, api_key=key, timeout=_TIMEOUT)
            else:
                self._client = QdrantClient(path=str(folder))

    def dim(self) -> int | None:
        with self._errors_naming():
            if not self._client.collection_exists(self._name):
                return None
            size = getattr(self._client.get_collection(self._name).config.params.vectors, "size", None)
        if size is None:
            raise SearchIndexError(f"{self.place}: is not a collection of mmgem's")
        return size

    def create(self, dim: int) -> None:
        models = self._models
        with self._errors_naming():
            vectors_config = models.VectorParams(size=dim, distance=models.Distance.DOT)
            self._client.create_collection(self._name, vectors_config=vectors_config)
            if self._remote:
                for field, schema in (("folder", "keyword"), ("region", "bool")):
                    self._client.create_payload_index(self._name, field, field_schema=schema)

    def any_payload(self) -> Payload | None:
        with self._errors_naming():
            records, _ = self._client.scroll(self._name, limit=1, with_payload=True)
            return Payload.read(records[0].payload) if records else None

    def ids(self, folder: str) -> set[str]:
        return {str(point.id) for page in self._pages(_PAGE, self._filter(folder=folder)) for point in page}

    def add(self, points: Points) -> None:
        batch = self._models.Batch(
            ids=list(points.ids),
            vectors=points.vectors.tolist(),
            payloads=[payload.fields() | _filter_fields(payload) for payload in points.payloads],
        )
        with self._errors_naming():
            self._client.upsert(self._name, points=batch, wait=True)

    def remove(self, ids: Sequence[str]) -> None:
        with self._errors_naming():
            self._client.delete(self._name, points_selector=self._models.PointIdsList(points=list(ids)))

    def read(self) -> Iterator[Points]:
        for page in self._pages(self.batch, None, with_payload=True, with_vectors=True):
            yield self._points(page)

    def nearest(
        self, vector: np.ndarray, count: int, region: bool, exact: bool, filters: Filters = NO_FILTERS
    ) -> Points:
        options = {"search_params": self._models.SearchParams(exact=True)} if exact and self._remote else {}
        with self._errors_naming():
            response = self._client.query_points(
                self._name,
                query=vector.tolist(),
                limit=count,
                query_filter=self._models.Filter(
                    must=[*self._filter(region=region).must, *self._conditions(filters)]
                ),
                with_payload=True,
                with_vectors=True,
                **options,
            )
            return self._points(response.points)

    def photos(self) -> int:
        with self._errors_naming():
            return self._client.count(self._name, count_filter=self._filter(region=False), exact=True).count

    def close(self) -> None:
        self._client.close()

    def _filter(self, **fields: Any) -> Any:
        models = self._models
        return models.Filter(
            must=[
                models.FieldCondition(key=name, match=models.MatchValue(value=value))
                for name, value in fields.items()
            ]
        )

    def _conditions(self, filters: Filters) -> list[Any]:
        """What passes ``filters``, in Qdrant's terms."""
        models = self._models

        def condition(key: str, **what: Any) -> Any:
            return models.FieldCondition(key=key, **what)

        conditions = []
        if filters.folder is not None and (folder := filters.folder_below(None)):
            conditions.append(condition("folders", match=models.MatchValue(value=folder)))
        if filters.date is not None:
            start, end = (
                None if moment is None else wall_seconds(moment) for moment in parse_period(filters.date)
            )
            conditions.append(condition("taken", range=models.Range(gte=start, lt=end)))
        if filters.orientation is not None:
            conditions.append(condition("orientation", match=models.MatchValue(value=filters.orientation)))
        for key, least in (("width", filters.min_width), ("height", filters.min_height)):
            if least is not None:
                conditions.append(condition(key, range=models.Range(gte=least)))
        if filters.near is not None:
            latitude, longitude, distance = parse_near(filters.near)
            circle = models.GeoRadius(center=models.GeoPoint(lat=latitude, lon=longitude), radius=distance)
            conditions.append(condition("location", geo_radius=circle))
        return conditions

    def _pages(self, size: int, scroll_filter: Any, **options: bool) -> Iterator[list[Any]]:
        options = {"with_payload": False, "with_vectors": False} | options
        after = None
        while True:
            with self._errors_naming():
                page, after = self._client.scroll(
                    self._name, scroll_filter=scroll_filter, limit=size, offset=after, **options
                )
            yield page
            if after is None:
                return

    def _points(self, records: Sequence[Any]) -> Points:
        vectors = np.array([point.vector for point in records], np.float32)
        with self._errors_naming():
            payloads = [Payload.read(point.payload) for point in records]
        return Points([str(point.id) for point in records], vectors, payloads)

    def _errors_naming(self) -> AbstractContextManager[None]:
        from qdrant_client.http.exceptions import ApiException

        return errors_naming(self.place, ApiException, OSError, RuntimeError, ValueError)


def _filter_fields(payload: Payload) -> dict[str, Any]:
    """What Qdrant's conditions need in a form of its own: every folder that a photo is in, absolute and below
    that of the index; its shape; its place."""
    if payload.below is None:
        return {}
    folders = [str(path) for path in (*PurePath(payload.path).parents, *PurePath(payload.below).parents)]
    more: dict[str, Any] = {"folders": [folder for folder in folders if folder != "."]}
    if payload.width and payload.height:
        more["orientation"] = shape(payload.width, payload.height)
    if payload.latitude is not None and payload.longitude is not None:
        more["location"] = {"lat": payload.latitude, "lon": payload.longitude}
    return more
