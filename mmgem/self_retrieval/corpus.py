"""A corpus on disk, inside the folder of the model that learned it.

``passages.jsonl``, the trie of titles, the trie of passages, their embeddings and ``corpus.json``. A title is
a row of its tokens and the end token. A passage is a row, or as many as it has sentences, of the number of
its title and of as many first tokens of its text, or of a sentence, as set it apart from every other of that
title, 48 at the least of a text and 16 of a sentence. Equal ones are several ids of one row.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np

from mmgem.checkpoints.resolve import complete
from mmgem.config import from_dict, to_dict
from mmgem.config.legacy import current_config
from mmgem.errors import CheckpointError, ConfigError, DataError
from mmgem.self_retrieval.config import Identifiers, Scoring
from mmgem.self_retrieval.corpus_changes import CorpusChange
from mmgem.self_retrieval.identifiers import identifier_texts
from mmgem.self_retrieval.passages import Passage, load_corpus
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.trie import Trie
from mmgem.utils.checksums import verify_file, write_checksums
from mmgem.utils.files import create_file, read_again_if_replaced, write_atomic, write_folder
from mmgem.utils.model_files import check_file, read_json_object
from mmgem.utils.unit_vectors import not_unit_rows

FORMAT = 1
FOLDER = "corpus"
_MIN_PREFIX_TOKENS: dict[Identifiers, int] = {"prefix": 48, "sentences": 16}


class Corpus:
    """Passages in the order they were added, and the tries that lead to them."""

    def __init__(
        self,
        passages: list[Passage],
        title_trie: Trie,
        passage_trie: Trie,
        titled: bool = True,
        scoring: Scoring | None = None,
        vectors: np.ndarray | None = None,
        identifiers: Identifiers = "prefix",
    ):
        """``vectors``: ``(n, D)`` float32 unit embeddings of the passages, if the model embeds them.
        ``identifiers``: what the rows of ``passage_trie`` are."""
        self.passages, self.titled, self.scoring = passages, titled, scoring or Scoring()
        self.vectors, self.identifiers = vectors, identifiers
        self.titles = _distinct_titles(passages, titled)
        self.title_trie, self.passage_trie = title_trie, passage_trie

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        prompts: Prompts,
        titled: bool = True,
        scoring: Scoring | None = None,
        identifiers: Identifiers = "prefix",
    ) -> Corpus:
        """Make the tries of ``passages``. ``titled``: titles lead to passages, or one to all.
        ``identifiers``: what names a passage (:func:`identifier_texts`)."""
        titles = _distinct_titles(passages, titled)
        title_trie = Trie.build(prompts.ended(titles))
        rows = _passage_rows(passages, range(len(passages)), titles, titled, prompts, identifiers)
        return cls(list(passages), title_trie, Trie.build(*rows), titled, scoring, identifiers=identifiers)

    def changed(self, change: CorpusChange, prompts: Prompts) -> Corpus:
        """This corpus after ``change``, equal to one built of its passages at once, without embeddings. Only
        passages under titles that something changes of are read again."""
        passages = change.passages
        titles = _distinct_titles(passages, self.titled)
        title_number = {title: n for n, title in enumerate(titles)}
        staying = np.flatnonzero(change.former >= 0)
        passage_places = np.full(len(self.passages), -1, np.int64)
        passage_places[change.former[staying]] = staying
        touched = {_title(passages[n], self.titled) for n in np.flatnonzero(change.former < 0)}
        touched |= {_title(self.passages[n], self.titled) for n in np.flatnonzero(passage_places < 0)}
        title_places = np.array([title_number.get(title, -1) for title in self.titles], np.int64)
        known = set(self.titles)
        new_titles = [n for n, title in enumerate(titles) if title not in known]
        new_title_ids = prompts.ended([titles[n] for n in new_titles])
        title_trie = self.title_trie.renumbered(title_places).merged(new_title_ids, new_titles)
        read_again = [i for i, p in enumerate(passages) if _title(p, self.titled) in touched]
        rows, ids = _passage_rows(passages, read_again, titles, self.titled, prompts, self.identifiers)
        others = self.passage_trie.without(n for n, title in enumerate(self.titles) if title in touched)
        passage_trie = others.renumbered(passage_places, title_places).merged(rows, ids)
        return Corpus(
            passages, title_trie, passage_trie, self.titled, self.scoring, identifiers=self.identifiers
        )

    def save(self, folder: Path) -> None:
        """Write the corpus, replacing ``folder`` as a whole. Raises ``DataError`` for vectors that are not
        finite and of unit length."""
        if self.vectors is not None and len(wrong := not_unit_rows(self.vectors)):
            which = self.passages[wrong[0]].id
            raise DataError(f"{folder}: the embedding of passage {which!r} is not finite and of unit length")

        def fill(new: Path) -> None:
            lines = (json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in self.passages)
            write_atomic(new / "passages.jsonl", "".join(lines))
            self.title_trie.save(new / "titles")
            self.passage_trie.save(new / "rows")
            if self.vectors is not None:
                with create_file(new / "vectors.npy") as file:
                    np.save(file, self.vectors)
            metadata = {
                "format": FORMAT,
                "titled": self.titled,
                "identifiers": self.identifiers,
                "scoring": to_dict(self.scoring),
            }
            write_atomic(new / "corpus.json", json.dumps(metadata, indent=1) + "\n")
            write_checksums(new)

        write_folder(folder, fill)

    def save_in(self, model: Path) -> None:
        """Write the corpus into the folder of its model."""
        self.save(model / FOLDER)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Read a corpus; the tries stay on disk until they are walked. Raises ``CheckpointError``."""
        return read_again_if_replaced(cls._read)(folder)

    @classmethod
    def _read(cls, folder: Path) -> Corpus:
        folder = complete(folder)
        if not (folder / "corpus.json").exists():
            raise CheckpointError(f"{folder}: holds no corpus (corpus.json is missing)")
        for name in ("corpus.json", "passages.jsonl", "vectors.npy"):
            verify_file(folder / name, "train or copy the corpus again")
        metadata = read_json_object(folder / "corpus.json", folder)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{folder}: format {metadata.get('format')!r}, this version reads {FORMAT}")
        passages = load_corpus(folder / "passages.jsonl", keep_lines=True)
        scores = current_config(metadata.get("scoring", {}), "corpus.scoring")[0]
        try:
            scoring = from_dict(Scoring, scores, "scoring")
        except ConfigError as error:
            raise ConfigError(f"{folder / 'corpus.json'}: {error}") from error
        if not isinstance(metadata.get("titled"), bool):
            raise CheckpointError(f"{folder / 'corpus.json'}: titled: must be true or false")
        identifiers = metadata.get("identifiers", "prefix")  # earlier versions had no other
        if identifiers not in get_args(Identifiers):
            raise CheckpointError(f"{folder / 'corpus.json'}: identifiers: not known: {identifiers!r}")
        vectors = _vectors(folder / "vectors.npy") if (folder / "vectors.npy").exists() else None
        title_trie, passage_trie = Trie.open(folder / "titles"), Trie.open(folder / "rows")
        corpus = cls(passages, title_trie, passage_trie, metadata["titled"], scoring, vectors, identifiers)
        named = np.array_equal(np.unique(passage_trie.ids), np.arange(len(passages)))
        consistent = named and len(title_trie) == len(corpus.titles)
        if not consistent or (vectors is not None and len(vectors) != len(passages)):
            raise CheckpointError(f"{folder}: passages and tries do not fit together")
        if vectors is not None and len(wrong := not_unit_rows(vectors)):
            raise CheckpointError(
                f"{folder / 'vectors.npy'}: damaged, {len(wrong)} rows are not finite and of unit length, "
                f"the first is {wrong[0]}; train or copy the corpus again"
            )
        return corpus


