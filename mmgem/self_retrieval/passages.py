"""A corpus of passages and the queries it is measured with.

``corpus.jsonl``: ``{"id", "title", "text"}`` a line; queries: ``{"id", "query", "positives": [id], "answers":
[...]}``, where ``answers`` may be absent. Unknown keys are ignored, white space is made single spaces. A
corpus may be text and Markdown files as well; those are cut into passages of at most 200 words, and a
passage's id is its file's path below the folder, ``#`` and its number in the file.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgem.data.text_lines import read_lines
from mmgem.errors import DataError, UsageError
from mmgem.self_retrieval.documents import SUFFIXES, read_document, text_files

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


def load_corpus(path: str | os.PathLike[str], skipped: list[tuple[Path, str]] | None = None) -> list[Passage]:
    """Read a ``.jsonl``, ``.txt``, ``.md`` or ``.markdown`` file, or a folder of the last three.

    Files of a folder that cannot be read or have no text are appended to ``skipped`` with the reason (without
    it, each is a warning in the log); hidden ones are passed over. Raises ``UsageError`` if ``path`` is
    missing or of another kind, ``DataError`` ("file:line: ...") for a malformed line, an id that is there
    twice, and where no passage is left.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, skipped)
    if path.suffix.lower() in SUFFIXES and path.exists():
        return _load_document(path, path.parent)
    if path.exists() and path.suffix.lower() != ".jsonl":
        raise UsageError(f"{path}: a corpus is a .jsonl, .txt or .md file, or a folder of texts")
    return [
        Passage(value["id"], _text_field(value, "title", where), _text_field(value, "text", where))
        for where, value in _json_objects(path, "passages")
    ]


def load_queries(path: str | os.PathLike[str], known: Container[str] | None = None) -> list[Query]:
    """Read a JSONL file of queries; ``known``: the ids of passages there are, if they are to be checked.

    Raises ``UsageError`` if the file cannot be opened, ``DataError`` ("file:line: ...") for a malformed line,
    a query without positives, one whose passage is not known, and a file without queries.
    """
    queries = []
    for where, value in _json_objects(Path(path), "queries"):
        positives = tuple(dict.fromkeys(_text_list_field(value, "positives", where)))
        if not positives:
            raise DataError(f"{where}: positives is empty; a query needs the id of a passage")
        for i in positives:
            if known is not None and i not in known:
                raise DataError(f"{where}: positives: no passage has the id {_preview(i)}")
        answers = _text_list_field(value, "answers", where) if value.get("answers") is not None else []
        tidy = tuple(" ".join(answer.split()) for answer in answers)
        queries.append(Query(value["id"], _text_field(value, "query", where), positives, tidy))
    return queries


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
    if not _is_unicode(name):
        raise DataError(f"{path}: its name is not UTF-8")
    title, texts = read_document(path)
    return [Passage(f"{name}#{n}", title, text) for n, text in enumerate(texts, 1)]


def _json_objects(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with an ``id`` of its own, and where they are ("file:line")."""
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        value = _json_object(line, where)
        _text_field(value, "id", where)
        first = lines.setdefault(value["id"], number)
        if first != number:
            raise DataError(f"{where}: id {_preview(value['id'])} is that of line {first} as well")
        yield where, value
    if not lines:
        raise DataError(f"{path}: no {what}, the file is empty")


def _json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise DataError(f"{where}: not a JSON object on one line: {reason}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not JSON that can be read: {error}") from error
    if type(value) is not dict:
        raise DataError(f"{where}: must be a JSON object, not {_preview(value)}")
    return value


def _text_field(value: dict[str, Any], key: str, where: str) -> str:
    """A field that must have words in it, white space made single spaces."""
    if key not in value:
        raise DataError(f"{where}: {key} is missing")
    return _checked_text(value[key], key, where)


def _text_list_field(value: dict[str, Any], key: str, where: str) -> list[str]:
    """A field that must be a list of strings with words in them, as they are."""
    if key not in value:
        raise DataError(f"{where}: {key} is missing")
    values = value[key]
    if type(values) is not list:
        raise DataError(f"{where}: {key} must be a list of strings, not {_preview(values)}")
    for i, item in enumerate(values):
        _checked_text(item, f"{key}[{i}]", where)
    return values


def _checked_text(text: Any, name: str, where: str) -> str:
    if type(text) is not str or not text.strip():
        raise DataError(f"{where}: {name} must be a non-empty string, not {_preview(text)}")
    if not _is_unicode(text):
        raise DataError(f"{where}: {name} holds half a surrogate pair, which is no character")
    return " ".join(text.split())


def _preview(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
