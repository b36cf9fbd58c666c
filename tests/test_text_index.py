"""A folder of texts as an index: what is read of each kind of file, where sentences begin, what an update
costs, and that a kill loses nothing."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from mmgem.checkpoints.model_folder import save_model
from mmgem.checkpoints.resolve import fingerprint
from mmgem.cli.main import main
from mmgem.data.sentences import split_lines, split_prose
from mmgem.errors import DataError, SearchIndexError, UsageError
from mmgem.self_retrieval import text_index
from mmgem.self_retrieval.check_text_index import check_text_index
from mmgem.self_retrieval.code_comments import code_lines
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.documents import split_document
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.sentence_places import SentencePlaces
from mmgem.self_retrieval.source_texts import read_source
from mmgem.self_retrieval.text_index import TextModel, open_text_index, update_text_index
from mmgem.self_retrieval.text_search import TextSearch, text_model

NETWORK, TOKENIZER = toys.network("tied llama", "none"), toys.tokenizer()


def places(path: Path) -> list[tuple[int, str]]:
    """The line of each sentence of a file."""
    source = read_source(path)
    found = SentencePlaces(source.lines)
    return [(found.next(s), s) for text in source.passages for s in split_prose(text)]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_markdown(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a_b.md",
        "---\ntitle: x\n---\n# Boats\n\nA **red** boat [sails](https://x.org/a). It is\nfast. A red boat "
        "stops.\n\n## Shore\n\n- The dog runs.\n",
    )
    assert read_source(path).title == "Boats"
    assert places(path) == [
        (6, "A red boat sails."),
        (6, "It is fast."),
        (7, "A red boat stops."),
        (9, "Shore."),
        (11, "The dog runs."),
    ]


def test_html(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.html",
        "<html><head><title>A &amp; B</title><style>p { x }</style></head>\n<body><p>One <b>bold</b>\nword.\n"
        "<p>Two.</p><script>no()</script>\n<h2>The\n end</h2><ul><li>First.<li>Second.</ul>\n</body>\n",
    )
    assert read_source(path).title == "A & B"
    expected = [(2, "One bold word."), (4, "Two."), (5, "The end."), (6, "First."), (6, "Second.")]
    assert places(path) == expected
    assert read_source(written(tmp_path / "b.htm", "<head><body><h1>T</h1>x")).title == "T"


PYTHON = '''#!/usr/bin/env python
"""What this is.

