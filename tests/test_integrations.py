"""Other libraries see the same embeddings, and their own evaluations give our figures."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import toys
from PIL import Image

from mmgem import MMGEM, integrations
from mmgem.checkpoints.model_folder import save_model
from mmgem.cli.main import main
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record
from mmgem.errors import UsageError
from mmgem.evaluate.ranking import ranking_scores


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.photos(tmp_path_factory.mktemp("data"), train=0, dev=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "toy"
    prep = toys.prep(scales=(48,), lowercase=True)
    save_model(made, toys.network(), toys.tokenizer(prep), "# A toy\n")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> MMGEM:
    return MMGEM.from_pretrained(folder)


@pytest.fixture(scope="module")
def records(data: Path) -> list[Record]:
    return load_dataset(data)


@pytest.fixture(scope="module")
def figures(data: Path, folder: Path) -> dict[str, Any]:
    """What ``mmgem eval retrieval`` says."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["eval", "retrieval", "--model", str(folder), "--data", str(data), "--json"]) == 0
    return json.loads(said.getvalue())


def test_sentence_transformers_encodes_what_we_embed(model: MMGEM, records: list[Record]) -> None:
    encoder = integrations.sentence_transformer(model)
    texts = ["A dog runs.", "a red boat on the sea. the man sits in the house", "snow"]
    assert np.allclose(encoder.encode(texts), model.embed_texts(texts), atol=1e-6)
    path = records[0].image
    picture = Image.open(path)
    ways = [str(path), path, path.read_bytes(), picture, np.asarray(picture), {"image": path}]
    (image,) = model.embed_images([path])
    assert np.allclose(encoder.encode(ways), image, atol=1e-6)
    mixed = encoder.encode([texts[0], str(path), {"text": texts[0], "image": path}, {"text": "snow"}])
    both = image + model.embed_texts(texts[:1])[0]
    wanted = [
        model.embed_texts(texts[:1])[0],
        image,
        both / np.linalg.norm(both),
        model.embed_texts(["snow"])[0],
    ]
    assert np.allclose(mixed, wanted, atol=1e-6)
    assert np.allclose(encoder.similarity(mixed, mixed), mixed @ mixed.T, atol=1e-6)
    assert encoder.encode("snow").shape == (model.dim,) and encoder.get_embedding_dimension() == model.dim
    short = encoder.encode(texts, truncate_dim=4, normalize_embeddings=True)
    assert np.allclose(short, model.embed_texts(texts, dimensions=4), atol=1e-6)
    prompted = encoder.encode(["runs"], prompt="the dog ")
    assert np.allclose(prompted, model.embed_texts(["the dog runs"]), atol=1e-6)
    with pytest.raises(UsageError, match="a text, an image or a dict of them"):
        encoder.encode([{"text": "snow", "sound": "x"}])
    with pytest.raises(UsageError, match=r"misspelt\.jpg: no such file; give a text that ends so as"):
        encoder.encode(["snow", "misspelt.jpg"])
    named = encoder.encode([{"text": "misspelt.jpg"}])
    assert np.allclose(named, model.embed_texts(["misspelt.jpg"]), atol=1e-6)


def test_its_retrieval_evaluator_agrees_with_ours(
    model: MMGEM, records: list[Record], figures: dict[str, Any]
) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    images = {f"i{n}": str(record.image) for n, record in enumerate(records)}
    texts = {f"t{n}-{k}": text for n, record in enumerate(records) for k, text in enumerate(record.captions)}
    own = {name: {name.replace("t", "i").split("-")[0]} for name in texts}
    theirs = {name: {text for text in texts if name in own[text]} for name in images}
    encoder = integrations.sentence_transformer(model)
    for way, queries, corpus, right in (("t2i", texts, images, own), ("i2t", images, texts, theirs)):
        evaluator = InformationRetrievalEvaluator(queries, corpus, right, write_csv=False)
        found = evaluator(encoder)
        for k in (1, 5, 10):
            accuracy = 100 * found[f"cosine_accuracy@{k}"]
            assert accuracy == pytest.approx(figures[way][f"R@{k}"], abs=0.1), (way, k)


