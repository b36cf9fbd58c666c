"""LanceDB: a table of columns in a folder, or in an object store by its URI.

Notable choices. Without an index of its own a table is compared row by row, which is exact; one that was made
(``create_index`` of lancedb's table) is used, unless ``exact``. Each batch is a version of the table and a
file, so batches are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import MissingIndexError, SearchIndexError, UsageError
from mmgem.search.filters import NO_FILTERS, Filters
from mmgem.search.stores.base import REQUIRED_FIELDS, Payload, Points, VectorStore, errors_naming
from mmgem.search.stores.sql import sql_condition, sql_text
from mmgem.utils.locks import FileLock, lock_file


class LanceStore(VectorStore):
    """A table in a folder, or at a URI such as ``s3://bucket/path``."""

    batch = 8192
    lossless = True
    filterable = frozenset(field.name for field in fields(Filters)) - {"changed", "lacks"}

    def __init__(self, where: str, name: str, create: bool = False) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise UsageError("lance: needs lancedb: pip install 'mmgem[lance]'") from error
        self.place, self._name = f"lance:{where} ({name})", name
        folder = None if "://" in where else Path(where).expanduser()
        if folder is not None and not create and not folder.is_dir():
            raise MissingIndexError(f"{self.place}: no such folder; mmgem store push makes it")
        self._lock: FileLock | None = None
        if folder is not None and create:  # two pushes at once would both add what is missing
            with self._errors_naming():
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(lock_file(folder / f"{name}.lance"), folder, wait=True)
        try:
            with self._errors_naming():
                self._db = lancedb.connect(where if folder is None else folder)
                try:
                    self._table: Any = self._db.open_table(name)
                except (ValueError, FileNotFoundError):  # by release
                    self._table = None
        except BaseException:
            self.close()
            raise

    def dim(self) -> int | None:
        if self._table is None:
            return None
        columns = self._table.schema
        size = getattr(columns.field("vector").type, "list_size", None) if "vector" in columns.names else None
        if size is None or not set(REQUIRED_FIELDS) <= set(columns.names):
            raise SearchIndexError(f"{self.place}: is not a table of mmgem's")
        return size

    def create(self, dim: int) -> None:
        import pyarrow as pa

        columns = {
            "id": pa.string(),
            "vector": pa.list_(pa.float32(), dim),
            "path": pa.string(),
            "folder": pa.string(),
            "box": pa.list_(pa.float64()),
            "region": pa.bool_(),
            "width": pa.int32(),
            "height": pa.int32(),
            "fingerprint": pa.string(),
            "model": pa.string(),
            "below": pa.string(),
            "name": pa.string(),
            "taken": pa.int64(),
            "camera": pa.string(),
            "latitude": pa.float64(),
            "longitude": pa.float64(),
            "start": pa.float64(),
            "end": pa.float64(),
        }
        with self._errors_naming():
            self._table = self._db.create_table(self._name, schema=pa.schema(list(columns.items())))

    def any_payload(self) -> Payload | None:
        points = self._run_query(self._table.search().limit(1))
        return points.payloads[0] if points.ids else None

    def ids(self, folder: str) -> set[str]:
        with self._errors_naming():
            rows = self._table.search().where(f"folder = {sql_text(folder)}").select(["id"])
            return set(rows.limit(self._table.count_rows()).to_arrow()["id"].to_pylist())

    def add(self, points: Points) -> None:
        import pyarrow as pa

        fields = [payload.fields() for payload in points.payloads]
        if "start" not in self._table.schema.names and any(row["start"] is not None for row in fields):
            raise SearchIndexError(
                f"{self.place}: an earlier version made it, without moments; remove the collection and push "
                "again"
            )
        names = [name for name in Payload.__dataclass_fields__ if name in self._table.schema.names]
        columns = {name: [row[name] for row in fields] for name in names}
        flat = pa.array(points.vectors.ravel(), pa.float32())
        columns |= {
            "id": list(points.ids),
            "vector": pa.FixedSizeListArray.from_arrays(flat, points.vectors.shape[1]),
        }
        with self._errors_naming():
            rows = pa.table(columns, schema=self._table.schema)
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(
                rows
            )

    def remove(self, ids: Sequence[str]) -> None:
        with self._errors_naming():
            self._table.delete(f"id IN ({', '.join(map(sql_text, ids))})")

    def read(self) -> Iterator[Points]:
        with self._errors_naming():
            batches = self._table.search().limit(self._table.count_rows()).to_batches(self.batch)
            for batch in batches:
                yield _points(batch)

    def nearest(
        self, vector: np.ndarray, count: int, region: bool, exact: bool, filters: Filters = NO_FILTERS
    ) -> Points:
        condition = f"region = {str(region).lower()}"
        if filters:
            condition += f" AND {sql_condition(filters)}"
        query = self._table.search(vector, vector_column_name="vector").distance_type("dot")
        query = query.where(condition, prefilter=True).limit(count)
        return self._run_query(query.bypass_vector_index() if exact else query)

    def photos(self) -> int:
        with self._errors_naming():
            return self._table.count_rows("region = false")

    def close(self) -> None:
        self._table = None
        if self._lock is not None:
            self._lock.close()

    def _run_query(self, query: Any) -> Points:
        with self._errors_naming():
            return _points(query.to_arrow())

    def _errors_naming(self) -> AbstractContextManager[None]:
        return errors_naming(self.place, OSError, RuntimeError, ValueError)


def _points(rows: Any) -> Points:
    """Rows of Arrow (a table or a batch) as points."""
    vectors = np.array(rows["vector"].to_pylist(), np.float32)
    return Points(rows["id"].to_pylist(), vectors, [Payload.read(row) for row in rows.to_pylist()])
