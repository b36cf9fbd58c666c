"""A vector store of one's own: points in a SQLite file, compared one by one.

mmgem --plugin examples/store_sqlite.py store push idx/ sqlite:photos.db
mmgem --plugin examples/store_sqlite.py store search sqlite:photos.db "a dog in the snow"
"""

import json
import sqlite3

import numpy as np

from mmgem.search.stores import STORES
from mmgem.search.stores.base import Payload, Points, VectorStore, errors_naming


@STORES.register("sqlite")
class SQLiteStore(VectorStore):
    """A collection is a table; it is there as soon as it is opened, so ``create`` has nothing to do."""

    batch = 1000  # points sent at once

    def __init__(self, where, name, create):
        self.place, self.table = f"sqlite:{where} ({name})", '"' + name.replace('"', '""') + '"'
        with errors_naming(self.place, sqlite3.Error):
            self.db = sqlite3.connect(f"file:{where}?mode={'rwc' if create else 'rw'}", uri=True)
        self.sql("CREATE TABLE IF NOT EXISTS $ (id PRIMARY KEY, vector, folder, region, payload)")

    def sql(self, query, rows=((),)):
        with errors_naming(self.place, sqlite3.Error), self.db:
            return [found for row in rows for found in self.db.execute(query.replace("$", self.table), row)]

    def points(self, which="", row=()):
        rows = self.sql(f"SELECT id, vector, payload FROM $ {which}", [row])
        vectors = np.array([np.frombuffer(vector, np.float32) for _, vector, _ in rows])
        return Points([r[0] for r in rows], vectors, [Payload.read(json.loads(r[2])) for r in rows])

    def dim(self):
        return next((len(vector) for vector in self.points("LIMIT 1").vectors), None)

    def ids(self, folder):
        return {point for (point,) in self.sql("SELECT id FROM $ WHERE folder = ?", [[folder]])}

    def add(self, points):
        facts = [(p.folder, p.region, json.dumps(p.fields())) for p in points.payloads]
        rows = [(n, v.tobytes(), *f) for n, v, f in zip(points.ids, points.vectors, facts, strict=True)]
        self.sql("INSERT OR REPLACE INTO $ VALUES (?, ?, ?, ?, ?)", rows)

    def remove(self, ids):
        self.sql("DELETE FROM $ WHERE id = ?", [[point] for point in ids])

    def read(self):
        yield self.points()

    def nearest(self, vector, count, region, exact):
        every = self.points("WHERE region = ?", [region])
        best = np.argsort(-(every.vectors @ vector))[:count] if every.ids else []
        return Points([every.ids[i] for i in best], every.vectors[best], [every.payloads[i] for i in best])

    def close(self):
        self.db.close()
