"""Corpora and queries from files: what is read, how texts are cut, what is said of what cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import warns

from mmgem.data.sentences import passage_sentences, split_prose
from mmgem.errors import DataError, UsageError
from mmgem.self_retrieval.documents import split_document
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries

GOOD = {"id": "a", "title": "T", "text": "Some words."}
ASKED = {"id": "q", "query": "Who?", "positives": ["a"]}


def jsonl(folder: Path, *rows: Any, name: str = "c.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def prose(count: int, words: int = 10, start: int = 0) -> list[str]:
    """Sentences of ``words`` words, all different."""
    return [" ".join([f"S{n}", *["word"] * (words - 2), "end."]) for n in range(start, start + count)]


# JSONL


def test_a_corpus_in_file_order(tmp_path: Path) -> None:
    long = " ".join(["word"] * 300)
    path = tmp_path / "c.jsonl"
    rows = [
        {"id": "b.1", "title": " Two\n words ", "text": "One\t two.\n\nThree", "url": 5},
        {"id": "a é", "title": "É", "text": long},
    ]
    lines = "\r\n\r\n  \r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert load_corpus(path) == [Passage("b.1", "Two words", "One two. Three"), Passage("a é", "É", long)]


def test_queries(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "query": " Who\n is it? ", "positives": ["b", "a", "b"], "answers": ["The  man", "he"]},
        {"id": "2", "query": "Where?", "positives": ["a"], "answers": None, "more": {}},
        {"id": "3", "query": "When?", "positives": ["unknown"]},
    ]
    path = jsonl(tmp_path, *rows)
    assert load_queries(path) == [
        Query("1", "Who is it?", ("b", "a"), ("The man", "he")),
        Query("2", "Where?", ("a",), ()),
        Query("3", "When?", ("unknown",), ()),
    ]
    with pytest.raises(DataError, match=r'c\.jsonl:3: positives: no passage has the id "unknown"$'):
        load_queries(path, {"a", "b"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{\n", "not a JSON object on one line: "),
        ("[]\n", "must be a JSON object, not []"),
        ("null\n", "must be a JSON object, not null"),
        ("9" * 5000 + "\n", "not JSON that can be read: "),
        ("[" * 200_000 + "\n", "not JSON that can be read: "),
        ({"title": "T", "text": "x"}, "id is missing"),
        ({"id": "b", "text": "x"}, "title is missing"),
        ({"id": "b", "title": "T"}, "text is missing"),
        (GOOD | {"id": 5}, "id must be a non-empty string, not 5"),
        (GOOD | {"id": "b", "title": " \n"}, 'title must be a non-empty string, not " \\n"'),
        (GOOD | {"id": "b", "text": {"x": "x" * 99}}, 'text must be a non-empty string, not {"x": "xxx'),
        (GOOD | {"id": "b", "text": "\ud800"}, "text holds half a surrogate pair"),
        (GOOD, 'id "a" is that of line 1 as well'),
    ],
)
def test_a_wrong_line_of_a_corpus_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path, GOOD, "\n", row)
    with pytest.raises(DataError) as error:
        load_corpus(path)
    assert str(error.value).startswith(f"{path}:3: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": ""}, "query must be a non-empty string"),
        ({"positives": []}, "positives is empty"),
        ({"positives": "a"}, 'positives must be a list of strings, not "a"'),
        ({"positives": ["a", 1]}, r"positives\[1\] must be a non-empty string, not 1"),
        ({"answers": "yes"}, "answers must be a list of strings"),
        ({"answers": [""]}, r"answers\[0\] must be a non-empty string"),
        ({"id": "p"}, 'id "p" is that of line 1 as well'),
    ],
)
def test_a_wrong_query_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path, ASKED | {"id": "p"}, ASKED | change)
    with pytest.raises(DataError, match=rf"c\.jsonl:2: {message}"):
        load_queries(path)


@pytest.mark.parametrize("key", ["id", "query", "positives"])
def test_a_query_needs_its_fields(tmp_path: Path, key: str) -> None:
    path = jsonl(tmp_path, {name: value for name, value in ASKED.items() if name != key})
    with pytest.raises(DataError, match=rf"c\.jsonl:1: {key} is missing"):
        load_queries(path)


def test_files_that_cannot_be_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xe9\n")
    with pytest.raises(DataError, match=r"latin\.jsonl:2: not UTF-8 text"):
        load_corpus(tmp_path / "latin.jsonl")
    for content in ("", "\n \n"):
        with pytest.raises(DataError, match=r"c\.jsonl: no passages, the file is empty"):
            load_corpus(jsonl(tmp_path, content))
        with pytest.raises(DataError, match=r"c\.jsonl: no queries, the file is empty"):
            load_queries(jsonl(tmp_path, content))
    for name in ("gone.jsonl", "gone.txt", "gone"):
        with pytest.raises(UsageError, match=rf"{name}: No such file"):
            load_corpus(tmp_path / name)
    (tmp_path / "c.pdf").write_text("x")
    with pytest.raises(UsageError, match=r"c\.pdf: a corpus is a \.jsonl"):
        load_corpus(tmp_path / "c.pdf")


# Text and Markdown


MARKDOWN = """---
title: not this
---
<!-- nor this -->

