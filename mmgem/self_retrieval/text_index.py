"""A folder of texts as an index that a model searches without having learned it.

    IDX/texts.sqlite3   files, passages, their embeddings (float32) and words (SQLite's FTS5)
    IDX/lock            held by the one process that writes

A transaction holds whole files with all their passages: killed at any moment the index is as the last one
left it, and the next run goes on. A file is read again if its size, time or content has changed, and each
time if it could not be read.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mmgem.data.content_hashes import content_hash
from mmgem.data.scripts import join_units, text_units
from mmgem.data.sentences import cut_words, split_lines
from mmgem.errors import MissingIndexError, MMGEMError, SearchIndexError, UsageError
from mmgem.search.index_files import connect, errors_naming, write_lock
from mmgem.self_retrieval.documents import text_files
from mmgem.self_retrieval.json_rows import is_unicode
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.sentence_places import SentencePlaces
from mmgem.self_retrieval.source_texts import INDEXED, read_source
from mmgem.utils.unit_vectors import not_unit_rows

FORMAT = 1
DATABASE = "texts.sqlite3"
_errors_naming = partial(errors_naming, made_by="mmgem corpus index")
_AT_ONCE = 64  # passages that a transaction has, at least
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    digest TEXT NOT NULL, problem TEXT
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files(id), number INTEGER NOT NULL,
    title TEXT NOT NULL, text TEXT NOT NULL, places TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX passages_file ON passages(file);
CREATE VIRTUAL TABLE words USING fts5(title, text);
"""


@dataclass(frozen=True)
class TextModel:
    """What an index is made with: ``embed`` gives unit rows ``(n, D)`` float32 of passages, ``tokens`` the
    length of a title and a text as the LLM reads them, ``max_tokens`` at most."""

    embed: Callable[[Sequence[Passage]], np.ndarray]
    tokens: Callable[[str, str], int]
    max_tokens: float


@dataclass
class TextIndexReport:
    """What an update did; counts of files but for ``passages`` (in all) and ``failed`` (file, reason)."""

    files: int = 0
    passages: int = 0
    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    seconds: float = 0.0
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class TextSnapshot:
    """An index as it was at one moment: ``passages`` by file and number, ids ``FILE#n``, below ``folder``;
    ``places``: the line (page) of each sentence of each; ``vectors`` ``(n, D)`` float32; ``rows``: of the
    database, ascending."""

    folder: Path
    model: str
    fingerprint: str
    passages: list[Passage]
    places: list[list[int]]
    vectors: np.ndarray
    rows: list[int]