def _vectors(path: Path) -> np.ndarray:
    check_file(path)
    try:
        # Mapped first: the size is compared before there is room for the numbers.
        vectors = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise CheckpointError(f"{path}: damaged (not rows of finite float32 numbers)")
    return vectors


def _title(passage: Passage, titled: bool) -> str:
    return passage.title if titled else "-"


def _distinct_titles(passages: Sequence[Passage], titled: bool) -> list[str]:
    return list(dict.fromkeys(_title(p, titled) for p in passages))


def _passage_rows(
    passages: Sequence[Passage],
    indices: Sequence[int],
    titles: list[str],
    titled: bool,
    prompts: Prompts,
    identifiers: Identifiers,
) -> tuple[list[list[int]], list[int]]:
    """Rows and passage numbers of the ``indices``; of a title all or none."""
    title_number = {title: n for n, title in enumerate(titles)}
    groups: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    named = [(i, text) for i in indices for text in identifier_texts(passages[i].text, identifiers)]
    for (i, _), ids in zip(named, prompts.ended([text for _, text in named]), strict=True):
        groups[title_number[_title(passages[i], titled)]].append((ids, i))
    rows: list[list[int]] = []
    owners: list[int] = []
    for title, group in groups.items():
        group.sort()
        distinct = [ids for n, (ids, _) in enumerate(group) if n == 0 or ids != group[n - 1][0]]
        common = [0, *(_common_prefix_length(a, b) for a, b in pairwise(distinct)), 0]
        prefix_length = {tuple(ids): max(common[n], common[n + 1]) + 1 for n, ids in enumerate(distinct)}
        for ids, i in group:
            rows.append([title, *ids[: max(_MIN_PREFIX_TOKENS[identifiers], prefix_length[tuple(ids)])]])
            owners.append(i)
    return rows, owners


def _common_prefix_length(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
