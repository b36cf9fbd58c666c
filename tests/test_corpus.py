"""A corpus and its searcher: whatever is in it can be found, scores explain themselves, nothing depends on
what else is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.checkpoints.model_folder import save_model
from mmgem.errors import CheckpointError, DataError, UsageError
from mmgem.integrations.mteb_search import MtebSearch
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.query_generation import write_questions
from mmgem.self_retrieval.reader import Reader
from mmgem.self_retrieval.retriever import Candidate, Retriever, fused, score

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
    scoring = Scoring(**{"titles": 50, "passages": 50, "assess": 50} | options)
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
    options = {"titles": width, "passages": width}
    together = searcher(corpus, **options).search(questions, 20)
    for question, hits in zip(questions, together, strict=True):
        (single,) = searcher(corpus, **options).search([question], 20)
        assert {h.id for h in single} == {h.id for h in hits}
        by_id = {h.id: h for h in single}
        for hit in hits:
            other = by_id[hit.id]
            for field in ("score", "title_prob", "passage_prob", "rejection", "likelihood"):
                assert getattr(hit, field) == pytest.approx(getattr(other, field), abs=1e-4, rel=1e-4)


@settings(deadline=None, max_examples=15)
@given(PASSAGES, PASSAGES, st.booleans())
def test_added_equals_built_at_once(
    first: list[tuple[str, str]], second: list[tuple[str, str]], titled: bool
) -> None:
    passages = made([*first, *second])
    at_once = Corpus.build(passages, PROMPTS, titled)
    grown = Corpus.build(passages[: len(first)], PROMPTS, titled).added(passages[len(first) :], PROMPTS)
    for name in ("titles", "rows"):
        a, b = getattr(at_once, name), getattr(grown, name)
        for array in ("tokens", "offsets", "ids"):
            assert np.array_equal(getattr(a, array), getattr(b, array))


def test_a_saved_corpus_is_the_same(tmp_path: Path) -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS, scoring=Scoring(titles=2, tau=0.5))
    corpus.vectors = np.eye(9, dtype=np.float32)
    corpus.save(tmp_path / "corpus")
    again = Corpus.open(tmp_path / "corpus")
    assert again.passages == corpus.passages and again.scoring == corpus.scoring
    assert np.array_equal(again.rows.tokens, corpus.rows.tokens)
    assert np.array_equal(again.vectors, corpus.vectors)
    questions = ["the dog runs", "snow"]
    assert searcher(again).search(questions) == searcher(corpus).search(questions)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Corpus.build(toys.passages(), PROMPTS).save(tmp_path / "c")
    lines = (tmp_path / "c" / "passages.jsonl").read_text().splitlines()
    (tmp_path / "c" / "passages.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointError, match="do not fit together"):
        Corpus.open(tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds no corpus"):
        Corpus.open(tmp_path)
    with pytest.raises(DataError, match="'p0' is in the corpus already"):
        Corpus.build(toys.passages(), PROMPTS).added(toys.passages(1), PROMPTS)


def test_judging_is_what_a_fresh_reading_gives() -> None:
    passages = toys.passages()
    reader = Reader(NETWORK.llm, PROMPTS, Corpus.build(passages, PROMPTS), CPU)
    question = "the dog jumps on snow"
    judged = reader.judge(question, range(9), at_once=4)
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
        assert judged.likelihood[n] == pytest.approx(float(per_token[at : at + len(ids)].sum()), abs=5e-2)
        rejection = float(per_token[-len(PROMPTS.rejection) :].sum().exp())
        assert judged.rejection[n] == pytest.approx(rejection, abs=1e-3)


def test_kept_passages_stay_within_their_limit() -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS)
    roomy = Reader(NETWORK.llm, PROMPTS, corpus, CPU)
    tight = Reader(NETWORK.llm, PROMPTS, corpus, CPU, kept_bytes=1)
    question = "a red ball"
    for _ in range(2):
        a, b = roomy.judge(question, range(9)), tight.judge(question, range(9))
        assert np.allclose(a.likelihood, b.likelihood) and np.allclose(a.rejection, b.rejection)
    assert len(tight._kept) == 1 and len(roomy._kept) == 9


def test_the_paper_s_score() -> None:
    candidates = [
        Candidate(0, np.log(0.6), -0.1),
        Candidate(1, np.log(0.6), -2.0),
        Candidate(2, np.log(0.3), 0.0),
    ]
    rejection = np.array([0.9, 0.1, 0.2])
    got = score(candidates, rejection, np.zeros(3), Scoring(kind="paper"))
    titles = np.exp(np.array([0.6, 0.3]) / 0.4)
    titles /= titles.sum()
    accepted = np.exp((1 - rejection) / 0.4)
    want = titles[[0, 0, 1]] * accepted / accepted.sum()
    assert np.allclose(got, want)
    named = score(candidates, rejection, np.zeros(3), Scoring(kind="named"))
    assert np.allclose(named, [0.6 * np.exp(-0.1), 0.6 * np.exp(-2), 0.3])


def test_names_and_neighbours_are_fused() -> None:
    named = [Candidate(4, -0.1, -0.2), Candidate(2, -0.1, -2.0), Candidate(7, -3.0, 0.0)]
    order = fused(named, [2, 9, 4])
    # 2: places 2 and 1; 4: 1 and 3; 9: 2; 7: 3.
    assert [c.passage for c in order] == [2, 4, 9, 7]
    assert order[2] == Candidate(9) and order[3] == named[2]
    # What was not named counts as the least likely that was.
    flat = Scoring(accept_weight=0, likelihood_weight=0, title_weight=1, passage_weight=0)
    got = score(order, np.full(4, 0.5), np.zeros(4), flat)
    assert np.allclose(got[2], got[3]) and got[0] > got[2]


def test_an_embedded_corpus_is_searched_both_ways() -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS, scoring=Scoring(titles=1, passages=1))
    engine = SelfRetrieval(NETWORK, TOKENIZER, corpus)
    assert len(engine.search(["the dog"], 50)[0]) == 1
    corpus.vectors = embed_passages(NETWORK, PROMPTS, corpus.passages)
    (hits,) = SelfRetrieval(NETWORK, TOKENIZER, corpus).search(["the dog"], 50)
    assert len(hits) == 9 and sum(hit.title_prob is not None for hit in hits) == 1


def test_what_is_not_assessed_comes_last() -> None:
    retriever = searcher(Corpus.build(toys.passages(), PROMPTS), assess=2)
    (hits,) = retriever.search(["the dog"], 9)
    assert [h.likelihood is not None for h in hits] == [True, True] + [False] * 7


def test_questions_are_sampled_and_reproducible() -> None:
    passages = toys.passages(4)
    # A toy cannot write a question mark; here every word ends one.
    ends = Prompts(TOKENIZER)
    ends._decode = lambda ids: "".join(f" {toys.WORDS[i]}?" for i in ids)
    written = write_questions(NETWORK.llm, ends, passages, 3, 0, CPU)
    assert written == write_questions(NETWORK.llm, ends, passages, 3, 0, CPU)
    assert written != write_questions(NETWORK.llm, ends, passages, 3, 1, CPU)
    assert {q.positives[0] for q in written} == {p.id for p in passages}
    assert len({q.id for q in written}) == len(written) <= 12
    assert write_questions(NETWORK.llm, PROMPTS, passages, 3, 0, CPU) == []


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
