"""A corpus of passages and the queries it is measured with.

``corpus.jsonl``: ``{"id", "title", "text"}`` a line; queries: ``{"id", "query", "positives": [id], "answers":
[...]}``, where ``answers`` may be absent. Unknown keys are ignored, white space is made single spaces. SQuAD,
BEIR and KILT are read as well (:mod:`~mmgem.self_retrieval.dataset_formats`). A corpus may be text and
Markdown files too; those are cut into passages of at most 200 words, and a passage's id is its file's path
below the folder, ``#`` and its number in the file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmgem.errors import DataError, UsageError
from mmgem.self_retrieval.dataset_formats import is_beir, passage_rows, query_rows
from mmgem.self_retrieval.documents import SUFFIXES, read_document, text_files
from mmgem.self_retrieval.json_rows import Row, is_unicode, preview, text_field, text_list_field

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passage:
    """A text that is found as a whole, under the title of the document it is from."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Query:
    """A question, the ids of the passages that answer it, and answers, none if they are not known."""

    id: str
    query: str
    positives: tuple[str, ...]
    answers: tuple[str, ...]


def load_corpus(
    path: str | os.PathLike[str], skipped: list[tuple[Path, str]] | None = None, keep_lines: bool = False
) -> list[Passage]:
    """Read a ``.jsonl`` file (ours, BEIR's, a knowledge source of KILT), SQuAD's ``.json``, a ``.txt``,
    ``.md`` or ``.markdown`` file, a folder of the last three, or a folder with a ``corpus.jsonl`` (BEIR).

    Files of a folder that cannot be read or have no text are appended to ``skipped`` with the reason (without
    it, each is a warning in the log); hidden ones are passed over. ``keep_lines``: texts of a ``.jsonl`` keep
    their lines, as those that were made of documents have them. Raises ``UsageError`` if ``path`` is
    missing or of another kind, ``DataError`` ("file:line: ...") for a malformed line, an id that is there
    twice, and where no passage is left.
    """
    path = Path(path)
    if path.is_dir():
        if not is_beir(path):
            return _load_folder(path, skipped)
        path = path / "corpus.jsonl"
    if path.suffix.lower() in SUFFIXES and path.exists():
        return _load_document(path, path.parent)
    if path.exists() and path.suffix.lower() not in (".jsonl", ".json"):
        raise UsageError(f"{path}: a corpus is a .jsonl, .json, .txt or .md file, or a folder of texts")
    return [
        Passage(value["id"], text_field(value, "title", where), text_field(value, "text", where, keep_lines))
        for where, value in _identified(passage_rows(path), path, "passages")
    ]


def is_documents(path: Path) -> bool:
    """Whether :func:`load_corpus` reads ``path`` as whole documents: a text or Markdown file, or a folder of
    them."""
    return not is_beir(path) if path.is_dir() else path.suffix.lower() in SUFFIXES


def load_queries(path: str | os.PathLike[str], known: Collection[str] | None = None) -> list[Query]:
    """Read a JSONL file of queries (ours, KILT's), SQuAD's ``.json``, a file ``qrels/*.tsv`` of BEIR or a
    folder with one. ``known``: the ids of passages there are, if they are to be checked; the id of a document
    (of passages ``ID#...``) stands for all of it.

    Raises ``UsageError`` if the file cannot be opened, ``DataError`` ("file:line: ...") for a malformed line,
    a query without positives, one whose passage is not known, and a file without queries.
    """
    queries = []
    documents: dict[str, list[str]] | None = None
    for where, value in _identified(query_rows(Path(path)), Path(path), "queries"):
        positives = list(dict.fromkeys(text_list_field(value, "positives", where)))
        if not positives:
            raise DataError(f"{where}: positives is empty; a query needs the id of a passage")
        if known is not None and not all(i in known for i in positives):
            documents = documents if documents is not None else _documents(known)
            positives = _known_positives(positives, known, documents, where)
        answers = text_list_field(value, "answers", where) if value.get("answers") is not None else []
        tidy = tuple(" ".join(answer.split()) for answer in answers)
        queries.append(Query(value["id"], text_field(value, "query", where), tuple(positives), tidy))
    return queries


def _documents(known: Iterable[str]) -> dict[str, list[str]]:
    documents: dict[str, list[str]] = {}
    for i in known:
        documents.setdefault(i.rpartition("#")[0], []).append(i)
    return documents


def _known_positives(
    positives: list[str], known: Collection[str], documents: dict[str, list[str]], where: str
) -> list[str]:
    """Ids of passages. Paragraphs of a known document that are no passage (headings) are passed over beside
    others."""
    found: list[str] = []
    unknown: list[str] = []
    for i in positives:
        if i in known:
            found.append(i)
        elif i in documents:
            found += sorted(documents[i], key=lambda passage: (len(passage), passage))
        else:
            unknown.append(i)
    for i in unknown:
        document = i.rpartition("#")[0]
        if not found or not document or document not in documents:
            raise DataError(f"{where}: positives: no passage has the id {preview(i)}")
    return list(dict.fromkeys(found))


def _load_folder(root: Path, skipped: list[tuple[Path, str]] | None) -> list[Passage]:
    files, unreadable = text_files(root)
    passages: list[Passage] = []
    for path in files:
        try:
            passages += _load_document(path, root)
        except DataError as error:
            reason = str(error).removeprefix(f"{path}:").strip()
            unreadable.append((path, re.sub(r"^(?=\d+: )", "line ", reason)))
    if not passages:
        first = (
            f"{len(unreadable)} skipped, the first is {unreadable[0][0]}: {unreadable[0][1]}"
            if unreadable
            else ""
        )
        raise DataError(f"{root}: no passages, {first or 'no .txt, .md or .markdown files in it'}")
    if skipped is not None:
        skipped += unreadable
    else:
        for path, reason in unreadable:
            _log.warning("%s: skipped, %s", path, reason)
    return passages


def _load_document(path: Path, root: Path) -> list[Passage]:
    name = path.relative_to(root).as_posix()
    if not is_unicode(name):
        raise DataError(f"{path}: its name is not UTF-8")
    title, texts = read_document(path)
    return [Passage(f"{name}#{n}", title, text) for n, text in enumerate(texts, 1)]


def _identified(rows: Iterable[Row], path: Path, what: str) -> Iterator[Row]:
    """``rows``, each with an ``id`` of its own."""
    places: dict[str, str] = {}
    for where, value in rows:
        text_field(value, "id", where)
        first = places.setdefault(value["id"], where)
        if first != where:
            place = first.removeprefix(str(path)).lstrip(": ")
            place = f"line {place}" if place.isdecimal() else place
            raise DataError(f"{where}: id {preview(value['id'])} is that of {place} as well")
        yield where, value
    if not places:
        raise DataError(f"{path}: no {what}, the file is empty")
