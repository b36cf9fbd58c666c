"""A corpus on disk, inside the folder of the model that learned it.

``passages.jsonl``, the trie of titles, the trie of passages, their embeddings and ``corpus.json``. A title is
a row of its tokens and the end token. A passage is a row of the number of its title and of as many of its
first tokens as set it apart from every other of that title, 48 at the least. Equal passages are several ids
of one row.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmgem.checkpoints.resolve import complete
from mmgem.config import from_dict, to_dict
from mmgem.config.legacy import current_config
from mmgem.errors import CheckpointError, DataError
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.passages import Passage, load_corpus
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.trie import Trie
from mmgem.utils.files import write_atomic, write_folder

FORMAT = 1
FOLDER = "corpus"
_LEAST = 48


class Corpus:
    """Passages in the order they were added, and the tries that lead to them."""

    def __init__(
        self,
        passages: list[Passage],
        titles: Trie,
        rows: Trie,
        titled: bool = True,
        scoring: Scoring | None = None,
        vectors: np.ndarray | None = None,
    ):
        """``vectors``: ``(n, D)`` float32 unit embeddings of the passages, if the model embeds them."""
        self.passages, self.titled, self.scoring = passages, titled, scoring or Scoring()
        self.vectors = vectors
        self.names = _names(passages, titled)
        self.titles, self.rows = titles, rows

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        prompts: Prompts,
        titled: bool = True,
        scoring: Scoring | None = None,
    ) -> Corpus:
        """Make the tries of ``passages``. ``titled``: titles lead to passages, or one to all."""
        names = _names(passages, titled)
        titles = Trie.build(prompts.ended(names))
        rows = Trie.build(*_rows(passages, range(len(passages)), names, titled, prompts))
        return cls(list(passages), titles, rows, titled, scoring)

    def added(self, passages: Sequence[Passage], prompts: Prompts) -> Corpus:
        """This corpus with more passages. Only they and those they share a title with are read again.

        Raises ``DataError`` for an id that is there already.
        """
        known = {p.id for p in self.passages}
        for passage in passages:
            if passage.id in known:
                raise DataError(f"passage {passage.id!r} is in the corpus already")
            known.add(passage.id)
        together = [*self.passages, *passages]
        names = _names(together, self.titled)
        number = {name: n for n, name in enumerate(names)}
        touched = {_name(p, self.titled) for p in passages}
        fresh = [i for i, p in enumerate(together) if _name(p, self.titled) in touched]
        rows, ids = _rows(together, fresh, names, self.titled, prompts)
        new_titles = range(len(self.names), len(names))
        titles = self.titles
        if new_titles:
            titles = titles.merged(prompts.ended([names[n] for n in new_titles]), list(new_titles))
        replaced = {number[name] for name in touched}
        merged = self.rows.without(replaced).merged(rows, ids)
        return Corpus(together, titles, merged, self.titled, self.scoring)

    def save(self, folder: Path) -> None:
        """Write the corpus, replacing ``folder`` as a whole."""

        def fill(new: Path) -> None:
            lines = (json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in self.passages)
            write_atomic(new / "passages.jsonl", "".join(lines))
            self.titles.save(new / "titles")
            self.rows.save(new / "rows")
            if self.vectors is not None:
                np.save(new / "vectors.npy", self.vectors)
            facts = {"format": FORMAT, "titled": self.titled, "scoring": to_dict(self.scoring)}
            write_atomic(new / "corpus.json", json.dumps(facts, indent=1) + "\n")

        write_folder(folder, fill)

    def save_in(self, model: Path) -> None:
        """Write the corpus into the folder of its model."""
        self.save(model / FOLDER)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Read a corpus; the tries stay on disk until they are walked. Raises ``CheckpointError``."""
        folder = complete(folder)
        try:
            facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: holds no corpus ({error})") from error
        if facts.get("format") != FORMAT:
            raise CheckpointError(f"{folder}: format {facts.get('format')!r}, this version reads {FORMAT}")
        passages = load_corpus(folder / "passages.jsonl")
        scoring = from_dict(Scoring, current_config(facts.get("scoring", {}), "corpus.scoring")[0], "scoring")
        vectors = np.load(folder / "vectors.npy") if (folder / "vectors.npy").is_file() else None
        titles, rows = Trie.open(folder / "titles"), Trie.open(folder / "rows")
        made = cls(passages, titles, rows, facts["titled"], scoring, vectors)
        fits = len(rows) == len(passages) and len(titles) == len(made.names)
        if not fits or (vectors is not None and len(vectors) != len(passages)):
            raise CheckpointError(f"{folder}: passages and tries do not fit together")
        return made


def _name(passage: Passage, titled: bool) -> str:
    return passage.title if titled else "-"


def _names(passages: Sequence[Passage], titled: bool) -> list[str]:
    return list(dict.fromkeys(_name(p, titled) for p in passages))


def _rows(
    passages: Sequence[Passage], chosen: Sequence[int], names: list[str], titled: bool, prompts: Prompts
) -> tuple[list[list[int]], list[int]]:
    """Rows and passage numbers of the ``chosen``; of a title all or none."""
    number = {name: n for n, name in enumerate(names)}
    groups: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    for i, ids in zip(chosen, prompts.ended([passages[i].text for i in chosen]), strict=True):
        groups[number[_name(passages[i], titled)]].append((ids, i))
    rows: list[list[int]] = []
    owners: list[int] = []
    for title, group in groups.items():
        group.sort()
        distinct = [ids for n, (ids, _) in enumerate(group) if n == 0 or ids != group[n - 1][0]]
        shared = [0, *(_common(a, b) for a, b in pairwise(distinct)), 0]
        length = {tuple(ids): max(shared[n], shared[n + 1]) + 1 for n, ids in enumerate(distinct)}
        for ids, i in group:
            rows.append([title, *ids[: max(_LEAST, length[tuple(ids)])]])
            owners.append(i)
    return rows, owners


def _common(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
