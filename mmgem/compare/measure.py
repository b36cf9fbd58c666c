"""What a trained system is measured by: retrieval, captions, classes and regions, as far as it has them, each
score with its standard error; and what its training took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mmgem.api import MMGEM
from mmgem.checkpoints.rounded import stored_shapes
from mmgem.config import Recipe
from mmgem.data.records import Record
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.evaluate.bleu import bleu
from mmgem.evaluate.cider import cider_d
from mmgem.evaluate.classify import class_embeddings
from mmgem.evaluate.regions import thing_ranks
from mmgem.evaluate.retrieval import Ints, ranks, reranked_ranks
from mmgem.evaluate.standard_error import jackknife_error, standard_error
from mmgem.evaluate.tokenize import caption_words
from mmgem.inference.images import encode_images
from mmgem.search.rerank import RerankOptions, photo_scores
from mmgem.tasks.base import tasks_of
from mmgem.train.state import saved_steps
from mmgem.utils.progress import track

Score = tuple[float, float]
"""A figure and its standard error."""

_BATCH = 32


@dataclass(frozen=True)
class TestData:
    """What systems are measured on. ``photos``: with captions; ``classes``: with a label; ``regions``: with
    described boxes; ``rerank``: how many of the nearest are looked at again, 0: none; ``captions``: whether
    they are written, too."""

    photos: Sequence[Record]
    classes: Sequence[Record] = field(default_factory=list)
    regions: Sequence[Record] = field(default_factory=list)
    rerank: int = 0
    captions: bool = True


def measure(model: MMGEM, data: TestData) -> dict[str, Score]:
    """Figures by name, in percent (CIDEr and BLEU times 100), of what ``model`` can do. Raises
    ``ImageError`` for a photo that cannot be read."""
    network = model.network
    scores: dict[str, Score] = {}
    if network.embeds and data.photos:
        scores |= _retrieval(model, data)
    if network.captions and data.captions and data.photos:
        scores |= _captions(model, data.photos)
    if network.embeds and data.classes:
        scores |= _classes(model, data.classes)
    if network.embeds and network.regions and data.regions:
        scores |= _regions(model, data.regions)
    return scores


def _batches(records: Sequence[Record], label: str) -> Iterator[list[Record]]:
    parts = [list(records[at : at + _BATCH]) for at in range(0, len(records), _BATCH)]
    yield from track(parts, label, sizes=[*map(len, parts)], unit=" photos")


def _embed(model: MMGEM, records: Sequence[Record]) -> np.ndarray:
    parts = [model.embed_images([r.source for r in part]) for part in _batches(records, "Embedding")]
    return np.concatenate(parts)


def _recalls(name: str, of: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Score]:
    hits = {k: 100.0 * (of <= k) for k in (1, 10)}
    return {f"{name} R@{k}": (float(x.mean()), standard_error(x, groups)) for k, x in hits.items()}


def _retrieval(model: MMGEM, data: TestData) -> dict[str, Score]:
    """Texts of one image are a group: they are found or not together."""
    records = data.photos
    texts = [caption for record in records for caption in record.captions]
    owner = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    images, embedded = _embed(model, records), model.embed_texts(texts)
    of_images, of_texts = ranks(images, embedded, owner)
    scores = _recalls("i2t", of_images) | _recalls("t2i", of_texts, owner)
    if data.rerank and model.network.captions:
        look = partial(_second_look, model, records, texts, images @ embedded.T)
        of_images, of_texts = reranked_ranks(images, embedded, owner, look, data.rerank)
        scores |= _recalls("i2t reranked", of_images) | _recalls("t2i reranked", of_texts, owner)
    return scores


@torch.inference_mode()
def _second_look(
    model: MMGEM, records: Sequence[Record], texts: list[str], cosines: np.ndarray, rows: Ints, columns: Ints
) -> np.ndarray:
    """Scores ``(p,)`` of the pairs of the photos ``rows`` and the texts ``columns``, by
    :meth:`RerankOptions.scores`."""
    network, ids = model.network, model.tokenizer.encode_all(texts)
    log_prob, logits = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    matching: np.ndarray | None = None
    first = 0
    for part in _batches(records, "Looking again"):
        visual = encode_images(network, model.tokenizer.prep, [record.source for record in part])
        (pairs,) = ((first <= rows) & (rows < first + len(part))).nonzero()
        seen = visual[torch.from_numpy(rows[pairs] - first).to(visual.device)]
        given = photo_scores(network, seen, [ids[c] for c in columns[pairs]], model.tokenizer.end)
        log_prob[pairs] = given[0]
        if given[1] is not None:
            logits[pairs], matching = given[1], logits
        first += len(part)
    usual = np.bincount(columns, log_prob) / np.maximum(1, np.bincount(columns))
    return RerankOptions().scores(
        cosines[rows, columns], log_prob, usual[columns], model.temperature, matching
    )


def _captions(model: MMGEM, records: Sequence[Record]) -> dict[str, Score]:
    """CIDEr's error takes the weights of words as given; BLEU is of a corpus, so parts are left out of it."""
    written = [
        caption
        for part in _batches(records, "Captioning")
        for caption in model.caption([record.source for record in part])
    ]
    words = [caption_words(caption) for caption in written]
    references = [[caption_words(caption) for caption in record.captions] for record in records]
    cider = 100.0 * np.array(cider_d(words, references))

    def bleu4(items: np.ndarray) -> float:
        return 100.0 * bleu([words[n] for n in items], [references[n] for n in items])[-1]

    everything = np.arange(len(words))
    return {
        "CIDEr": (float(cider.mean()), standard_error(cider)),
        "BLEU@4": (bleu4(everything), jackknife_error(bleu4, len(words))),
    }


