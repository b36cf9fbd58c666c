"""Look at all points of a vector store."""

from __future__ import annotations

from mmgem.errors import SearchIndexError
from mmgem.search.stores.base import VectorStore, damaged_points
from mmgem.utils.checkup import Checkup


def check_store(store: VectorStore) -> Checkup:
    """Read every point of ``store`` and compare it with its id, which is a hash of what it holds."""
    found = Checkup("store", {"vectors": 0})
    remedy = f"remove the collection {store.place} and push the index again"
    try:
        if store.dim() is None:
            found.add(store.place, "no such collection", "mmgem store push makes it")
            return found
        for points in store.read():
            found.counts["vectors"] += len(points.ids)
            for number in damaged_points(store, points):
                found.add(store.place, f"point {points.ids[number]} is damaged", remedy)
    except SearchIndexError as error:
        found.add(store.place, str(error).removeprefix(f"{store.place}: "), remedy)
    return found
