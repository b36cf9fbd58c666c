"""What a corpus becomes when passages are added, replaced and removed, before anything is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmgem.errors import DataError
from mmgem.self_retrieval.passages import Passage


@dataclass(frozen=True)
class CorpusChange:
    """``passages`` afterwards: those that stay and those that are replaced at their places, new ones behind.

    ``former`` ``(n,)`` int64: the number that each had before, -1 if it is to be read. The counts are of ids;
    ``unchanged``: of passages that were given and are there already, word by word."""

    passages: list[Passage]
    former: np.ndarray
    added: int
    replaced: int
    unchanged: int
    removed: int

    @property
    def is_empty(self) -> bool:
        """Whether all stays as it is."""
        return not (self.added or self.replaced or self.removed)


def plan_change(
    before: Sequence[Passage],
    passages: Sequence[Passage] = (),
    removed: Iterable[str] = (),
    documents: Collection[str] = (),
) -> CorpusChange:
    """Remove the ids ``removed``, or all of a document of that name (ids ``NAME#...``), then put
    ``passages`` in the place of those of the same id, or behind all. ``documents``: names of those that
    ``passages`` are all of; what else the corpus has of them is removed.

    Raises ``DataError`` for an id to be removed that is not there, for two different passages of one id, and
    if no passage would be left.
    """
    gone = expand_ids(removed, [p.id for p in before])
    if documents:
        given_ids = {p.id for p in passages}
        gone |= {p.id for p in before if document_of(p.id) in documents and p.id not in given_ids}
    number = {p.id: n for n, p in enumerate(before)}
    given: dict[str, Passage] = {}
    unchanged = 0
    for passage in passages:
        if given.setdefault(passage.id, passage) != passage:
            raise DataError(f"two different passages have the id {passage.id!r}")
    replaced: dict[str, Passage] = {}
    added = []
    for passage in given.values():
        if passage.id not in number or passage.id in gone:
            added.append(passage)
        elif before[number[passage.id]] == passage:
            unchanged += 1
        else:
            replaced[passage.id] = passage
    after, former = [], []
    for n, passage in enumerate(before):
        if passage.id not in gone:
            after.append(replaced.get(passage.id, passage))
            former.append(-1 if passage.id in replaced else n)
    after += added
    if not after:
        raise DataError("no passage would be left of the corpus")
    former += [-1] * len(added)
    counts = len(added), len(replaced), unchanged, len(gone)
    return CorpusChange(after, np.array(former, np.int64), *counts)


def document_of(passage: str) -> str:
    """The document of a passage's id ``DOCUMENT#n``; "" for other ids."""
    return passage.rpartition("#")[0]


def expand_ids(names: Iterable[str], known: Sequence[str]) -> set[str]:
    """The ids that ``names`` mean: an id of ``known``, or all that begin with a document's name and ``#``.

    Raises ``DataError`` for a name of nothing.
    """
    ids = set(known)
    of_document: dict[str, list[str]] = defaultdict(list)
    for i in known:
        of_document[document_of(i)].append(i)
    found: set[str] = set()
    for name in names:
        if name in ids:
            found.add(name)
        elif name and name in of_document:
            found.update(of_document[name])
        else:
            raise DataError(f"no passage has the id {name!r}, and no document that name")
    return found