def update_text_index(
    out: Path,
    folder: Path,
    model: str,
    fingerprint: str,
    load: Callable[[], TextModel],
    progress: Callable[[Sequence[Path]], Iterator[Path]] = iter,
) -> TextIndexReport:
    """Bring the index ``out`` of ``folder`` up to date; ``load`` is called if there is something to embed.
    ``model``: the name by which its model is loaded again.

    Raises ``UsageError`` if ``folder`` is none or has no texts, ``SearchIndexError`` if the index is of
    another folder or model (``fingerprint``), damaged, or being written by another process.
    """
    started = time.monotonic()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    report = TextIndexReport()
    with _errors_naming(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = write_lock(out)
    try:
        with _errors_naming(out), closing(connect(out / DATABASE, create=True)) as db:
            db.execute("PRAGMA synchronous = EXTRA")
            _prepare(db, out, folder.resolve(), model, fingerprint)
            _update(db, out, folder, load, progress, report)
    finally:
        lock.close()
    if not report.files and not report.failed:
        raise UsageError(f"{folder}: no texts in this folder ({', '.join(INDEXED[:6])}, ...)")
    report.seconds = time.monotonic() - started
    return report


def _update(
    db: sqlite3.Connection,
    out: Path,
    folder: Path,
    load: Callable[[], TextModel],
    progress: Callable[[Sequence[Path]], Iterator[Path]],
    report: TextIndexReport,
) -> None:
    paths, report.failed = text_files(folder, INDEXED)
    paths = [path for path in paths if not path.resolve().is_relative_to(out.resolve())]
    rows = db.execute("SELECT path, size, mtime_ns, digest, problem FROM files").fetchall()
    known = {row[0]: row[1:4] if row[4] is None else (None, None, None) for row in rows}
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    gone = [name for name in known if name not in names]
    report.removed = len(gone)
    with db:
        db.execute("BEGIN")
        for name in gone:
            _forget(db, name)
    writer = _Writer(db, load, report)
    for path in progress(list(names.values())):
        name = path.relative_to(folder).as_posix()
        try:
            stat = path.stat()
            size, mtime_ns, former_digest = known.get(name, (None, None, None))
            if (size, mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                report.unchanged += 1
                continue
            digest = content_hash(path)
            if former_digest == digest:
                db.execute("UPDATE files SET mtime_ns = ? WHERE path = ?", (stat.st_mtime_ns, name))
                report.unchanged += 1
                continue
            if not is_unicode(name):
                raise UsageError("its name is not UTF-8")
            writer.add(name, path, stat, digest)
        except (MMGEMError, OSError) as error:
            reason = str(error).removeprefix(f"{path}:").strip()
            report.failed.append((path, reason))
            if is_unicode(name):
                with db:
                    db.execute("BEGIN")
                    _forget(db, name)
                    db.execute("INSERT INTO files VALUES (NULL, ?, 0, 0, '', ?)", (name, reason))
    writer.flush()
    (report.files,) = db.execute("SELECT count(*) FROM files WHERE problem IS NULL").fetchone()
    (report.passages,) = db.execute("SELECT count(*) FROM passages").fetchone()


class _Writer:
    """Reads files, embeds their passages some files at once and writes these in one transaction."""

    def __init__(self, db: sqlite3.Connection, load: Callable[[], TextModel], report: TextIndexReport):
        self._db, self._load, self._report = db, load, report
        self._model: TextModel | None = None
        self._files: list[tuple[str, os.stat_result, str]] = []
        self._passages: list[tuple[int, Passage, list[int]]] = []  # with the number of their file

    @property
    def model(self) -> TextModel:
        """Loaded when it is needed."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def add(self, name: str, path: Path, stat: os.stat_result, digest: str) -> None:
        """Read a file. Raises as :func:`read_source`."""
        source = read_source(path)
        places = SentencePlaces(source.lines)
        texts = [
            piece for text in source.passages for piece in _fitting(source.title, text, self.model, path)
        ]
        for n, text in enumerate(texts, 1):
            found = [places.next(sentence) for sentence in split_lines(text)]
            self._passages.append((len(self._files), Passage(f"{name}#{n}", source.title, text), found))
        self._files.append((name, stat, digest))
        if len(self._passages) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Embed and write what has been added."""
        if not self._files:
            return
        vectors = self.model.embed([passage for _, passage, _ in self._passages]).astype("<f4")
        with self._db as db:
            db.execute("BEGIN")
            ids = []
            for name, stat, digest in self._files:
                _forget(db, name)
                row = (name, stat.st_size, stat.st_mtime_ns, digest)
                ids.append(db.execute("INSERT INTO files VALUES (NULL, ?, ?, ?, ?, NULL)", row).lastrowid)
            for (n, passage, places), vector in zip(self._passages, vectors, strict=True):
                number = int(passage.id.rpartition("#")[2])
                fields = (ids[n], number, passage.title, passage.text, json.dumps(places), vector.tobytes())
                added = db.execute("INSERT INTO passages VALUES (NULL, ?, ?, ?, ?, ?, ?)", fields).lastrowid
                words = (added, passage.title, passage.text)
                db.execute("INSERT INTO words(rowid, title, text) VALUES (?, ?, ?)", words)
        self._report.embedded += len(self._files)
        self._files, self._passages = [], []


def _fitting(title: str, text: str, model: TextModel, path: Path) -> list[str]:
    """``text`` in as few equal pieces as the LLM can read."""
    if model.tokens(title, text) <= model.max_tokens:
        return [text]
    words = text_units(text)
    for count in range(2, len(words) + 1):
        pieces = [join_units(piece) for piece in cut_words(words, -(-len(words) // count))]
        if all(model.tokens(title, piece) <= model.max_tokens for piece in pieces):
            return pieces
    raise UsageError(f"{path}: a word of more than {model.max_tokens} tokens, which the model cannot read")


def open_text_index(out: Path) -> TextSnapshot:
    """Read an index as it is now. Raises ``SearchIndexError`` if there is none or it is damaged."""
    if not (out / DATABASE).is_file():
        raise MissingIndexError(f"{out}: no index of texts; mmgem corpus index makes one")
    with _errors_naming(out), closing(connect(out / DATABASE, create=False)) as db:
        db.execute("BEGIN")
        _check_version(db, out)
        meta = dict(db.execute("SELECT key, value FROM meta"))
        found = db.execute(
            "SELECT p.id, f.path, p.number, p.title, p.text, p.places, p.vector FROM passages p "
            "JOIN files f ON f.id = p.file ORDER BY p.id"
        ).fetchall()
    if not found:
        raise SearchIndexError(f"{out}: holds no passages; run mmgem corpus index again")
    try:
        folder, model, fingerprint = Path(meta["folder"]), meta["model"], meta["fingerprint"]
        passages = [Passage(f"{path}#{number}", title, text) for _, path, number, title, text, _, _ in found]
        places = [json.loads(row[5]) for row in found]
        vectors = np.frombuffer(b"".join(row[6] for row in found), "<f4").reshape(len(found), -1)
    except (KeyError, ValueError) as error:
        raise SearchIndexError(f"{out}: damaged; delete it and run mmgem corpus index again") from error
    if len(wrong := not_unit_rows(vectors)):
        which = passages[wrong[0]].id
        raise SearchIndexError(f"{out}: damaged, the embedding of {which} is not of unit length; delete it")
    return TextSnapshot(folder, model, fingerprint, passages, places, vectors, [row[0] for row in found])


def rank_by_words(out: Path, question: str, count: int) -> list[int]:
    """Rows of the ``count`` passages that BM25 (of SQLite's FTS5) ranks first for the words of a question."""
    words = ["".join(c for c in word if c.isalnum()) for word in question.split()]
    query = " OR ".join(f'"{word}"' for word in words if word)
    if not query:
        return []
    with _errors_naming(out), closing(connect(out / DATABASE, create=False)) as db:
        found = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?"
        return [row for (row,) in db.execute(found, (query, count))]


def _prepare(db: sqlite3.Connection, out: Path, folder: Path, model: str, fingerprint: str) -> None:
    if _check_version(db, out) == 0:
        with db:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
    meta = dict(db.execute("SELECT key, value FROM meta"))
    if meta.get("folder", str(folder)) != str(folder):
        raise SearchIndexError(f"{out}: is the index of {meta['folder']}; give another --out")
    if meta.get("fingerprint", fingerprint) != fingerprint:
        raise SearchIndexError(f"{out}: was made by another model ({meta['model']}); give another --out")
    facts = (("folder", str(folder)), ("model", model), ("fingerprint", fingerprint))
    with db:
        db.execute("BEGIN")
        db.executemany("REPLACE INTO meta VALUES (?, ?)", facts)


def _forget(db: sqlite3.Connection, name: str) -> None:
    of_file = "(SELECT id FROM files WHERE path = ?)"
    db.execute(f"DELETE FROM words WHERE rowid IN (SELECT id FROM passages WHERE file = {of_file})", (name,))
    db.execute(f"DELETE FROM passages WHERE file = {of_file}", (name,))
    db.execute("DELETE FROM files WHERE path = ?", (name,))


def _check_version(db: sqlite3.Connection, out: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= FORMAT:
        raise SearchIndexError(f"{out}: index format {version}, this mmgem knows {FORMAT}")
    return version