# The **Great** [Lake](https://x.org/a_(b)) ##

It is `deep`, see ![a map](map.png "Map").
Goes on.

- one
- two
> said

| a | b |
|---|:-:|

Shores
------
## North
1. Cold water.
***
```python
# no heading
x = **y**

z
```
## Nothing follows
"""


def test_markdown() -> None:
    assert split_document(MARKDOWN, markdown=True) == (
        "The Great Lake",
        [
            "It is deep, see a map. Goes on.\none\ntwo said\n| a | b |",
            "Shores.\nNorth.\n1. Cold water.\n# no heading\nx = **y**\nz",
        ],
    )


@pytest.mark.parametrize(
    ("text", "title", "passages"),
    [
        ("Title\n=====\n\nText - with **marks**\n* kept\n", "Title", ["Text - with **marks** * kept"]),
        ("=====\nTitle\n=====\nText", "Title", ["Text"]),
        ("Text.\n\n# Later\n\nMore", "", ["Text.", "Later.\nMore"]),
        ("#hashtag and\n#!more", "", ["#hashtag and #!more"]),
        ("---\nno front matter\n---\nText", "no front matter", ["Text"]),
        ("two\nlines\n---\nText", "", ["two lines\nText"]),
        ("# C#\nText\n## Is it?\nYes", "C#", ["Text", "Is it?\nYes"]),
        ("#\nText", "", ["Text"]),
        ("````\n```\ncode", "", ["```\ncode"]),
        ("# Only\n## headings", "Only", []),
        (" \n\n", "", []),
    ],
)
def test_plain_text(text: str, title: str, passages: list[str]) -> None:
    assert split_document(text, markdown=False) == (title, passages)


def test_passages_end_where_paragraphs_do_or_else_sentences() -> None:
    first, second, third = prose(12), prose(9, start=20), prose(25, start=40)
    text = "\n\n".join(" ".join(p) for p in (first, second, third))
    assert (
        split_document(text, markdown=True)[1]
        == [
            " ".join(first),  # with the second it would be 210 words
            " ".join(second) + "\n" + " ".join(third[:11]),  # not half full: goes on into the third
            " ".join(third[11:]),
        ]
    )
    together = "\n\n".join(" ".join(p) for p in (first, prose(8, start=20)))
    assert len(split_document(together, markdown=True)[1]) == 1
    apart = f"{' '.join(first)}\n# H\n{' '.join(prose(2, start=20))}"
    assert len(split_document(apart, markdown=True)[1]) == 2


@given(st.lists(st.sampled_from(["a b c. ", "Dr. X ", "word ", "\n", "\n\n", "# head\n", "x " * 201])))
def test_no_word_is_lost_and_no_passage_too_long(parts: list[str]) -> None:
    text = "Start.\n" + "".join(parts) + "\nend"
    passages = split_document(text, markdown=False)[1]
    assert max(len(p.split()) for p in passages) <= 200
    said = " ".join(passages).replace("head.", "head").split()
    assert [w for w in said if w != "#"] == [w for w in text.split() if w != "#"]


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    files = {
        "my_long-name.txt": " ".join(prose(30)),
        "sub/a.md": "# A\nText of A.",
        "B.MARKDOWN": "Text of B.",
        ".hidden.md": "x",
        ".git/x.md": "x",
        "data.jsonl": "x",
        "sub/empty.md": " \n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"x\ncaf\xe9")
    (tmp_path / "zero.txt").write_bytes(b"P\0\1")
    (tmp_path / "link.txt").symlink_to("nowhere")
    skipped: list[tuple[Path, str]] = []
    found = load_corpus(tmp_path, skipped)
    assert [(p.id, p.title) for p in found] == [
        ("B.MARKDOWN#1", "B"),
        ("my_long-name.txt#1", "my long name"),
        ("my_long-name.txt#2", "my long name"),
        ("sub/a.md#1", "A"),
    ]
    assert found[-1].text == "Text of A."
    assert sorted(skipped) == [
        (tmp_path / "latin.txt", "line 2: not UTF-8 text"),
        (tmp_path / "link.txt", "not a file"),
        (tmp_path / "sub/empty.md", "no text"),
        (tmp_path / "zero.txt", "not text, it holds zero bytes"),
    ]
    with warns(match="skipped") as warned:
        assert load_corpus(tmp_path) == found
    assert len(warned) == 4
    assert load_corpus(str(tmp_path / "sub" / "a.md")) == [Passage("a.md#1", "A", "Text of A.")]


def test_a_folder_of_which_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no passages, no \.txt, \.md or \.markdown files in it"):
        load_corpus(tmp_path)
    (tmp_path / "a.md").write_text("# Title only")
    with pytest.raises(DataError, match=r"no passages, 1 skipped, the first is .*a\.md: no text"):
        load_corpus(tmp_path)
    with pytest.raises(DataError, match=r"a\.md: no text"):
        load_corpus(tmp_path / "a.md")


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("the file system takes no such name")
    (tmp_path / "a.txt").write_text("x")
    skipped: list[tuple[Path, str]] = []
    assert [p.id for p in load_corpus(tmp_path, skipped)] == ["a.txt#1"]
    assert [reason for _, reason in skipped] == ["its name is not UTF-8"]


# Sentences


@pytest.mark.parametrize(
    "expected",
    [
        ["Mario Addison added 6½ sacks.", "The line had 3.5 million fans."],
        ["Dr. Smith met J. R. Smith of the U.S. Senate.", "He left."],
        ["It lies in the U.S.", "The end came at 5 p.m.", "After that, George W. Bush spoke."],
        ["See No. 5 on p. 7, e.g. Fig. 2.", "No.", "I said no."],
        ["Is it?", '"Yes!"', 'She said "No!" and left.', "(It was late.)", "So?"],
        ["Brown v. Board was decided.[12]", "It was 1954.", "25 people came."],
        ["Acme Inc. Chairman Lee resigned.", "Jones et al. disagree... strongly.", "Well..."],
        ["1. Do it.", "2. Do it again."],
        ["He moved to Main St.", "He likes St. Augustine."],
        ["World War I.", "The war ended . . ."],
        ["Он ушёл.", "Ёж остался."],
        ["no mark at all"],
        ["Er kam am 3. Mai bzw. im 19. Jahrhundert.", "Dr. Weber, Nr. 5, d. h. Nora usw.", "Das war alles."],
        ["„Ja.“", "»Nein.«", "Am 5. August ging er."],
        ["M. Dupont et Mme Durand, p. ex. Luc, etc.", "Il est parti. « Oui. »", "Quoi ?", "Rien !"],
        ["Přišel 3. května.", "Je to tzv. Most, např. Karlův apod.", "Pak odešel."],
        ["개가 뛴다.", "2023. 5. 3. 서울에서 찍었다.", "정말?!", "네…", "그렇다."],
        ["I am 25.", "August came.", "He is 3.", "Then he left."],
        [],
    ],
)
def test_where_sentences_end(expected: list[str]) -> None:
    assert split_prose("\n ".join(expected)) == expected


def test_where_sentences_without_spaces_end() -> None:
    text = "一只狗在跑。今日は3.5度です！？「行く。」と言った。（终）"
    assert split_prose(text) == ["一只狗在跑。", "今日は3.5度です！？", "「行く。」と言った。", "（终）"]


@given(st.text(st.sampled_from("aA1 .!?\"')(\n"), max_size=60))
def test_sentences_joined_are_the_text(text: str) -> None:
    assert " ".join(split_prose(text)) == " ".join(text.split())


def test_sentences_to_memorise() -> None:
    eight, three = prose(1, 8)[0], prose(1, 3)[0]
    assert passage_sentences(f"{eight} {eight}") == [eight, eight]
    assert passage_sentences(f"{eight} {three}") == [f"{eight} {three}"]
    assert passage_sentences(f"{three} {eight}") == [f"{three} {eight}"]
    full = prose(1, 48)[0]
    assert passage_sentences(f"{full} {three} {eight}") == [full, f"{three} {eight}"]
    assert passage_sentences(f"{full} {three}") == [full]
    assert passage_sentences(three) == [three]
    assert passage_sentences("") == []
    assert passage_sentences(" ".join(map(str, range(10))), least=20, most=4) == ["0 1 2 3"]
    assert [len(s.split()) for s in passage_sentences(prose(1, 100)[0])] == [33, 33, 34]


@given(st.lists(st.integers(2, 120), min_size=1, max_size=6))
def test_sentences_have_as_many_words_as_asked(lengths: list[int]) -> None:
    found = passage_sentences(" ".join(prose(1, n, i)[0] for i, n in enumerate(lengths)))
    if sum(lengths) >= 6:
        assert all(6 <= len(s.split()) <= 49 for s in found)
    assert found