def test_a_saved_sentence_transformer_is_a_model_folder(model: MMGEM, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    integrations.sentence_transformer(model, prompts={"query": "the "}).save(str(tmp_path / "saved"))
    texts = ["a dog", "a cat sits"]
    want = model.embed_texts(texts)
    assert np.allclose(MMGEM.from_pretrained(tmp_path / "saved").embed_texts(texts), want, atol=1e-6)
    assert np.allclose(integrations.sentence_transformer(tmp_path / "saved").encode(texts), want, atol=1e-6)
    trusting = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert np.allclose(trusting.encode(texts), want, atol=1e-6) and trusting.prompts["query"] == "the "


def test_it_learns_inside_sentence_transformers() -> None:
    module = integrations.MMGEMModule(MMGEM(toys.network(), toys.tokenizer()))
    features = module(module.preprocess(["a dog", np.zeros((32, 32, 3), np.uint8)]))
    (features["sentence_embedding"][0] @ features["sentence_embedding"][1]).backward()
    assert all(
        module.network.get_parameter(name).grad is not None
        for name in ("emb_token", "visual_projection.1.weight")
    )


def test_mteb_runs_a_text_task_and_an_image_task(
    model: MMGEM, records: list[Record], figures: dict[str, Any]
) -> None:
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    def task(name: str, kind: str, category: str, modalities: list[str], split: Any) -> Any:
        about = TaskMetadata(
            type=kind,
            name=name,
            main_score="hit_rate_at_1",
            description="Made in a test.",
            reference=None,
            dataset={"path": "none", "revision": "none"},
            category=category,
            modalities=modalities,
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
        )

        def load_data(self: Any, *_: Any, **__: Any) -> None:
            self.dataset, self.data_loaded = {"default": {"test": RetrievalSplitData(**split)}}, True

        return type(name, (AbsTaskRetrieval,), {"metadata": about, "load_data": load_data})()

    firsts = [{"id": f"q{n}", "text": record.captions[0]} for n, record in enumerate(records)]
    seconds = [{"id": f"d{n}", "text": record.captions[1], "title": ""} for n, record in enumerate(records)]
    said = [(n, text) for n, record in enumerate(records) for text in record.captions]
    texts = {
        "queries": Dataset.from_list(firsts),
        "corpus": Dataset.from_list(seconds),
        "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(len(records))},
        "top_ranked": None,
    }
    images = {
        "queries": Dataset.from_list([{"id": f"q{i}", "text": text} for i, (_, text) in enumerate(said)]),
        "corpus": Dataset.from_list(
            [{"id": f"d{n}", "image": Image.open(r.image)} for n, r in enumerate(records)]
        ),
        "relevant_docs": {f"q{i}": {f"d{n}": 1} for i, (n, _) in enumerate(said)},
        "top_ranked": None,
    }
    tasks = [
        task("ToyTexts", "Retrieval", "t2t", ["text"], texts),
        task("ToyImages", "Any2AnyRetrieval", "t2i", ["text", "image"], images),
    ]
    encoder = integrations.MtebEncoder(model, "mmgem/toy")
    results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False, co2_tracker=False)
    (of_texts,), (of_images,) = (result.scores["test"] for result in results.task_results)
    asked, there = (model.embed_texts([row["text"] for row in rows]) for rows in (firsts, seconds))
    ranked = [[f"d{n}" for n in np.argsort(-row)] for row in asked @ there.T]
    ours = ranking_scores(ranked, [[f"d{n}"] for n in range(len(records))])
    for k in (1, 5):
        assert 100 * of_texts[f"hit_rate_at_{k}"] == pytest.approx(ours[f"H@{k}"], abs=0.1)
    for k in (1, 5, 10):
        assert 100 * of_images[f"hit_rate_at_{k}"] == pytest.approx(figures["t2i"][f"R@{k}"], abs=0.1)
    assert encoder.similarity(asked, there).shape == (24, 24)
    assert np.allclose(encoder.similarity_pairwise(asked, there), (asked * there).sum(1), atol=1e-6)
    pair = encoder.encode([{"text": [said[0][1]], "image": [records[0].image]}])
    assert np.linalg.norm(pair) == pytest.approx(1, abs=1e-6)


def test_text_embeddings_for_langchain(model: MMGEM) -> None:
    texts, embeddings = ["a dog", "the sea"], integrations.TextEmbeddings(model)
    assert np.allclose(embeddings.embed_documents(texts), model.embed_texts(texts))
    assert embeddings.embed_query("the sea") == asyncio.run(embeddings.aembed_query("the sea"))
    assert asyncio.run(embeddings.aembed_documents(texts)) == embeddings.embed_documents(texts)


@pytest.mark.parametrize("small", [False, True])
def test_a_model_goes_to_the_hub_and_comes_back(
    model: MMGEM, small: bool, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = model.push_to_hub("me/toy", licence="apache-2.0", small=small, private=True)
    assert address == "https://huggingface.co/me/toy/commit/1" and hub.private == {"me/toy": True}
    again = MMGEM.from_pretrained("me/toy")
    cosines = (again.embed_texts(["a dog", "snow"]) * model.embed_texts(["a dog", "snow"])).sum(1)
    assert (cosines > (0.999 if small else 1 - 1e-6)).all()
    card = huggingface_hub.ModelCard(again.card)
    assert card.data.to_dict() == {
        "library_name": "mmgem",
        "pipeline_tag": "zero-shot-image-classification",
        "license": "apache-2.0",
    }
    assert card.text.strip() == "# A toy"
    again.save_pretrained(tmp_path / "again")  # what a card says stands
    assert huggingface_hub.ModelCard.load(tmp_path / "again" / "README.md").data == card.data

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 who are you?\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UsageError, match=r"^me/toy: not uploaded: 401 who are you\?$"):
        model.push_to_hub("me/toy")


def test_the_shipped_card_has_front_matter() -> None:
    data = huggingface_hub.ModelCard(MMGEM.from_pretrained("tiny").card).data
    assert (data.library_name, data.license) == ("mmgem", "other") and data.pipeline_tag


def test_fewer_dimensions(model: MMGEM, records: list[Record], folder: Path, tmp_path: Path) -> None:
    photos = [record.image for record in records[:3]]
    whole, short = model.embed_images(photos), model.embed_images(photos, dimensions=3)
    assert short.shape == (3, 3) and np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert np.allclose(short * np.linalg.norm(whole[:, :3], axis=1, keepdims=True), whole[:, :3], atol=1e-6)
    for wrong in (0, model.dim + 1):
        with pytest.raises(UsageError, match="dimensions must be from 1 to 8"):
            model.embed_texts(["snow"], dimensions=wrong)
    out = tmp_path / "v.npy"
    command = ["embed", str(photos[0]), "--text", "snow", "--dimensions", "3", "--out", str(out)]
    assert main([*command, "--model", str(folder)]) == 0
    assert np.allclose(np.load(out), [short[0], model.embed_texts(["snow"], 3)[0]], atol=1e-6)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmgem.integrations.sentence_transformers", raising=False)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'mmgem\[integrations\]'"):
        integrations.sentence_transformer("tiny")
