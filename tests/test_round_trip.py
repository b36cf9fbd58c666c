"""Generated questions are kept if their passage is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toys
from logs import warns

from mmgem.config import Recipe
from mmgem.self_retrieval.baselines import Dense
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.self_retrieval.passages import Passage, Query
from mmgem.self_retrieval.round_trip import round_trip
from mmgem.tasks.self_retrieval import task as module
from mmgem.tasks.self_retrieval.task import SelfRetrievalTask
from mmgem.train.loop import prepare


def test_what_is_found_among_the_first_is_kept() -> None:
    passages = [Passage(f"p{n}", "t", "x") for n in range(3)]
    angles = {"near p0": 0.1, "near p1": 0.9}
    vectors = np.array([[np.cos(a), np.sin(a)] for a in (0.0, 1.0, 2.0)], np.float32)

    def embed(texts):
        return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts], np.float32)

    ranker = Dense(vectors, embed)
    queries = [
        Query(f"{text}{p}", text, (f"p{p}",), ()) for text in angles for p in range(3)
    ]  # by distance: p0 p1 p2, and p1 p0 p2
    for depth, kept in ((1, "near p00 near p11"), (2, "near p00 near p01 near p10 near p11")):
        assert " ".join(q.id for q in round_trip(queries, passages, ranker, depth)) == kept
    assert round_trip(queries, passages, ranker, 3) == queries
    assert round_trip([], passages, ranker, 3) == []


@pytest.mark.parametrize("by", ["bm25", "embedding"])
def test_a_run_learns_what_is_left_and_says_how_much(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "bm25":
        pytest.importorskip("bm25s")
    corpus, _ = toys.corpus(tmp_path / "corpus")
    made: Recipe = toys.recipe(tmp_path, tmp_path, toys.base_models(tmp_path)[0], tmp_path / "none")
    made.data.train, made.model.encoder.kind, made.model.encoder.config = None, "none", {"size": 32}
    made.model.encoder.freeze_until, made.preprocessing.max_text_tokens = None, 200
    made.tasks = {
        "self_retrieval": SelfRetrievalConfig(
            corpus, batch_size=8, generated_queries=1, round_trip_depth=1, round_trip_by=by
        )
    }
    words = {p.id: " ".join(p.text.split()[:6]) for p in toys.passages()}
    right = [Query(f"{i}?0", f"{text}?", (i,), ()) for i, text in words.items()]
    wrong = [Query(f"{i}?1", "zzz zzz?", (i,), ()) for i in words]
    monkeypatch.setattr(module, "cached_generated_queries", lambda *_: [*right, *wrong])
    with warns(r"\d+ of 18 generated questions are left out: .* not among the first 1 by " + by):
        (task,) = prepare(made).tasks
    assert isinstance(task, SelfRetrievalTask)
    kept = sum(map(len, task.batches.questions_by_passage))
    assert 0 < kept < 18 if by == "embedding" else kept == 9
