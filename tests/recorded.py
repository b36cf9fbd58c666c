"""What training and the shipped model computed when it was written down, to compare with what they do now.

python tests/recorded.py    record anew (only where a change is meant to alter results)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import toys
from forks import run_ranks
from PIL import Image
from safetensors.torch import load_file

from mmgem.config import Recipe, from_dict, to_dict
from mmgem.train.loop import train

RECORDED = Path(__file__).parent / "fixtures" / "recorded.json"
STEPS = 20
NUMBERS = ("contrastive_loss", "caption_loss", "retrieve_loss", "ask_loss", "assess_loss", "embed_loss")
NUMBERS += ("gradient_norm", "temperature")


def machine() -> list[str]:
    """What bitwise equality may depend on."""
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.processor(), _cpu()]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    wanted = ("vendor_id", "cpu family", "model\t")
    return " ".join(line.partition(":")[2].strip() for line in lines[:8] if line.startswith(wanted))


def recipes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Toy forms of ``tiny``, ``tiny_regions`` and ``xquad``, those on photos with and without chunks: plain
    recipes, in the order in which they need each other."""
    data = toys.photos(folder / "data")
    passages, queries = toys.corpus(folder / "corpus", 12, 4)
    lm, encoder = toys.base_models(folder / "bases", "tied llama", "efficientnet_lite0")
    shared = {
        "image_text__contrastive__distill_weight": 0.5,
        "image_text__contrastive__teacher": str(toys.text_teacher(folder / "teacher", 16, 3, "<end>")),
        "image_text__contrastive__teacher_temperature": 0.03,
        "image_text__caption__sampled_softmax": 12,
        "optim__lr_encoder": 1e-3,
        "optim__ema_decay": 0.9,
        "model__visual_tokens": 4,
        "preprocessing__text_prefix": " ",
        "preprocessing__scales": [48],
        "train__epochs": STEPS / 3,
        "train__checkpoint_every": STEPS,
    }

    def made(name: str, **changes: Any) -> dict[str, Any]:
        return to_dict(toys.recipe(folder, data, lm, encoder, train__out=str(folder / name), **changes))

    tiny = made("tiny", **shared, data__cached_augmentations=6)
    regions = made(
        "tiny_regions",
        **shared,
        data__cached_augmentations=6,
        data__mosaics=12,
        data__mosaic_augmentations=1,
        data__region_share=0.4,
        data__region_size=64,
        data__boxes_per_image=2,
        data__joined_caption_prob=0.2,
        preprocessing__region_scales=[64],
        preprocessing__max_text_tokens=160,
        image_text__contrastive__mask_false_negatives=True,
    )
    regions["init"] = to_dict(from_dict(Recipe, {"train": {"out": ""}}).init)
    regions["init"]["checkpoint"] = str(folder / "tiny" / "model")
    regions["train"]["epochs"] = STEPS / 4  # 5 photos and 3 boxes a step
    xquad = made(
        "xquad",
        data__train=None,
        model__encoder={"kind": "none", "config": {"size": 32}},
        self_retrieval__passages=str(passages),
        self_retrieval__queries=[str(queries)],
        self_retrieval__dev=str(queries),
        self_retrieval__batch_size=15,
        preprocessing__text_prefix=" ",
        preprocessing__max_text_tokens=250,
        preprocessing__long_text="joined",
        self_retrieval__ask_weight=0.3,
        optim__ema_decay=0.98,
        train__epochs=STEPS / 4,
        train__checkpoint_every=STEPS,
    )
    for name, value in (("cached_augmentations", 1), ("cache", None)):
        xquad["data"][name] = value
    xquad["init"]["encoder"] = "efficientnet_lite0"
    return {"first": [tiny, chunked(tiny, 3), xquad], "then": [regions, chunked(regions, 3)]}


def chunked(recipe: dict[str, Any], size: int) -> dict[str, Any]:
    """The same with gradients cached, into another folder."""
    train = recipe["train"] | {"grad_cache_chunk_size": size, "out": recipe["train"]["out"] + "_chunks"}
    return recipe | {"train": train}