More of it.
"""
x = "not this"  # but this


class Dog:
    """Runs."""

    async def bark(self):
        # First half
        # and second.
        """Barks."""
        return """nor this"""
'''


def test_paragraphs_headings_items_and_code_are_lines() -> None:
    text = "# T\n\n## How to\n\nRun it\nso. Then stop.\n\n- one\n  two\n- three\n"
    text += "\n```\npip install x\n\n  x  run\n```\n"
    text += "\n| a | b |\n|---|---|\n| c | d |\n"
    title, (passage,) = split_document(text, markdown=True)
    lines = [
        "How to.",
        "Run it so. Then stop.",
        "one two",
        "three",
        "pip install x",
        "x run",
        "| a | b |",
        "| c | d |",
    ]
    assert title == "T" and passage.split("\n") == lines
    assert split_lines(passage) == [lines[0], "Run it so.", "Then stop.", *lines[2:]]
    long = "\n".join(["```", *(f"line {n} of code" for n in range(100)), "```"])
    parts = split_document(long, markdown=True)[1]
    assert len(parts) == 2 and [line for part in parts for line in part.split("\n")] == long.split("\n")[1:-1]


def test_source_code(tmp_path: Path) -> None:
    path = written(tmp_path / "a_b.py", PYTHON)
    assert read_source(path).title == "a_b.py"
    text = " ".join(" ".join(read_source(path).passages).split())
    assert (
        "What this is. More of it. but this." in text
        and "Class Dog: Runs." in text
        and "First half and second." in text
    )
    assert "not this" not in text and "nor this" not in text
    found = {s: n for n, s in places(path)}
    assert (
        found["What this is."] == 2
        and found["More of it. but this."] == 4
        and found["Class Dog: Runs."] == 10
    )
    assert found["First half and second."] == 13 and found["Function bark: Barks."] == 15
    c = 'char *s = "// no";\n/* A dog\n * runs. */\nint x; // fast\nint y; // and far\n'
    assert code_lines(c, ".c") == [(2, "A dog"), (3, "runs."), (4, "fast"), (5, "and far.")]
    assert code_lines("x='a#b' # yes\n\necho \\\"$#\\\" # more", ".sh") == [
        (1, "yes."),
        (3, ""),
        (3, "more."),
    ]
    assert code_lines("def f(:\n  # said\n", ".py") == [(2, "said.")]
    assert code_lines("SELECT '--' -- all", ".sql") == [(1, "all.")]


def test_pdf(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    writer = pypdf.PdfWriter()
    for line in ("The dog runs.", "A boat sails."):
        page = writer.add_blank_page(200, 200)
        font = pypdf.generic.DictionaryObject(
            {
                pypdf.generic.NameObject("/Type"): pypdf.generic.NameObject("/Font"),
                pypdf.generic.NameObject("/Subtype"): pypdf.generic.NameObject("/Type1"),
                pypdf.generic.NameObject("/BaseFont"): pypdf.generic.NameObject("/Helvetica"),
            }
        )
        fonts = pypdf.generic.DictionaryObject({pypdf.generic.NameObject("/F1"): font})
        resources = pypdf.generic.DictionaryObject({pypdf.generic.NameObject("/Font"): fonts})
        page[pypdf.generic.NameObject("/Resources")] = resources
        stream = pypdf.generic.DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 100 Td ({line}) Tj ET".encode())
        page[pypdf.generic.NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)
    assert places(path) == [(1, "The dog runs."), (2, "A boat sails.")]
    with pytest.raises(DataError, match=r"b\.pdf: not a PDF that can be read"):
        read_source(written(tmp_path / "b.pdf", "%PDF-1.4 nothing"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(4):
        text = " ".join(f"{toys.sentence(rng, 7).capitalize()}." for _ in range(3))
        written(tmp_path / "docs" / f"d{n}.md", f"# {toys.sentence(rng, 2)}\n\n{text}\n")
    return tmp_path / "docs"


@pytest.fixture
def update(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    embedded: list[str] = []
    made = text_model(NETWORK, TOKENIZER)

    def embed(passages: Any) -> np.ndarray:
        embedded.extend(p.id for p in passages)
        return made.embed(passages)

    def run(out: Path = tmp_path / "idx", **options: Any) -> tuple[Any, list[str]]:
        embedded.clear()
        model = TextModel(embed, made.tokens, options.pop("most", made.max_tokens))
        report = update_text_index(out, folder, "m", options.pop("model", "f"), lambda: model, **options)
        return report, list(embedded)

    return run


def content(out: Path) -> list[Any]:
    """All of an index but the numbers of its rows."""
    with sqlite3.connect(out / text_index.DATABASE) as db:
        rows = db.execute(
            "SELECT f.path, f.digest, p.number, p.title, p.text, p.places, p.vector, w.title, w.text "
            "FROM files f LEFT JOIN passages p ON p.file = f.id LEFT JOIN words w ON w.rowid = p.id "
            "ORDER BY f.path, p.number"
        ).fetchall()
        (words,) = db.execute("SELECT count(*) FROM words").fetchone()
    assert words == sum(row[2] is not None for row in rows)
    return [(*row[:6], np.frombuffer(row[6], "<f4").round(4).tolist(), *row[7:]) for row in rows if row[2]]


def test_an_update_embeds_what_has_changed(folder: Path, update: Callable[..., Any], tmp_path: Path) -> None:
    report, embedded = update()
    assert (report.files, report.passages, report.embedded, len(embedded)) == (4, 4, 4, 4)
    assert update()[1] == [] and update()[0].unchanged == 4
    os.utime(folder / "d0.md", (1, 1))
    written(folder / "d1.md", "# red boat\n\nThe dog runs.\n")
    (folder / "d2.md").unlink()
    written(folder / "sub" / "new.txt", "A boat.")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    report, embedded = update()
    assert embedded == ["d1.md#1", "sub/new.txt#1"]
    assert (report.files, report.unchanged, report.removed, report.embedded) == (4, 2, 1, 2)
    ((bad, reason),) = report.failed
    assert bad.name == "bad.txt" and "UTF-16" in reason
    update(tmp_path / "at_once")
    assert content(tmp_path / "idx") == content(tmp_path / "at_once")
    written(folder / "bad.txt", "Good now.")
    assert update()[1] == ["bad.txt#1"]


def test_a_kill_loses_nothing_and_the_next_run_goes_on(
    update: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_index, "_AT_ONCE", 1)

    def dying(paths: Any) -> Any:
        yield from paths[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(progress=dying)
    assert len(open_text_index(tmp_path / "idx").passages) == 2
    assert len(update()[1]) == 2
    update(tmp_path / "at_once")
    assert content(tmp_path / "idx") == content(tmp_path / "at_once")


def test_long_passages_are_cut_to_what_the_model_reads(update: Callable[..., Any], tmp_path: Path) -> None:
    update(tmp_path / "short", most=16)
    short, long = (open_text_index(tmp_path / n).passages for n in ("short", update()[0] and "idx"))
    assert len(short) > len(long)
    assert all(text_model(NETWORK, TOKENIZER).tokens(p.title, p.text) <= 16 for p in short)
    assert " ".join(p.text for p in short) == " ".join(p.text for p in long)


def test_what_cannot_be_is_said(folder: Path, update: Callable[..., Any], tmp_path: Path) -> None:
    update()
    with pytest.raises(SearchIndexError, match="was made by another model"):
        update(model="g")
    with pytest.raises(SearchIndexError, match="is the index of "):
        update_text_index(tmp_path / "idx", tmp_path, "m", "f", lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(SearchIndexError, match="no index of texts"):
        open_text_index(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no texts in this folder"):
        update_text_index(tmp_path / "i", tmp_path / "none", "m", "f", lambda: None)  # type: ignore[arg-type, return-value]
    assert check_text_index(tmp_path / "idx").counts == {"passages": 4, "files": 4}
    database = tmp_path / "idx" / text_index.DATABASE
    data = database.read_bytes()
    for page in range(1, len(data) // 4096):
        database.write_bytes(data[: page * 4096] + b"\xff" * 4096 + data[(page + 1) * 4096 :])
        assert check_text_index(tmp_path / "idx").problems
    database.write_bytes(b"x" * 5000)
    with pytest.raises(SearchIndexError, match="idx: file is not a database"):
        open_text_index(tmp_path / "idx")


@pytest.mark.parametrize("learned", [False, True])
def test_search_and_ask(
    learned: bool, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = Corpus.build(toys.passages(), Prompts(TOKENIZER))
    save_model(tmp_path / "m", NETWORK, TOKENIZER, "", more=corpus.save_in if learned else None)
    out = str(tmp_path / "idx")
    assert main(["corpus", "index", str(folder), "--model", str(tmp_path / "m"), "--out", out, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told) == ["files", "passages", "embedded", "unchanged", "removed", "failed", "seconds"]
    assert told["files"] == told["embedded"] == 4
    assert main(["corpus", "index", str(folder), "--model", str(tmp_path / "m"), "--out", out]) == 0
    assert "4 passages of 4 files (0 embedded, 4 unchanged, 0 removed" in capfd.readouterr().out
    assert main(["corpus", "search", "the dog", "--index", out, "--json"]) == 0
    hits = json.loads(capfd.readouterr().out)["hits"]
    assert list(hits[0]) == ["id", "title", "text", "score", "file", "sentence", "line"]
    assert len(hits) == 4 and sum(hit["score"] for hit in hits) == pytest.approx(1)
    for hit in hits:
        assert hit["sentence"] in hit["text"]
        assert hit["sentence"] in (folder / hit["file"]).read_text().splitlines()[hit["line"] - 1]
    assert main(["corpus", "ask", "the dog", "--index", out]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.endswith(".md:3") for line in lines[:3])
    assert main(["corpus", "ask", "the dog", "--index", out, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told) == ["query", "answer", "sentence", "file", "line", "hits"]
    assert learned or told["answer"] is None
    assert main(["corpus", "ask", "the dog", "--index", out, "--json", "--precision", "bfloat16"]) == 0
    halved = json.loads(capfd.readouterr().out)
    assert {hit["id"]: hit["score"] for hit in halved["hits"]} == pytest.approx(
        {hit["id"]: hit["score"] for hit in told["hits"]}, abs=0.05
    )


def test_the_judge_reads_what_words_and_embeddings_find(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m", NETWORK, TOKENIZER, "")
    source, out = tmp_path / "m", tmp_path / "idx"
    made = text_model(NETWORK, TOKENIZER)
    update_text_index(out, folder, str(source), fingerprint(source), lambda: made)
    searcher = TextSearch.open(out)
    passages = searcher.snapshot.passages
    assert np.allclose(
        searcher.snapshot.vectors, embed_passages(NETWORK, Prompts(TOKENIZER), passages), atol=1e-5
    )
    hits = searcher.search("the dog", 4)
    read = searcher.reader.score_passages("the dog", range(4)).query_likelihood
    assert [h.id for h in hits] == [passages[n].id for n in np.argsort(-read, kind="stable")]
    searcher.scoring.dense_candidates = 1
    word = next(w for w in passages[2].text.lower().rstrip(".").split() if len(w) > 3)
    holding = {p.id for p in passages if word in f"{p.title} {p.text}".lower()}
    assert holding & {h.id for h in searcher.search(word, 4)}
    with pytest.raises(UsageError, match="question is empty"):
        searcher.search(" ")
    with pytest.raises(UsageError, match="the question has 99 tokens, 80 at most"):
        searcher.search("dog " * 99)


def test_a_folder_of_unreadable_files_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", NETWORK, TOKENIZER, "")
    written(tmp_path / "docs" / "a.txt", " \n")
    argv = ["corpus", "index", str(tmp_path / "docs"), "-m", str(tmp_path / "m"), "-o", str(tmp_path / "i")]
    assert main(argv) == 1
    err = capfd.readouterr().err
    assert "a.txt: no text" in err and "none of the 1 files could be read" in err.splitlines()[-1]


def test_one_of_model_and_index(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--model", "m", "--index", "i"]):
        assert main(["corpus", "search", "a dog", *options]) == 2
        assert "give one of --model and --index" in capfd.readouterr().err
    assert main(["corpus", "ask", "a dog", "--index", str(tmp_path)]) == 2
    assert "no index of texts" in capfd.readouterr().err
