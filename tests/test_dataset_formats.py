"""SQuAD, BEIR, KILT and documents in paragraphs: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys

from mmgem.errors import DataError, UsageError
from mmgem.integrations.mteb_folder import mteb_task
from mmgem.integrations.mteb_search import MtebSearch
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.document_ranking import ScoredDocument, rank_documents
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.retriever import ScoredPassage


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def squad(folder: Path, *articles: Any) -> Path:
    (folder / "dev.json").write_text(json.dumps({"version": "2.0", "data": list(articles)}, indent=1))
    return folder / "dev.json"


QA = {"id": "q1", "question": "Who  ran?", "answers": [{"text": "Ann", "answer_start": 0}] * 2}
ARTICLE = {
    "title": "Super_Bowl",
    "paragraphs": [
        {"context": "Ann ran.\nFar.", "qas": [QA]},
        {
            "context": "Bob sat.",
            "qas": [
                {"id": "q2", "question": "Who flew?", "answers": [], "is_impossible": True},
                {"id": "q3", "question": "Who sat?", "answers": [{"text": "Bob"}]},
            ],
        },
    ],
}


def test_squad(tmp_path: Path) -> None:
    path = squad(tmp_path, ARTICLE, {"title": "T", "paragraphs": []}, ARTICLE | {"paragraphs": []})
    assert load_corpus(path) == [
        Passage("Super Bowl#1", "Super Bowl", "Ann ran. Far."),
        Passage("Super Bowl#2", "Super Bowl", "Bob sat."),
    ]
    assert load_queries(path, {"Super Bowl#1", "Super Bowl#2"}) == [
        Query("q1", "Who ran?", ("Super Bowl#1",), ("Ann",)),
        Query("q3", "Who sat?", ("Super Bowl#2",), ("Bob",)),
    ]


@pytest.mark.parametrize(
    ("article", "message"),
    [
        ("x", r'data\[0\] must be an object, not "x"'),
        ({"title": "T"}, r"data\[0\]: paragraphs is missing"),
        ({"title": "T", "paragraphs": [{"qas": []}]}, r"data\[0\].paragraphs\[0\]: context is missing"),
        (
            {"title": "T", "paragraphs": [{"context": "x", "qas": [QA, QA]}]},
            r'data.0..paragraphs.0..qas.1.: id "q1" is that of data.0..paragraphs.0..qas.0. as well',
        ),
    ],
)
def test_a_wrong_place_in_squad_is_named(tmp_path: Path, article: Any, message: str) -> None:
    path = squad(tmp_path, article)
    with pytest.raises(DataError, match=rf"dev\.json: {message}"):
        (load_queries if "qas" in message else load_corpus)(path)


def test_json_that_is_cut_names_its_line(tmp_path: Path) -> None:
    path = squad(tmp_path, ARTICLE)
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    with pytest.raises(DataError, match=r"dev\.json:4: not JSON: "):
        load_corpus(path)


def beir(folder: Path) -> Path:
    jsonl(
        folder / "corpus.jsonl",
        {"_id": "d1", "title": "T", "text": "One."},
        {"_id": "d2", "title": "", "text": "Two.", "metadata": {}},
    )
    jsonl(folder / "queries.jsonl", {"_id": "1", "text": "Who?"}, {"_id": "2", "text": "What?"})
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\td2\t1\n2\td1\t2\n1\td1\t0\n")
    return folder


def test_beir(tmp_path: Path) -> None:
    folder = beir(tmp_path / "nf")
    assert load_corpus(folder) == [Passage("d1", "T", "One."), Passage("d2", "-", "Two.")]
    assert load_corpus(folder) == load_corpus(folder / "corpus.jsonl")
    expected = [Query("2", "What?", ("d2", "d1"), ())]
    assert load_queries(folder, {"d1", "d2"}) == expected
    (folder / "qrels" / "dev.tsv").write_text("1\td1\t1\n")
    with pytest.raises(UsageError, match=r"nf: give one of qrels/dev\.tsv, qrels/test\.tsv"):
        load_queries(folder)
    assert load_queries(folder / "qrels" / "test.tsv") == expected
    assert load_queries(folder / "qrels" / "dev.tsv") == [Query("1", "Who?", ("d1",), ())]
    with pytest.raises(DataError, match=r"queries\.jsonl:1: positives are missing; give the folder"):
        load_queries(folder / "queries.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\td2", "must be a query's id, a passage's and a whole score"),
        ("2\td2\tyes", "must be a query's id, a passage's and a whole score"),
        ("3\td2\t1", 'no query has the id "3"'),
    ],
)
def test_a_wrong_line_of_qrels_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = beir(tmp_path) / "qrels" / "test.tsv"
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(DataError, match=rf"test\.tsv:5: {message}"):
        load_queries(tmp_path)


def test_beir_names_an_unknown_passage_by_its_query(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'queries\.jsonl:2: positives: no passage has the id "d2"'):
        load_queries(beir(tmp_path), {"d1"})


PAGE = {
    "wikipedia_id": "12",
    "wikipedia_title": "Ada Lovelace",
    "text": ["Ada Lovelace\n", "She wrote.\n", "Section::::Life.\n", "BULLET::::- Born 1815.\n", " \n"],
}


def provenance(first: int, last: int, page: str = "12") -> dict[str, Any]:
    return {"wikipedia_id": page, "title": "?", "start_paragraph_id": first, "end_paragraph_id": last}


def test_kilt(tmp_path: Path) -> None:
    passages = load_corpus(jsonl(tmp_path / "source.jsonl", PAGE))
    assert passages == [
        Passage("12#1", "Ada Lovelace", "She wrote."),
        Passage("12#3", "Ada Lovelace", "- Born 1815."),
    ]
    outputs = [
        {"answer": "1815", "provenance": [provenance(2, 3)]},
        {"answer": "1815", "meta": {}},
        {"provenance": [provenance(3, 3), provenance(1, 1)]},
    ]
    path = jsonl(tmp_path / "nq.jsonl", {"id": "a", "input": "When was she born?", "output": outputs})
    assert load_queries(path, {p.id for p in passages}) == [
        Query("a", "When was she born?", ("12#3", "12#1"), ("1815",))
    ]
    assert load_queries(path)[0].positives == ("12#2", "12#3", "12#1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": []}, "input is missing"),
        ({"input": "Who?", "output": [{"answer": "x"}]}, "positives is empty"),
        (
            {"input": "Who?", "output": [{"provenance": [{}]}]},
            "output.0..provenance.0.: wikipedia_id is missing",
        ),
        (
            {"input": "Who?", "output": [{"provenance": [provenance(0, 0) | {"end_paragraph_id": "x"}]}]},
            'output.0..provenance.0.: end_paragraph_id must be a whole number, not "x"',
        ),
        (
            {"input": "Who?", "output": [{"provenance": [provenance(1, 1, "99")]}]},
            'positives: no passage has the id "99#1"',
        ),
        (
            {"input": "Who?", "output": [{"provenance": [provenance(2, 2)]}]},
            'positives: no passage has the id "12#2"',
        ),
    ],
)
def test_a_wrong_line_of_kilt_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "nq.jsonl", {"id": "a", **row})
    with pytest.raises(DataError, match=rf"nq\.jsonl:1: {message}"):
        load_queries(path, {"12#1", "12#3"})


def test_a_document_in_paragraphs_and_queries_of_all_of_it(tmp_path: Path) -> None:
    documents = {"id": "d", "title": "T", "text": ["One.", "Two."]}, {"id": "e", "title": "U", "text": ["x"]}
    passages = load_corpus(jsonl(tmp_path / "c.jsonl", *documents))
    assert [p.id for p in passages] == ["d#1", "d#2", "e#1"]
    path = jsonl(tmp_path / "q.jsonl", {"id": "1", "query": "Who?", "positives": ["d", "d#2"]})
    assert load_queries(path, {p.id for p in passages})[0].positives == ("d#1", "d#2")
    with pytest.raises(DataError, match=r'q\.jsonl:1: positives: no passage has the id "d"'):
        load_queries(path, {"e#1"})
    bad = jsonl(tmp_path / "c.jsonl", {"id": "d", "title": "T", "text": ["One.", " "]})
    with pytest.raises(DataError, match=r"c\.jsonl:1: text\[1\] must be a non-empty string"):
        load_corpus(bad)


def test_the_score_of_a_document_is_the_sum_of_its_passages() -> None:
    def hit(name: str, title: str, score: float) -> ScoredPassage:
        return ScoredPassage(name, title, "x", score, None, None)

    hits = [hit("a", "T", 0.5), hit("b", "U", 0.25), hit("c", "U", 0.375), hit("d", "V", 0), hit("e", "W", 0)]
    assert rank_documents(hits) == [
        ScoredDocument("U", 0.625, ("b", "c")),
        ScoredDocument("T", 0.5, ("a",)),
        ScoredDocument("V", 0, ("d",)),
        ScoredDocument("W", 0, ("e",)),
    ]


def test_mteb_evaluates_on_a_folder_as_we_do(tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    passages = toys.passages()
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in passages]
    folder = jsonl(tmp_path / "toy" / "corpus.jsonl", *rows).parent
    asked = ["the dog runs", "a red ball", "snow"]
    jsonl(folder / "queries.jsonl", *({"_id": f"q{n}", "text": text} for n, text in enumerate(asked)))
    (folder / "qrels").mkdir()
    lines = "".join(f"q{n}\tp{3 * n}\t1\n" for n in range(3))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    tokenizer = toys.tokenizer()
    corpus = Corpus.build(load_corpus(folder), Prompts(tokenizer))
    engine = SelfRetrieval(toys.network("tied llama", "none"), tokenizer, corpus)
    ours = engine.measure(load_queries(folder))
    search = MtebSearch(engine)
    result = mteb.evaluate(search, mteb_task(folder), cache=None, show_progress_bar=False, co2_tracker=False)
    ((theirs,),) = (task.scores["test"] for task in result.task_results)
    for k in (1, 5, 20):
        assert 100 * theirs[f"hit_rate_at_{k}"] == pytest.approx(ours[f"H@{k}"], abs=0.1)
    assert 100 * theirs["mrr_at_5"] == pytest.approx(ours["MRR@5"], abs=0.1)
