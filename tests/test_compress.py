"""A compressed copy of a model and the corpus that it has learned: queries and passages lie in one space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from tiny import save_photos

from mmgem import MMGEM, SelfRetrieval
from mmgem.checkpoints.model_folder import save_model
from mmgem.cli.main import main
from mmgem.export.compress import compress_model
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.prompts import Prompts

QUESTIONS = ["the dog runs on the beach", "a red boat", "two men and a child in the snow"]
PROMPTS = Prompts(toys.tokenizer())


def learned(folder: Path, seed: int = 0) -> Path:
    """A model folder with a corpus whose passages are embedded."""
    network, tokenizer = toys.network(seed=seed), toys.tokenizer()
    engine = SelfRetrieval(network, tokenizer, Corpus.build(toys.passages(), PROMPTS))
    engine.corpus.vectors = engine.embed_passages(engine.corpus.passages)
    save_model(folder, network, tokenizer, "# Toy\n", more=engine.corpus.save_in)
    return folder


def cosines(engine: SelfRetrieval) -> np.ndarray:
    assert engine.corpus.vectors is not None
    return engine.embed_queries(QUESTIONS) @ engine.corpus.vectors.T


def photo_vectors(photos: list[Path]):
    return lambda network, tokenizer: MMGEM(network, tokenizer).embed_images(photos)


def test_a_rotated_corpus_gives_the_same_hits(tmp_path: Path) -> None:
    source, photos = learned(tmp_path / "source"), save_photos(tmp_path / "photos", 8)
    compress_model(source, tmp_path / "rotated", embed=photo_vectors(photos), quantize=False)
    before, after = (SelfRetrieval.from_pretrained(tmp_path / name) for name in ("source", "rotated"))
    assert not np.allclose(before.embed_queries(QUESTIONS), after.embed_queries(QUESTIONS), atol=0.1)
    np.testing.assert_allclose(cosines(after), cosines(before), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(after.corpus.vectors, axis=1), 1, atol=1e-5)
    for old, new in zip(before.search(QUESTIONS, 9), after.search(QUESTIONS, 9), strict=True):
        assert [hit.id for hit in new] == [hit.id for hit in old]
        np.testing.assert_allclose([hit.score for hit in new], [hit.score for hit in old], atol=1e-5)


@pytest.mark.parametrize("rotated", [False, True])
def test_passages_are_embedded_by_the_averaged_weights(rotated: bool, tmp_path: Path) -> None:
    one, two = learned(tmp_path / "one"), learned(tmp_path / "two", seed=1)
    embed = photo_vectors(save_photos(tmp_path / "photos", 8)) if rotated else None
    compress_model(one, tmp_path / "between", two, 0.3, embed, quantize=False)
    between = SelfRetrieval.from_pretrained(tmp_path / "between")
    fresh = between.embed_passages(between.corpus.passages)
    np.testing.assert_allclose(between.corpus.vectors, fresh, atol=1e-5)
    stale = SelfRetrieval.from_pretrained(one).corpus.vectors
    assert np.abs(stale - fresh).max() > 0.1


def test_rounding_leaves_queries_and_passages_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, photos = learned(tmp_path / "source"), save_photos(tmp_path / "photos", 8)
    out, rest = str(tmp_path / "out"), ["--pca-rotate", str(photos[0].parent)]
    assert main(["export", str(source), out, *rest]) == 0
    before, after = SelfRetrieval.from_pretrained(source), SelfRetrieval.from_pretrained(out)
    np.testing.assert_allclose(cosines(after), cosines(before), atol=0.05)
    capsys.readouterr()
    assert main(["corpus", "search", QUESTIONS[0], "--model", out]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_corpus_without_vectors_goes_along(tmp_path: Path) -> None:
    corpus = Corpus.build(toys.passages(), PROMPTS)
    for name, seed in (("one", 0), ("two", 1)):
        save_model(tmp_path / name, toys.network(seed=seed), toys.tokenizer(), "", more=corpus.save_in)
    compress_model(tmp_path / "one", tmp_path / "out", tmp_path / "two", quantize=False)
    copy = SelfRetrieval.from_pretrained(tmp_path / "out").corpus
    assert copy.passages == corpus.passages and copy.vectors is None


def test_a_full_copy_keeps_every_bit(tiny_model_folder: Path, tmp_path: Path) -> None:
    model, copy = str(tiny_model_folder), tmp_path / "copy"
    assert main(["export", model, str(copy), "--format", "full", "--average", model]) == 0
    ours, theirs = MMGEM.from_pretrained(copy).network, MMGEM.from_pretrained(model).network
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name


def test_flags_by_their_names_of_before(
    tmp_path: Path, tiny_model_folder: Path, tiny_photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, photos = str(tiny_model_folder), str(tiny_photos[0].parent)
    written = []
    for name, flags in (
        ("old", ["--mix", model, "--share", "0.25", "--order", photos]),
        ("new", ["--average", model, "--alpha", "0.25", "--pca-rotate", photos]),
    ):
        assert main(["export", model, str(tmp_path / name), *flags]) == 0
        written.append((tmp_path / name / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    capsys.readouterr()
    assert main(["export", model, str(tmp_path / "none"), "--alpha", "0"]) == 2
    assert "--alpha needs --average" in capsys.readouterr().err
    assert main(["export", model, str(tmp_path / "none"), "--least", "1"]) == 2
    assert "--precision and --min-cosine are for" in capsys.readouterr().err
    assert main(["export", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--pca-rotate" in told and not any(flag in told for flag in ("--order", "--mix", "--least"))