def outcome(out: Path) -> dict[str, Any]:
    """Losses and gradient norms of every step, the last scores, and hashes of all that was trained, whatever
    it is called."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [[line[name] for name in NUMBERS if name in line] for line in lines if "gradient_norm" in line]
    (checkpoint,) = (out / "checkpoints").iterdir()
    files = [load_file(str(checkpoint / f"{name}.safetensors")) for name in ("weights", "average")]
    tensors = [value for file in files for value in file.values()]
    hashes = sorted(hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in tensors)
    return {
        "steps": steps,
        "scores": {k: v for k, v in lines[-1].items() if k != "step"},
        "norms": sorted(float(value.double().norm()) for value in tensors),
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }


def training(folder: Path, ranks: int) -> dict[str, Any]:
    """What every recipe of :func:`recipes` comes to on so many ranks, by the name of its folder."""
    os.environ["MMGEM_CACHE"] = str(folder / "cache")
    made = recipes(folder)
    for group in made.values():
        path = folder / "recipes.json"
        path.write_text(json.dumps(group))
        if ranks == 1:
            run(path)
        else:
            run_ranks(folder / "said", ranks, run, path)
    return {Path(r["train"]["out"]).name: outcome(Path(r["train"]["out"])) for g in made.values() for r in g}


def run(path: Path) -> None:
    for plain in json.loads(path.read_text()):
        train(from_dict(Recipe, plain))


def pictures(folder: Path, count: int = 100) -> list[Path]:
    """Pictures with large and small shapes of many colours."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((320, 240), 3)
        pixels = np.asarray(coarse).copy()
        for _ in range(4):
            x, y = int(rng.integers(0, 260)), int(rng.integers(0, 180))
            pixels[y : y + int(rng.integers(20, 60)), x : x + int(rng.integers(20, 60))] = rng.integers(
                0, 256, 3
            )
        paths.append(folder / f"{i:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


TEXTS = ("a dog runs in the snow", "Two men play football. One has a red shirt.", "a child in water")


def shipped(photos: list[Path], index: Path) -> dict[str, Any]:
    """What ``tiny`` says of ``photos``, boxes sampled twice a bin as they were then: embeddings (as products
    with a fixed matrix), captions, regions, and the scores of a reranked search."""
    from mmgem import MMGEM
    from mmgem.inference import region_proposals
    from mmgem.models import pooling

    with pytest.MonkeyPatch.context() as patch:
        weights = pooling.axis_weights
        for module in (pooling, region_proposals):
            patch.setattr(
                module,
                "axis_weights",
                lambda start, end, size, samples=None, bins=7: weights(start, end, size, samples or 2, bins),
            )
        return _shipped(MMGEM.from_pretrained("tiny"), photos, index)


def _shipped(model: Any, photos: list[Path], index: Path) -> dict[str, Any]:
    from mmgem.search.index import update_index
    from mmgem.search.search import PhotoIndex

    matrix = np.random.default_rng(0).standard_normal((model.dim, 8)).astype(np.float32)
    boxes: list[Any] = [(20.0, 10.0, 200.0, 150.0)] * len(photos)
    vectors, captions = model.describe(photos)
    boxed = model.embed_images(photos, boxes)
    texts = model.embed_texts(TEXTS)
    found = model.find_regions(photos[:10], 3)
    update_index(index, photos[0].parent, lambda: model, model.fingerprint)
    opened = PhotoIndex.open(index)
    model.tokenizer.prep.query_prefix = ""  # which there was not yet
    ranked = [model.rerank(opened, text, 5) for text in TEXTS]
    return {
        "images": (vectors @ matrix).tolist(),
        "boxes": (boxed @ matrix).tolist(),
        "texts": (texts @ matrix).tolist(),
        "captions": captions,
        "regions": [boxes for boxes, _ in found],
        "region_vectors": [(v @ matrix).tolist() for _, v in found],
        "rerank": [[[Path(hit.path).name, hit.score, hit.log_prob] for hit in hits] for hits in ranked],
        "scores": model.score(photos[:10], [TEXTS[0]] * 10).tolist(),
        "sha256": hashlib.sha256(b"".join(x.tobytes() for x in (vectors, boxed, texts))).hexdigest(),
    }


def record() -> dict[str, Any]:
    """All that is compared."""
    facts: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            facts[f"{ranks} ranks"] = training(Path(folder) / str(ranks), ranks)
        for count in (100, 10):
            place = Path(folder) / f"{count}"
            facts[f"tiny, {count} photos"] = shipped(pictures(place / "pictures", count), place / "index")
    return facts


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORDED.write_text(json.dumps(record()) + "\n")
