"""BM25 and embeddings as rankers of passages."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from mmgem.errors import UsageError
from mmgem.models.sentence_encoder import sentence_encoder
from mmgem.self_retrieval.baselines import BM25, Dense, _top_k
from mmgem.self_retrieval.passages import Passage

PASSAGES = [
    Passage("a", "Dogs", "The red dog runs."),
    Passage("b", "Cats", "The blue cat sleeps."),
    Passage("c", "Cats", "The blue cat sleeps."),
    Passage("d", "Boats", "A red boat, a blue boat and a green boat."),
]


def test_bm25_finds_words_of_texts_and_titles() -> None:
    ranked = BM25(PASSAGES).rank(["Where is the RED dog?", "cats", "boat!"], 3)
    assert [[n for n, _ in row] for row in ranked] == [[0, 3], [1, 2], [3]]
    assert all(score > 0 for row in ranked for _, score in row)


def test_bm25_by_hand() -> None:
    def score(length: int) -> float:
        idf, mean = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5)), (4 + 4 + 4 + 7) / 4
        return idf / (1 + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    # "dogs red dog runs" and "boats red boat blue boat green boat": "the", "a" and "and" do not count.
    (ranked,) = BM25(PASSAGES).rank(["red"], 5)
    assert ranked == [(0, pytest.approx(score(4), rel=1e-5)), (3, pytest.approx(score(7), rel=1e-5))]


def test_bm25_ranks_only_what_shares_a_word() -> None:
    bm25 = BM25(PASSAGES)
    assert bm25.rank(["zebra", "", "the", "?"], 5) == [[], [], [], []]
    assert bm25.rank([], 5) == []
    assert [n for n, _ in bm25.rank(["red blue"], 2)[0]] == [3, 0]
    assert BM25([Passage("a", "X", "a")]).rank(["x a"], 5) == [[]]  # no word to index


def test_bm25_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UsageError, match=r"pip install 'mmgem\[corpus\]'"):
        BM25(PASSAGES)


def angles(texts: Sequence[str]) -> np.ndarray:
    """Texts that are angles in degrees, as unit vectors."""
    turns = np.radians(np.array([float(text) for text in texts]))
    return np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)


def test_dense_ranks_by_cosine() -> None:
    dense = Dense(angles(["0", "90", "40", "40"]), angles)
    ranked = dense.rank(["0", "100"], 3)
    assert [[n for n, _ in row] for row in ranked] == [[0, 2, 3], [1, 2, 3]]
    cosines = [math.cos(math.radians(x)) for x in (10, 60, 60)]
    assert [score for _, score in ranked[1]] == pytest.approx(cosines, abs=1e-6)
    assert [len(row) for row in dense.rank(["0", "1"], 50)] == [4, 4]
    assert dense.rank([], 3) == []


def test_dense_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, queries = Dense(angles([str(n) for n in range(0, 90, 7)]), angles), [str(n) for n in range(20)]
    whole = dense.rank(queries, 4)
    monkeypatch.setattr("mmgem.self_retrieval.baselines._BLOCK_BYTES", 200)
    assert [[n for n, _ in row] for row in dense.rank(queries, 4)] == [[n for n, _ in row] for row in whole]


def test_dense_wants_unit_rows() -> None:
    with pytest.raises(UsageError, match="vectors of passages: row 1 is not finite and of length 1"):
        Dense(angles(["0", "90"]) * [[1], [2]], angles)
    with pytest.raises(UsageError, match="vectors of passages must have the shape"):
        Dense(np.zeros((0, 2), np.float32), angles)
    with pytest.raises(UsageError, match=r"queries have vectors \(1, 2\), expected \(1, 3\)"):
        Dense(np.eye(3, dtype=np.float32), angles).rank(["0"], 1)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(0, 14))
def test_the_best_are_those_of_a_stable_sort(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:k]
    assert _top_k(np.array(scores, np.float32), k) == [(n, scores[n]) for n in expected]


def test_an_encoder_averages_the_states_of_real_tokens(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(toys.WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = toys.hf_tokenizer()
    tokenizer.pad_token = "<end>"
    tokenizer.save_pretrained(tmp_path)
    embed = sentence_encoder(tmp_path, batch=2, max_tokens=5)
    texts = ["a dog runs on the grass with a cat", "a cat", "two dog", "the dog runs"]
    rows = embed(texts)
    assert (rows.shape, rows.dtype) == ((4, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for text, row in zip(texts, rows, strict=True):
        alone = tokenizer([" ".join(text.split()[:5])], return_tensors="pt")
        mean = model(**alone).last_hidden_state[0].mean(0).detach().numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    assert embed([]).shape == (0, 8)
