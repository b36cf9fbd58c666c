"""Passages named by their sentences: every name leads to its passage, and their probabilities add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.errors import CheckpointError
from mmgem.self_retrieval.batches import SelfRetrievalBatches
from mmgem.self_retrieval.config import Scoring, SelfRetrievalConfig
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.corpus_changes import plan_change
from mmgem.self_retrieval.identifiers import answering_sentence, drop_words, identifier_texts
from mmgem.self_retrieval.passages import Passage, Query
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.retriever import Retriever

NETWORK = toys.network("tied llama", "none")
PROMPTS = Prompts(toys.tokenizer())
SENTENCE = st.lists(st.sampled_from(toys.WORDS[2:9]), min_size=6, max_size=8).map(
    lambda words: f"{' '.join(words).capitalize()}."
)
PASSAGES = st.lists(
    st.tuples(st.sampled_from(["a dog", "the cat"]), st.lists(SENTENCE, min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
).map(lambda rows: [Passage(f"p{n}", title, " ".join(text)) for n, (title, text) in enumerate(rows)])


def searcher(corpus: Corpus, **options: int) -> Retriever:
    scoring = Scoring(**{"title_beams": 50, "passage_beams": 100, "rerank_depth": 50} | options)
    return Retriever(NETWORK.llm, PROMPTS, corpus, scoring, torch.device("cpu"))


@settings(deadline=None, max_examples=15)
@given(PASSAGES)
def test_wide_beams_find_every_passage_by_all_its_names(passages: list[Passage]) -> None:
    corpus = Corpus.build(passages, PROMPTS, identifiers="sentences")
    names = {(p.title, s) for p in passages for s in identifier_texts(p.text, "sentences")}
    rows = {tuple(corpus.passage_trie.row(i)[1:]) for i in range(len(corpus.passage_trie))}
    assert len(names) >= len(rows)
    (found,) = searcher(corpus).generate_candidates(["the dog runs"])
    assert sorted(c.passage for c in found) == list(range(len(passages)))
    by_title: dict[str, float] = {}
    for title in {p.title for p in passages}:
        owners: dict[tuple[int, ...], list[int]] = {}
        node = corpus.passage_trie.child(corpus.passage_trie.root, corpus.titles.index(title))
        for i in range(node.lo, node.hi):
            owners.setdefault(tuple(corpus.passage_trie.row(i)), []).append(int(corpus.passage_trie.ids[i]))
        # A name that several have counts for each of them.
        if all(len(set(of)) == 1 for of in owners.values()):
            by_title[title] = sum(
                np.exp(c.passage_log_prob) for c in found if passages[c.passage].title == title
            )
    assert all(total == pytest.approx(1, abs=1e-4) for total in by_title.values())


@settings(deadline=None, max_examples=15)
@given(PASSAGES, PASSAGES)
def test_added_equals_built_at_once(first: list[Passage], second: list[Passage]) -> None:
    second = [Passage(f"q{p.id}", p.title, p.text) for p in second]
    at_once = Corpus.build([*first, *second], PROMPTS, identifiers="sentences")
    before = Corpus.build(first, PROMPTS, identifiers="sentences")
    grown = before.changed(plan_change(before.passages, second), PROMPTS)
    for array in ("tokens", "offsets", "ids"):
        assert np.array_equal(getattr(at_once.passage_trie, array), getattr(grown.passage_trie, array))


def test_a_saved_corpus_keeps_what_names_its_passages(tmp_path: Path) -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS, identifiers="sentences")
    assert len(corpus.passage_trie) > len(corpus.passages)
    corpus.save(tmp_path / "corpus")
    again = Corpus.open(tmp_path / "corpus")
    assert again.identifiers == "sentences"
    assert np.array_equal(again.passage_trie.ids, corpus.passage_trie.ids)
    assert searcher(again).search(["snow"]) == searcher(corpus).search(["snow"])
    metadata = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    (tmp_path / "corpus" / "checksums.json").unlink()
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps({**metadata, "identifiers": "letters"}))
    with pytest.raises(CheckpointError, match="identifiers: not known: 'letters'"):
        Corpus.open(tmp_path / "corpus")


def test_the_sentence_that_answers() -> None:
    sentences = ["The dog ran to the lake.", "It swam for 308 minutes.", "Then it ran home from the lake."]
    assert answering_sentence(sentences, "How long did it swim?", ["308 minutes"]) == 1
    assert answering_sentence(sentences, "Where did the dog run from?", ["lake"]) == 0
    assert answering_sentence(sentences, "Where did it go home from?", ["the Lake"]) == 2
    assert answering_sentence(sentences, "When did it swim minutes?", []) == 1
    assert answering_sentence(sentences, "?", ["30"]) == 0


def test_dropped_words_keep_their_order() -> None:
    text = "one two three four five six seven eight nine ten"
    kept = [drop_words(text, np.random.default_rng(n)).split() for n in range(50)]
    assert all(words == [w for w in text.split() if w in words] for words in kept)
    assert {len(words) for words in kept} == set(range(3, 10))
    assert drop_words("one", np.random.default_rng(0)) == "one"


def test_batches_follow_a_query_by_the_sentence_that_answers_it() -> None:
    passages = toys.passages(4)
    last = identifier_texts(passages[0].text, "sentences")[-1]
    queries = [Query("q", "the question", ("p0",), (" ".join(last.split()[1:5]),))]
    config = SelfRetrievalConfig(identifiers="sentences", batch_size=64, prefix_tokens=50)
    batches = SelfRetrievalBatches(passages, queries, PROMPTS, config, 0)
    sentences = [s for p in passages for s in identifier_texts(p.text, "sentences")]
    assert len(batches.pairs) == len(sentences) + 1 and batches.sentences == len(sentences)
    batch, again = batches[0], batches[0]
    assert all(torch.equal(a, b) for a, b in zip(batch.names, again.names, strict=True))
    named = [
        PROMPTS.text(ids[mask])
        for ids, mask in zip(batch.names, batch.named.split(list(map(len, batch.names))), strict=True)
    ]
    expected = [
        PROMPTS.text([*PROMPTS.ended([passages[n].title])[0], *PROMPTS.ended([s])[0]])
        for n, s in [
            *((n, s) for n, p in enumerate(passages) for s in identifier_texts(p.text, "sentences")),
            (0, last),
        ]
    ]
    assert sorted(named) == sorted(expected)
    plain = SelfRetrievalBatches(passages, queries, PROMPTS, SelfRetrievalConfig(), 0)
    assert plain.fingerprint != batches.fingerprint
