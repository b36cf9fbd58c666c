"""Retrieve, then assess: the same as one pair at a time, whatever else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import Tensor

from mmgem import MMGEM
from mmgem.cli.main import main
from mmgem.errors import DataError, UsageError
from mmgem.evaluate.retrieval import reranked_scores, retrieval_scores, retrieval_scores_from_matrix
from mmgem.search.index_store import IndexSnapshot
from mmgem.search.rerank import RerankOptions, log_probs
from mmgem.search.search import PhotoIndex

TEXT = "a dog runs on the beach"


def model(llm: str = "llama", **options: int) -> MMGEM:
    return MMGEM(toys.network(llm, visual_tokens=2, **options), toys.tokenizer())


def units(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def photo_index(vectors: np.ndarray) -> PhotoIndex:
    entries = [(row, f"{row:03}.jpg".encode(), None) for row in range(len(vectors))]
    return PhotoIndex(IndexSnapshot("f", "toy", Path("/photos"), vectors, entries), Path("/photos"))


@torch.no_grad()
def alone(mmgem: MMGEM, vector: np.ndarray, ids: Tensor, length: float) -> float:
    """log P of one text given one image: no packing, no batch, the head everywhere."""
    network = mmgem.network
    prefix = network.project_visual_prefix(torch.from_numpy(length * vector)[None, None])[0]
    inputs = torch.cat([prefix, network.cap_token[None], network.llm.embed(ids)])
    log_p = network.llm.lm(inputs_embeds=inputs[None]).logits[0, len(prefix) :].log_softmax(-1)
    return float(log_p.gather(1, torch.cat([ids, torch.tensor([mmgem.tokenizer.end])])[:, None]).sum())


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma2"])
def test_order_and_figures_are_those_of_one_pair_at_a_time(llm: str) -> None:
    mmgem, vectors, options = model(llm), units(60), RerankOptions(candidates=40, weight=9, embedding_norm=2)
    query = mmgem.embed_queries([TEXT])[0]
    near = np.argsort(-(vectors @ query))[:40]
    (ids,) = mmgem.tokenizer.encode_all([TEXT])
    given = np.array([alone(mmgem, vectors[row], ids, 2) for row in near])
    scores = vectors[near] @ query + 9 * mmgem.temperature * (given - given.mean())
    order = np.argsort(-scores)[:7]
    hits = mmgem.rerank(photo_index(vectors), TEXT, 7, options)
    assert [int(hit.path.stem) for hit in hits] == near[order].tolist() != near[:7].tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-4)
    assert [hit.cosine for hit in hits] == pytest.approx((vectors[near] @ query)[order].tolist(), abs=1e-5)
    assert [hit.log_prob for hit in hits] == pytest.approx((given[order] / 7).tolist(), abs=1e-4)


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    mmgem, vectors = model(), units(70)
    ids = toys.sequences(np.random.default_rng(0).integers(1, 40, 70).tolist())
    together = log_probs(mmgem.network, vectors, ids, 0, 3.0)
    assert (together.shape, together.dtype) == ((70,), np.float32)
    for some in (slice(0, 1), slice(5, 9), slice(30, 70)):
        np.testing.assert_allclose(
            log_probs(mmgem.network, vectors[some], ids[some], 0, 3.0), together[some], atol=1e-4
        )
    assert log_probs(mmgem.network, vectors[:0], [], 0, 3.0).shape == (0,)


def test_what_is_asked_for_is_what_comes() -> None:
    mmgem, index = model(), photo_index(units(5))
    everything = mmgem.rerank(index, TEXT, 100)
    assert len(everything) == 5 and everything[:2] == mmgem.rerank(index, TEXT, 2)
    assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)
    # Weight 0 is the search itself.
    plain = index.search(mmgem.embed_queries([TEXT])[0], 3)
    assert [(h.path, h.score) for h in mmgem.rerank(index, TEXT, 3, RerankOptions(weight=0))] == [
        (h.path, h.score) for h in plain
    ]
    # Without candidates to spare, the first k of the search are put in order among themselves.
    assert {h.path for h in mmgem.rerank(index, TEXT, 3, RerankOptions(candidates=1))} == {
        h.path for h in plain
    }
    assert mmgem.rerank(photo_index(units(0)), TEXT) == []


def test_a_photo_is_assessed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mmgem, index, asked = model(), photo_index(units(60)), []

    def count(network: object, vectors: np.ndarray, *rest: object) -> np.ndarray:
        asked.append(len(vectors))
        return log_probs(network, vectors, *rest)  # type: ignore[arg-type]

    expected = {k: mmgem.rerank(index, TEXT, k) for k in (5, 30, 60)}
    monkeypatch.setattr("mmgem.search.rerank.log_probs", count)
    deeper = mmgem.reranker(index, TEXT)
    for k in (5, 30, 60, 30):
        hits = deeper(k)
        assert [hit.path for hit in hits] == [hit.path for hit in expected[k]]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected[k]], abs=1e-5)
    assert asked == [16, 14, 30]


def test_what_cannot_be_assessed() -> None:
    mmgem, index = model(), photo_index(units(5))
    with pytest.raises(DataError, match="empty text"):
        mmgem.rerank(index, " ")
    with pytest.raises(DataError, match="over the model's 77"):
        mmgem.rerank(index, "a dog " * 100)
    with pytest.raises(UsageError, match="k must be at least 1"):
        mmgem.rerank(index, TEXT, 0)
    with pytest.raises(UsageError, match="visual_grid = 1"):
        model(visual_grid=2).rerank(index, TEXT)


def test_recall_of_a_new_order_is_that_of_its_matrix() -> None:
    images, texts, owner = units(30), units(90, seed=1), np.arange(90) % 30
    texts = texts + images[owner]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    new = np.random.default_rng(2).standard_normal((30, 90))
    scores = reranked_scores(images, texts, owner, lambda rows, columns: new[rows, columns], 6)
    cosines = images @ texts.T
    for way, axis in (("i2t", 1), ("t2i", 0)):
        near = np.argsort(np.argsort(-cosines, axis), axis) < 6
        matrix = np.where(near, 1000 + new, cosines)
        assert scores[way] == retrieval_scores_from_matrix(matrix, owner)[way]
    same = reranked_scores(images, texts, owner, lambda rows, columns: cosines[rows, columns], 1000)
    assert same == retrieval_scores(images, texts, owner)


def run(capfd: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def test_on_the_command_line(capfd, tiny_photos, tiny_model_folder, tmp_path) -> None:
    run(capfd, "index", tiny_photos[0].parent, "--out", tmp_path / "idx", "-m", tiny_model_folder)
    capfd.readouterr()
    reply = run(capfd, "search", tmp_path / "idx", TEXT, "-k", 4, "--rerank")
    index, mmgem = PhotoIndex.open(tmp_path / "idx"), MMGEM.from_pretrained(tiny_model_folder)
    assert reply["hits"] == [
        {
            "file": str(hit.path),
            "score": round(hit.score, 6),
            "match": None,
            "copies": 0,
            "start": None,
            "end": None,
            "cosine": round(hit.cosine, 6),
            "log_prob": round(hit.log_prob, 6),
        }
        for hit in mmgem.rerank(index, TEXT, 4)
    ]
    for wrong in (["--image", str(tiny_photos[0])], [TEXT, "--regions"]):
        assert main(["search", str(tmp_path / "idx"), *wrong, "--rerank"]) == 2
        assert "--rerank needs a text, and finds whole photos" in capfd.readouterr().err
    assert main(["search", str(tmp_path / "idx"), "a dog " * 100, "--rerank"]) == 1
    assert "over the model's 77" in capfd.readouterr().err


def test_eval_tells_both(capfd, tiny_model_folder, tmp_path, monkeypatch) -> None:
    # A random model's second look is too weak at its usual weight to change a rank: let it decide alone.
    monkeypatch.setattr(RerankOptions, "scores", lambda _, cosines, given, usual, temperature: given - usual)
    argv = ("eval", "retrieval", "--data", toys.photos(tmp_path, 0, 20), "-m", tiny_model_folder)
    plain, reranked = run(capfd, *argv), run(capfd, *argv, "--rerank")
    assert reranked.keys() == plain.keys() | {"cosine", "seconds_per_query"}
    assert reranked["cosine"] == {way: plain[way] for way in ("i2t", "t2i")}
    assert reranked["seconds_per_query"] > 0 and reranked["t2i"] != plain["t2i"]
