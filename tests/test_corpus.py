"""A corpus and its searcher: whatever is in it can be found, scores explain themselves, nothing depends on
what else is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.checkpoints.model_folder import save_model
from mmgem.errors import CheckpointError, ConfigError, DataError, UsageError
from mmgem.integrations.mteb_search import MtebSearch
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.query_generation import generate_queries
from mmgem.self_retrieval.reader import Reader
from mmgem.self_retrieval.retriever import Candidate, Retriever, combine_scores, reciprocal_rank_fusion

CPU = torch.device("cpu")
NETWORK = toys.network("tied llama", "none")
TOKENIZER = toys.tokenizer()
PROMPTS = Prompts(TOKENIZER)
WORD = st.sampled_from([*toys.WORDS[2:8], "naïve", "日本", "<end>", "Question:", "Title:", "Answer:", "🐕"])
TEXT = st.lists(WORD, min_size=1, max_size=12).map(" ".join)
LONG = st.lists(WORD, min_size=60, max_size=120).map(" ".join)
PASSAGES = st.lists(
    st.tuples(st.sampled_from(["a dog", "a dog in snow", "the cat"]), TEXT | LONG), min_size=1, max_size=9
)


def made(rows: list[tuple[str, str]]) -> list[Passage]:
    return [Passage(f"id{i}", title, text) for i, (title, text) in enumerate(rows)]


def searcher(corpus: Corpus, **options: object) -> Retriever:
    scoring = Scoring(**{"title_beams": 50, "passage_beams": 50, "rerank_depth": 50} | options)
    return Retriever(NETWORK.llm, PROMPTS, corpus, scoring, CPU)


@settings(deadline=None, max_examples=20)
@given(PASSAGES, st.lists(TEXT, min_size=1, max_size=3), st.booleans())
def test_wide_beams_find_every_passage_with_probabilities(
    rows: list[tuple[str, str]], questions: list[str], titled: bool
) -> None:
    passages = made(rows)
    found = searcher(Corpus.build(passages, PROMPTS, titled)).search(questions, 100)
    for hits in found:
        assert sorted(h.id for h in hits) == sorted(p.id for p in passages)
        assert sum(h.score for h in hits) == pytest.approx(1, abs=1e-6)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        # Equal passages share one path, so each distinct one is counted once.
        paths = {
            (h.title if titled else "", *PROMPTS.pieces([h.text])[0]): h.title_prob * h.passage_prob
            for h in hits
        }
        assert sum(paths.values()) == pytest.approx(1, abs=1e-3)


@settings(deadline=None, max_examples=20)
@given(PASSAGES, st.lists(TEXT, min_size=2, max_size=4), st.integers(1, 3))
def test_a_question_is_answered_as_if_alone(
    rows: list[tuple[str, str]], questions: list[str], width: int
) -> None:
    corpus = Corpus.build(made(rows), PROMPTS)
    options = {"title_beams": width, "passage_beams": width}
    together = searcher(corpus, **options).search(questions, 20)
    for question, hits in zip(questions, together, strict=True):
        (single,) = searcher(corpus, **options).search([question], 20)
        assert {h.id for h in single} == {h.id for h in hits}
        by_id = {h.id: h for h in single}
        for hit in hits:
            other = by_id[hit.id]
            for field in ("score", "title_prob", "passage_prob", "reject_prob", "query_likelihood"):
                assert getattr(hit, field) == pytest.approx(getattr(other, field), abs=1e-4, rel=1e-4)


CHANGES = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["a dog", "snow", "the cat"]), TEXT), max_size=6
)


@settings(deadline=None, max_examples=30)
@given(PASSAGES, CHANGES, st.sets(st.integers(0, 8)), st.booleans(), st.sampled_from(["prefix", "sentences"]))
def test_changed_equals_built_at_once(
    first: list[tuple[str, str]],
    given: list[tuple[int, str, str]],
    removed: set[int],
    titled: bool,
    identifiers: Any,
) -> None:
    passages = made(first)
    gone = [p.id for n, p in enumerate(passages) if n in removed][: len(passages) - 1]
    new = {f"id{i}": Passage(f"id{i}", title, text) for i, title, text in given}
    before = Corpus.build(passages, PROMPTS, titled, identifiers=identifiers)
    before.vectors = embed_passages(NETWORK, PROMPTS, passages)
    engine = SelfRetrieval(NETWORK, TOKENIZER, before)
    if gone:
        assert engine.remove(gone).removed == len(gone)
    change = engine.add(list(new.values()))
    left = [p for p in passages if p.id not in gone]
    ids = {p.id for p in left}
    final = [new.get(p.id, p) for p in left] + [p for i, p in new.items() if i not in ids]
    assert engine.corpus.passages == final
    assert change.added == len(final) - len(left)
    assert change.unchanged == sum(new.get(p.id) == p for p in left)
    assert change.added + change.replaced + change.unchanged == len(new)
    at_once = Corpus.build(final, PROMPTS, titled, identifiers=identifiers)
    for name in ("title_trie", "passage_trie"):
        a, b = getattr(at_once, name), getattr(engine.corpus, name)
        for array in ("tokens", "offsets", "ids"):
            assert np.array_equal(getattr(a, array), getattr(b, array))
            assert getattr(a, array).dtype == getattr(b, array).dtype
    assert np.allclose(engine.corpus.vectors, embed_passages(NETWORK, PROMPTS, final), atol=1e-5)


def test_a_changed_corpus_has_the_files_of_one_built_at_once(tmp_path: Path) -> None:
    folder, passages = tmp_path / "m", toys.passages()
    corpus = Corpus.build(passages, PROMPTS)
    save_model(folder, NETWORK, TOKENIZER, "", more=corpus.save_in)
    engine = SelfRetrieval.from_pretrained(folder)
    stat = (folder / "corpus").stat()
    assert engine.add(passages).unchanged == 9 and engine.add([]).is_empty
    assert (folder / "corpus").stat().st_ino == stat.st_ino  # nothing was written
    engine.remove(["p0", "p4"])
    engine.add([Passage("p3", "a red boat", "It sails."), Passage("n", "the dog", "It runs.")])
    final = SelfRetrieval.from_pretrained(folder).corpus.passages
    assert [p.id for p in final] == ["p1", "p2", "p3", "p5", "p6", "p7", "p8", "n"]
    Corpus.build(final, PROMPTS).save(tmp_path / "at_once")
    for file in sorted((tmp_path / "at_once").rglob("*")):
        if file.is_file():
            assert (
                file.read_bytes() == (folder / "corpus" / file.relative_to(tmp_path / "at_once")).read_bytes()
            )


def test_what_cannot_be_changed_is_said_and_nothing_changes() -> None:
    documents = [Passage("a.md#1", "t", "x"), Passage("a.md#2", "t", "y"), Passage("b.md#1", "t", "z")]
    engine = SelfRetrieval(NETWORK, TOKENIZER, Corpus.build(documents, PROMPTS))
    with pytest.raises(DataError, match="no passage has the id 'c', and no document"):
        engine.remove(["a.md", "c"])
    with pytest.raises(DataError, match="no passage would be left"):
        engine.remove(["a.md", "b.md#1"])
    with pytest.raises(DataError, match="two different passages have the id 'n'"):
        engine.add([Passage("n", "t", "x"), Passage("n", "t", "y")])
    assert engine.corpus.passages == documents
    changed = Passage("a.md#1", "t", "new")
    change = engine.add([changed], ["a.md"])  # it was longer
    assert (change.replaced, change.removed) == (1, 1)
    assert engine.corpus.passages == [changed, documents[2]]
    assert engine.remove(["a.md"]).removed == 1 and engine.corpus.passages == documents[2:]


def test_a_saved_corpus_is_the_same(tmp_path: Path) -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS, scoring=Scoring(title_beams=2, tau=0.5))
    corpus.vectors = np.eye(9, dtype=np.float32)
    corpus.save(tmp_path / "corpus")
    again = Corpus.open(tmp_path / "corpus")
    assert again.passages == corpus.passages and again.scoring == corpus.scoring
    assert np.array_equal(again.passage_trie.tokens, corpus.passage_trie.tokens)
    assert np.array_equal(again.vectors, corpus.vectors)
    questions = ["the dog runs", "snow"]
    assert searcher(again).search(questions) == searcher(corpus).search(questions)


def test_a_corpus_with_the_former_names_of_its_scoring_is_read(tmp_path: Path) -> None:
    Corpus.build(toys.passages(), PROMPTS).save(tmp_path / "c")
    file = tmp_path / "c" / "corpus.json"
    (tmp_path / "c" / "checksums.json").unlink()
    facts = json.loads(file.read_text())
    facts["scoring"] = {
        "titles": 3,
        "passages": 7,
        "one_token": True,
        "embedded": 20,
        "assess": 9,
        "kind": "paper",
        "title_weight": 0.1,
        "passage_weight": 0.2,
        "accept_weight": 0.3,
        "likelihood_weight": 0.6,
        "tau": 0.5,
        "delta": 0.7,
    }
    file.write_text(json.dumps(facts))
    assert Corpus.open(tmp_path / "c").scoring == Scoring(
        title_beams=3,
        passage_beams=7,
        greedy_after_first=True,
        dense_candidates=20,
        rerank_depth=9,
        kind="paper",
        title_weight=0.1,
        passage_weight=0.2,
        accept_weight=0.3,
        query_likelihood_weight=0.6,
        tau=0.5,
        delta=0.7,
    )
    facts["scoring"] = {"beams": 3}
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"scoring\.beams"):
        Corpus.open(tmp_path / "c")


def test_what_is_printed_keeps_its_keys() -> None:
    (hits,) = searcher(Corpus.build(toys.passages(), PROMPTS), rerank_depth=2).search(["the dog"], 9)
    keys = ["id", "title", "text", "score", "title_prob", "passage_prob", "rejection", "likelihood"]
    for hit in hits:
        assert list(hit.to_json()) == keys and list(hit.to_json().values()) == list(vars(hit).values())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Corpus.build(toys.passages(), PROMPTS).save(tmp_path / "c")
    lines = (tmp_path / "c" / "passages.jsonl").read_text().splitlines()
    (tmp_path / "c" / "passages.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (tmp_path / "c" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match="do not fit together"):
        Corpus.open(tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds no corpus"):
        Corpus.open(tmp_path)


def test_judging_is_what_a_fresh_reading_gives() -> None:
    passages = toys.passages()
    reader = Reader(NETWORK.llm, PROMPTS, passages, CPU)
    question = "the dog jumps on snow"
    scores_of = reader.score_passages(question, range(9), batch_size=4)
    (ids,) = PROMPTS.pieces([question])
    for n, passage in enumerate(passages):
        document = PROMPTS.document(*PROMPTS.pieces([passage.title, passage.text]))
        whole = [*document, *PROMPTS.asking(ids), *PROMPTS.rejection]
        with torch.inference_mode():
            causal = torch.ones(1, len(whole), len(whole), dtype=torch.bool).tril()
            states = NETWORK.llm(
                NETWORK.llm.embed(torch.tensor([whole])), torch.arange(len(whole))[None], causal
            )[0]
            scores = NETWORK.llm.logits(states).log_softmax(-1)
        per_token = scores[torch.arange(len(whole) - 1), torch.tensor(whole[1:])]
        at = len(document) + len(PROMPTS.then_question) - 1
        assert scores_of.query_likelihood[n] == pytest.approx(
            float(per_token[at : at + len(ids)].sum()), abs=5e-2
        )
        reject_prob = float(per_token[-len(PROMPTS.rejection) :].sum().exp())
        assert scores_of.reject_prob[n] == pytest.approx(reject_prob, abs=1e-3)


def test_kept_passages_stay_within_their_limit() -> None:
    roomy = Reader(NETWORK.llm, PROMPTS, toys.passages(), CPU)
    tight = Reader(NETWORK.llm, PROMPTS, toys.passages(), CPU, cache_bytes=1)
    question = "a red ball"
    for _ in range(2):
        a, b = roomy.score_passages(question, range(9)), tight.score_passages(question, range(9))
        assert np.allclose(a.query_likelihood, b.query_likelihood) and np.allclose(
            a.reject_prob, b.reject_prob
        )
    assert len(tight._cache) == 1 and len(roomy._cache) == 9


def test_the_paper_s_score() -> None:
    candidates = [
        Candidate(0, np.log(0.6), -0.1),
        Candidate(1, np.log(0.6), -2.0),
        Candidate(2, np.log(0.3), 0.0),
    ]
    reject_prob = np.array([0.9, 0.1, 0.2])
    got = combine_scores(candidates, reject_prob, np.zeros(3), Scoring(kind="paper"))
    titles = np.exp(np.array([0.6, 0.3]) / 0.4)
    titles /= titles.sum()
    accepted = np.exp((1 - reject_prob) / 0.4)
    want = titles[[0, 0, 1]] * accepted / accepted.sum()
    assert np.allclose(got, want)
    named = combine_scores(candidates, reject_prob, np.zeros(3), Scoring(kind="named"))
    assert np.allclose(named, [0.6 * np.exp(-0.1), 0.6 * np.exp(-2), 0.3])


def test_names_and_neighbours_are_fused() -> None:
    named = [Candidate(4, -0.1, -0.2), Candidate(2, -0.1, -2.0), Candidate(7, -3.0, 0.0)]
    order = reciprocal_rank_fusion(named, [2, 9, 4])
    # 2: places 2 and 1; 4: 1 and 3; 9: 2; 7: 3.
    assert [c.passage for c in order] == [2, 4, 9, 7]
    assert order[2] == Candidate(9) and order[3] == named[2]
    # What was not named counts as the least likely that was.
    flat = Scoring(accept_weight=0, query_likelihood_weight=0, title_weight=1, passage_weight=0)
    got = combine_scores(order, np.full(4, 0.5), np.zeros(4), flat)
    assert np.allclose(got[2], got[3]) and got[0] > got[2]


def test_an_embedded_corpus_is_searched_both_ways() -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS, scoring=Scoring(title_beams=1, passage_beams=1))
    engine = SelfRetrieval(NETWORK, TOKENIZER, corpus)
    assert len(engine.search(["the dog"], 50)[0]) == 1
    corpus.vectors = embed_passages(NETWORK, PROMPTS, corpus.passages)
    (hits,) = SelfRetrieval(NETWORK, TOKENIZER, corpus).search(["the dog"], 50)
    assert len(hits) == 9 and sum(hit.title_prob is not None for hit in hits) == 1


def test_the_paper_s_pipeline_assesses_all_that_was_named_and_nothing_else() -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS)
    corpus.vectors = embed_passages(NETWORK, PROMPTS, corpus.passages)
    options = {"kind": "paper", "title_beams": 2, "passage_beams": 9, "rerank_depth": 1}
    scoring = Scoring(**options)  # type: ignore[arg-type]
    embed = SelfRetrieval(NETWORK, TOKENIZER, corpus).embed_queries
    retriever = Retriever(NETWORK.llm, PROMPTS, corpus, scoring, CPU, embed)
    (named,) = retriever.generate_candidates(["the dog"])
    (hits,) = retriever.search(["the dog"], 50)
    assert {h.id for h in hits} == {corpus.passages[c.passage].id for c in named}
    assert all(h.reject_prob is not None for h in hits)
    by_title: dict[str, list[float]] = {}
    for hit in hits:
        by_title.setdefault(hit.title, []).append(hit.title_prob or 0.0)
    assert len(by_title) == 2 and all(len(set(probs)) == 1 for probs in by_title.values())
    weight = np.array([np.exp(probs[0] / scoring.tau) for probs in by_title.values()])
    weight /= weight.sum()
    for kind in ("all", "title"):
        scoring.acceptance_softmax = kind  # type: ignore[assignment]
        (hits,) = retriever.search(["the dog"], 50)
        accepted = np.exp([(1 - (h.reject_prob or 0)) / scoring.delta for h in hits])
        title = np.array([list(by_title).index(h.title) for h in hits])
        total = accepted.sum() if kind == "all" else np.bincount(title, accepted)[title]
        expected = weight[title] * accepted / total
        assert np.allclose([h.score for h in hits], expected, rtol=1e-4)


def test_what_is_not_assessed_comes_last() -> None:
    retriever = searcher(Corpus.build(toys.passages(), PROMPTS), rerank_depth=2)
    (hits,) = retriever.search(["the dog"], 9)
    assert [h.query_likelihood is not None for h in hits] == [True, True] + [False] * 7


def test_questions_are_sampled_and_reproducible() -> None:
    passages = toys.passages(4)
    # A toy cannot write a question mark; here every word ends one.
    ends = Prompts(TOKENIZER)
    ends._decode = lambda ids: "".join(f" {toys.WORDS[i]}?" for i in ids)
    written = generate_queries(NETWORK.llm, ends, passages, 3, 0, CPU)
    assert written == generate_queries(NETWORK.llm, ends, passages, 3, 0, CPU)
    assert written != generate_queries(NETWORK.llm, ends, passages, 3, 1, CPU)
    assert {q.positives[0] for q in written} == {p.id for p in passages}
    assert len({q.id for q in written}) == len(written) <= 12
    assert generate_queries(NETWORK.llm, PROMPTS, passages, 3, 0, CPU) == []


def test_a_searcher_adds_and_asks(tmp_path: Path) -> None:
    passages = toys.passages()
    engine = SelfRetrieval(NETWORK, TOKENIZER, Corpus.build(passages[:6], PROMPTS))
    engine.add(passages[6:])
    (hits,) = engine.search(["the dog"], 50)
    assert len(hits) == 9
    answer = engine.ask("the dog", k=2)
    assert len(answer.hits) == 2
    assert (answer.text is None) == (answer.source is None)
    with pytest.raises(UsageError, match="question is empty"):
        engine.search([" "])


def test_the_searcher_of_mteb() -> None:
    search = MtebSearch(SelfRetrieval(NETWORK, TOKENIZER, Corpus.build(toys.passages(2), PROMPTS)))
    queries = [{"id": "q1", "text": "the dog runs"}, {"id": "q2", "text": "a red boat"}]
    with pytest.raises(UsageError, match="index a corpus first"):
        search.search(queries, top_k=3)
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in toys.passages()]
    options = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    search.index(rows, num_proc=None, **options)
    found = search.search(queries, top_k=3, num_proc=None, **options)
    for query in queries:
        (hits,) = search.engine.search([query["text"]], 3)
        best = sorted(found[query["id"]], key=lambda i: -found[query["id"]][i])
        assert best == [hit.id for hit in hits]
    ranked = {"q1": ["p3", "p1"], "q2": ["p8"]}
    found = search.search(queries, top_k=5, top_ranked=ranked, **options)
    assert {q: set(scores) for q, scores in found.items()} == {"q1": {"p3", "p1"}, "q2": {"p8"}}


@pytest.mark.parametrize("step", range(6))
def test_a_kill_while_adding_loses_nothing(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, passages = tmp_path / "m", toys.passages()
    save_model(folder, NETWORK, TOKENIZER, "", more=Corpus.build(passages[:6], PROMPTS).save_in)
    calls = 0

    def dying(real: Any) -> Any:
        def instead(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > step:
                raise KeyboardInterrupt
            return real(*args, **options)

        return instead

    for owner, name in ((Path, "rename"), (Path, "replace"), (np, "save")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(KeyboardInterrupt):
        SelfRetrieval.from_pretrained(folder).add(passages[6:])
    monkeypatch.undo()
    engine = SelfRetrieval.from_pretrained(folder)
    kept = len(engine.corpus.passages)
    assert kept in (6, 9)
    if kept == 6:
        engine.add(passages[6:])
    assert len(SelfRetrieval.from_pretrained(folder).search(["the dog"], 50)[0]) == 9