def _classes(model: MMGEM, records: Sequence[Record]) -> dict[str, Score]:
    names = sorted({str(record.label) for record in records})
    rows = {name: row for row, name in enumerate(names)}
    labels = np.array([rows[str(record.label)] for record in records])
    cosines = _embed(model, records) @ class_embeddings(model.embed_texts, names).T
    right = 100.0 * (cosines.argmax(1) == labels)
    return {"zero-shot": (float(right.mean()), standard_error(right))}


def _regions(model: MMGEM, records: Sequence[Record]) -> dict[str, Score]:
    """As ``mmgem eval region``: the same captions are the same thing. Boxes of a photo are a group."""
    vectors, things, groups = [], [], []
    number: dict[tuple[str, ...], int] = {}
    for photo, record in enumerate(track(list(records), "Embedding boxes", unit=" photos")):
        described = [region for region in record.regions if region.captions]
        if described:
            boxes = [region.box for region in described]
            vectors.append(model.embed_images([record.image] * len(boxes), boxes))
            things += [number.setdefault(region.captions, len(number)) for region in described]
            groups += [photo] * len(boxes)
    pairs = [(thing, text) for captions, thing in number.items() for text in captions]
    texts = model.embed_texts([text for _, text in pairs])
    of_text = np.array([thing for thing, _ in pairs])
    found = thing_ranks(np.concatenate(vectors), texts, np.array(things), of_text)
    return _recalls("region", found, np.array(groups))


def training_facts(recipe: Recipe, done: dict[str, Any], model: MMGEM) -> dict[str, float]:
    """What a finished run took: ``trained`` and ``parameters`` (numbers), ``steps``, ``pairs`` seen,
    ``tokens`` of their captions (by the mean length in the data), ``pairs_per_second``, ``seconds``,
    ``peak_memory_gb``."""
    out = recipe.train.out
    newest = out / "checkpoints" / f"step-{saved_steps(out / 'checkpoints')[-1]:08d}"
    shapes = stored_shapes(newest / "weights.safetensors").values()
    facts = {
        "trained": sum(int(np.prod(shape)) for shape in shapes),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "peak_memory_gb": done["peak_memory_gb"],
        "seconds": done["seconds"],
        **_log_facts(out / "log.jsonl"),
    }
    task = tasks_of(recipe)[0]
    data = task.describe_data(model.tokenizer, None, SINGLE_PROCESS)
    facts["pairs"] = facts["steps"] * task.step_size(data).pairs
    if lengths := getattr(data, "tokens", None):
        facts["tokens"] = round(facts["pairs"] * float(np.mean(lengths)))
    return facts


def _log_facts(log: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    speeds = [line["pairs_per_second"] for line in lines if line.get("pairs_per_second")]
    return {
        "steps": max(line["step"] for line in lines),
        **({"pairs_per_second": median(speeds)} if speeds else {}),
    }
