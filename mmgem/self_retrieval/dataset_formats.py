"""Files of known data sets as rows of our own form, which are checked where they are read.

    SQuAD   a .json of {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}: passages and queries
    BEIR    a folder of corpus.jsonl ({"_id", "title", "text"}), queries.jsonl, qrels/*.tsv
    KILT    a knowledge source of {"wikipedia_id", "wikipedia_title", "text": [paragraphs]} a line, and
            queries of {"id", "input", "output": [{"answer", "provenance": [...]}]} (NQ, TriviaQA, FEVER, ...)

A document in paragraphs is several passages, the n-th with the id ``DOCUMENT#n``, counted as its file counts:
from 0 in KILT, which its provenance refers to, from 1 elsewhere. Files are known by what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgem.data.text_lines import read_lines
from mmgem.errors import DataError, UsageError
from mmgem.self_retrieval.json_rows import (
    Row,
    checked_text,
    field,
    json_file,
    json_lines,
    list_field,
    objects_field,
    preview,
    text_field,
)

UNTITLED = "-"
"""The title of passages that have none."""
_HEADING, _BULLET = "Section::::", "BULLET::::"


def is_beir(folder: Path) -> bool:
    """Whether a folder is a corpus in a JSONL file, and no folder of texts."""
    return (folder / "corpus.jsonl").is_file()


def passage_rows(path: Path) -> Iterator[Row]:
    """Passages of a ``.jsonl`` or ``.json`` file as ``{"id", "title", "text"}``.

    Raises ``DataError`` or ``UsageError`` for what cannot be read; fields are checked as far as needed."""
    if path.suffix.lower() == ".json":
        for where, title, n, paragraph in _squad_paragraphs(path):
            yield (
                where,
                {
                    **paragraph,
                    "id": f"{title}#{n}",
                    "title": title,
                    "text": field(paragraph, "context", where),
                },
            )
        return
    for where, value in json_lines(path):
        if type(value.get("text")) is list:
            yield from _paragraph_rows(where, value)
        elif "_id" in value and "id" not in value:
            yield where, {**value, "id": value["_id"], "title": value.get("title") or UNTITLED}
        else:
            yield where, value


def query_rows(path: Path) -> Iterator[Row]:
    """Queries of a file, or of a folder of BEIR, as ``{"id", "query", "positives", "answers"}``.

    Raises as :func:`passage_rows` does, and ``UsageError`` for a folder with several files of answers."""
    if path.is_dir() or path.suffix.lower() == ".tsv":
        yield from _beir_queries(path)
    elif path.suffix.lower() == ".json":
        for where, title, n, paragraph in _squad_paragraphs(path):
            yield from _squad_queries(f"{title}#{n}", paragraph, where)
    else:
        for where, value in json_lines(path):
            if "_id" in value and "positives" not in value:
                raise DataError(f"{where}: positives are missing; give the folder, or its qrels/*.tsv")
            yield where, _kilt_query(where, value) if "output" in value else value


def _paragraph_rows(where: str, value: dict[str, Any]) -> Iterator[Row]:
    """A passage a paragraph. Of KILT's knowledge source the title, headings and empty ones are left out."""
    kilt = "wikipedia_id" in value
    document = text_field(value, "wikipedia_id" if kilt else "id", where)
    title = text_field(value, "wikipedia_title" if kilt else "title", where)
    for n, text in enumerate(list_field(value, "text", where), 0 if kilt else 1):
        if kilt and type(text) is str:
            text = text.replace(_BULLET, "")
            if not text.strip() or text.startswith(_HEADING) or (n == 0 and text.split() == title.split()):
                continue
        checked = checked_text(text, f"text[{n if kilt else n - 1}]", where)
        yield where, {"id": f"{document}#{n}", "title": title, "text": checked}


def _kilt_query(where: str, value: dict[str, Any]) -> dict[str, Any]:
    positives, answers = [], []
    for place, output in objects_field(value, "output", where):
        if output.get("answer"):
            answers.append(output["answer"])
        if output.get("provenance") is None:
            continue
        for source, provenance in objects_field(output, "provenance", place):
            page = text_field(provenance, "wikipedia_id", source)
            first, last = (_number(provenance, f"{name}_paragraph_id", source) for name in ("start", "end"))
            positives += [f"{page}#{n}" for n in range(first, last + 1)]
    return {"id": value.get("id"), "query": field(value, "input", where), "positives": positives} | (
        {"answers": list(dict.fromkeys(answers))} if answers else {}
    )


def _number(value: dict[str, Any], key: str, where: str) -> int:
    number = field(value, key, where)
    if type(number) is not int or number < 0:
        raise DataError(f"{where}: {key} must be a whole number, not {preview(number)}")
    return number


def _squad_paragraphs(path: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Where each paragraph is, its article's title, its number from 1 there, and itself."""
    counts: dict[str, int] = {}
    for article, value in objects_field(json_file(path), "data", str(path)):
        title = text_field(value, "title", article).replace("_", " ")
        for where, paragraph in objects_field(value, "paragraphs", article):
            counts[title] = counts.get(title, 0) + 1
            yield where, title, counts[title], paragraph


def _squad_queries(passage: str, paragraph: dict[str, Any], where: str) -> Iterator[Row]:
    for place, asked in objects_field(paragraph, "qas", where):
        if asked.get("is_impossible"):
            continue
        answers = [text_field(a, "text", at) for at, a in objects_field(asked, "answers", place)]
        query = {"id": asked.get("id"), "query": asked.get("question"), "positives": [passage]}
        yield place, query | ({"answers": list(dict.fromkeys(answers))} if answers else {})


def _beir_queries(path: Path) -> Iterator[Row]:
    qrels = [path] if path.is_file() else sorted((path / "qrels").glob("*.tsv"))
    if len(qrels) != 1:
        names = ", ".join(f"qrels/{file.name}" for file in qrels)
        raise UsageError(f"{path}: {f'give one of {names}' if names else 'no queries (qrels/*.tsv)'}")
    positives: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for number, line in read_lines(qrels[0]):
        where, columns = f"{qrels[0]}:{number}", line.rstrip("\n").split("\t")
        if number == 1 and columns[-1].strip() == "score":
            continue
        if len(columns) != 3 or not columns[2].strip().lstrip("-").isdecimal():
            raise DataError(f"{where}: must be a query's id, a passage's and a whole score, tabs between")
        if int(columns[2]) > 0:
            positives.setdefault(columns[0], []).append(columns[1])
            places.setdefault(columns[0], where)
    for where, value in json_lines(qrels[0].parent.parent / "queries.jsonl"):
        name = value.get("_id", value.get("id"))
        if type(name) is str and (of_query := positives.pop(name, None)):
            places.pop(name)
            query = value.get("text", value.get("query"))
            yield where, {"id": name, "query": query, "positives": of_query}
    if positives:
        name, where = next(iter(places.items()))
        raise DataError(f"{where}: no query has the id {preview(name)}")
