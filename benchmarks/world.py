"""What a model knows of photos of many kinds, side by side with others: names, queries, captions, boxes,
languages.

    python benchmarks/world.py tiny runs/other/model --data ../shared/data [--json out.json]

All figures are percent (CIDEr too), on dev splits, with one standard error over the photos or queries where
they are shares. ``kinds``: the labels of a set among all labels of that set. ``1000 names``: the photos of
imagen200 whose kind is one of ImageNet's 1,000 classes, among the first names of all of them (``mmgem pull
imagenet_labels``); ``agreement``: how often the name is the one that the base classifier of the default model
gives, on photos of all sets. ``boxes``: the category of a real box among those of the set. Languages: text to
photo with one caption a photo, the same photos for all languages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.api import MMGEM
from mmgem.data.readers import add_captions, in_language, load_dataset
from mmgem.data.records import Record
from mmgem.evaluate.captions import caption_scores
from mmgem.evaluate.classify import class_embeddings, classification_scores
from mmgem.evaluate.retrieval import retrieval_scores

KINDS = ("imagen200", "caltech101", "grocery", "flowers", "clothing", "scenes")
LANGUAGES = ("en", "de", "fr", "cs")


def share(percent: float, count: int) -> dict[str, float]:
    """A percentage of ``count`` with its standard error."""
    p = percent / 100
    return {
        "value": round(percent, 1),
        "se": round(100 * math.sqrt(p * (1 - p) / max(1, count)), 1),
        "n": count,
    }


def kinds(model: MMGEM, records: Sequence[Record], images: np.ndarray) -> dict[str, Any]:
    """Zero-shot top-1 over the labels of ``records``."""
    names = sorted({str(record.label) for record in records})
    classes = class_embeddings(model.embed_texts, names)
    labels = [names.index(str(record.label)) for record in records]
    scores = classification_scores(images, classes, labels)
    return share(float(scores["top1"]), len(records))


def thousand(model: MMGEM, records: Sequence[Record], images: np.ndarray, labels: Path) -> dict[str, Any]:
    """Top-1 and top-5 over ImageNet's 1,000 first names, of the photos whose kind is one of them."""
    lines = [json.loads(line) for line in labels.read_text("utf-8").splitlines()]
    classes = [line for line in lines if "members" not in line]
    column = {line["id"]: n for n, line in enumerate(classes)}
    chosen = [n for n, record in enumerate(records) if record.meta.get("wnid") in column]
    rows = class_embeddings(model.embed_texts, [line["names"][0] for line in classes])
    targets = [column[records[n].meta["wnid"]] for n in chosen]
    scores = classification_scores(images[chosen], rows, targets)
    return {name: share(float(scores[name]), len(chosen)) for name in ("top1", "top5")}  # type: ignore[literal-required]


def boxes(model: MMGEM, records: Sequence[Record]) -> dict[str, Any]:
    """A real box -> its category among those of the set."""
    boxed = [
        (r.image, region.box, region.captions[0]) for r in records for region in r.regions if region.captions
    ]
    names = sorted({name for _, _, name in boxed})
    rows = model.embed_images([path for path, _, _ in boxed], [box for _, box, _ in boxed])
    best = (rows @ model.embed_texts(names).T).argmax(1)
    right = np.mean([names[b] == name for b, (_, _, name) in zip(best, boxed, strict=True)])
    return share(100 * float(right), len(boxed)) | {"categories": len(names)}


def recalls(model: MMGEM, records: Sequence[Record], images: np.ndarray) -> dict[str, Any]:
    """Retrieval both ways."""
    owner = np.repeat(np.arange(len(records)), [len(r.captions) for r in records])
    texts = model.embed_texts([caption for r in records for caption in r.captions])
    scores = retrieval_scores(images, texts, owner)
    counts = {"i2t": len(records), "t2i": len(owner)}
    return {way: {k: share(v, counts[way]) for k, v in scores[way].items()} for way in counts}  # type: ignore[literal-required]


def measure(name: str, data: Path, labels: Path, parts: Sequence[str]) -> dict[str, Any]:
    """All figures of the model ``name``."""
    model = MMGEM.from_pretrained(name)
    world, out = data / "world", {}
    if "kinds" in parts:
        for kind in KINDS:
            records = load_dataset(world / kind / "captions.jsonl", split="dev")
            images = model.embed_images([r.image for r in records])
            out[kind] = kinds(model, records, images)
            if kind == "imagen200":
                out["1000 names"] = thousand(model, records, images, labels)
    if "boxes" in parts:
        out["boxes"] = boxes(model, load_dataset(world / "coco" / "captions.jsonl", split="dev"))
    flickr = load_dataset(data / "flickr8k" / "captions.jsonl", split="dev")
    images = model.embed_images([r.image for r in flickr])
    if "retrieval" in parts:
        out["flickr8k"] = recalls(model, flickr, images)
        stamps = load_dataset(world / "stamps" / "captions.jsonl")
        pictures = model.embed_images([r.image for r in stamps])
        for language in ("en", "ko"):
            told = stamps if language == "en" else in_language(stamps, language)
            rows = [n for n, r in enumerate(stamps) if language == "en" or language in r.translations]
            out[f"stamps {language}"] = recalls(model, told, pictures[rows])["t2i"]
    if "languages" in parts:
        translated = add_captions(flickr, world / "text" / "flickr8k_de_fr_cs.jsonl.gz")
        place = {r.image: n for n, r in enumerate(flickr)}
        for language in LANGUAGES:
            told = in_language(translated, language)
            out[language] = recalls(model, told, images[[place[r.image] for r in told]])["t2i"]
    if "captions" in parts:
        coco = load_dataset(world / "coco" / "captions.jsonl", split="dev")
        for row, told in (("captions", flickr), ("coco captions", [r for r in coco if r.captions])):
            said = model.caption([r.image for r in told])
            scores = caption_scores(said, [list(r.captions) for r in told])
            out[row] = {k: round(float(scores[k]), 1) for k in ("BLEU@4", "CIDEr")}  # type: ignore[literal-required]
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="labels.jsonl; default: the pulled one")
    parser.add_argument("--parts", default="kinds,boxes,retrieval,languages,captions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    labels = options.labels
    if labels is None:
        from mmgem.checkpoints.download import base_folder

        labels = base_folder("imagenet_labels") / "labels.jsonl"
    found = {name: measure(name, options.data, labels, options.parts.split(",")) for name in options.models}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for row in dict.fromkeys(row for scores in found.values() for row in flat(scores)):
        values = [flat(scores).get(row, "") for scores in found.values()]
        print(f"{row:24}" + "".join(f"{value:>18}" for value in values), file=sys.stdout)


def flat(scores: dict[str, Any], before: str = "") -> dict[str, str]:
    """Figures as words, by the names of their rows."""
    rows: dict[str, str] = {}
    for key, value in scores.items():
        name = f"{before} {key}".strip()
        if isinstance(value, dict) and "value" in value:
            rows[name] = f"{value['value']:.1f} ± {value['se']:.1f}"
        elif isinstance(value, dict):
            rows |= flat(value, name)
        else:
            rows[name] = f"{value:.1f}"
    return rows


if __name__ == "__main__":
    main()
