"""Vector stores: an index pushed to where other processes and machines can search it.

A place is ``KIND:WHERE``, as ``qdrant:http://localhost:6333`` or ``lance:vectors/``; a kind is a file here
with a class of its own, and a line in :data:`STORES`; one of your own registers itself there.
"""

from __future__ import annotations

from collections.abc import Callable

from mmgem.errors import UsageError
from mmgem.search.stores.base import VectorStore
from mmgem.utils.registry import Registry

STORES: Registry[Callable[[str, str, bool], VectorStore]] = Registry(
    "vector store",
    {
        "qdrant": "mmgem.search.stores.qdrant:QdrantStore",
        "lance": "mmgem.search.stores.lance:LanceStore",
    },
    "mmgem.stores",
)
"""What opens a store of each kind: it takes WHERE, the collection's name, and whether to make a folder that
does not exist."""


def open_store(place: str, name: str, create: bool = False) -> VectorStore:
    """The collection or table ``name`` of the store at ``place``; close it when done.

    ``create``: make a local folder that does not exist; the collection itself is made by the first push.
    Raises UsageError for a place that is none and for a store whose library is not installed,
    SearchIndexError if it cannot be opened.
    """
    kind, _, where = place.partition(":")
    if kind not in STORES or not where:
        forms = " or ".join(f"{known}:WHERE" for known in STORES)
        raise UsageError(f"{place!r} is no store; give {forms} (one of your own is made known by --plugin)")
    return STORES[kind](where, name, create)
