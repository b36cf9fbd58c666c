"""What each idea of recipes/world.toml brings: Flickr8k's pairs alone, each idea added to them, all together.

    python benchmarks/world_ablation.py --data ../shared/data --llm OLD/tiny --steps 120 --work runs/ablation

Equal steps, batch and seed. ``--llm``: where every row begins, as ``init.llm``; without it the recipe's base
weights. Each row is a run of its own below ``--work``, measured as benchmarks/world.py does. What is there
already is not done again. Writes ``table.md`` and ``table.json`` to ``--work``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from world import flat, measure

from mmgem.checkpoints.download import base_folder
from mmgem.config.recipe import load_recipe
from mmgem.data.readers import load_dataset

RECIPE = Path(__file__).parent.parent / "recipes" / "world.toml"
NONE = {
    "data.extra_train": "[]",
    "data.extra_share": "0.0",
    "data.labels": "false",
    "data.translations": "[]",
    "data.translation_prob": "0.0",
    "data.texts": "[]",
    "data.mosaics": "0",
    "data.mosaic_share": "0.0",
    "data.region_share": "0.0",
    "data.region_size": "0",
    "image_text.label_distillation.weight": "0.0",
    "image_text.text_only.weight": "0.0",
}
"""Flickr8k's pairs alone."""

IDEAS: dict[str, tuple[str, ...]] = {
    "pairs alone": (),
    "+ names from the classifier": ("image_text.label_distillation.weight",),
    "+ photos of more kinds, labels": ("data.extra_train", "data.extra_share", "data.labels"),
    "+ texts alone": ("data.texts", "image_text.text_only.weight"),
    "+ other languages": ("data.translations", "data.translation_prob"),
    "+ mosaics": ("data.mosaics", "data.region_share", "data.region_size"),
    "all": tuple(NONE),
}
"""Which of the recipe's own values each row keeps."""


def overrides(kept: tuple[str, ...], options: argparse.Namespace, images: int) -> list[str]:
    """What is given to ``mmgem train`` for a row, so that it has ``options.steps`` steps."""
    changes = {key: value for key, value in NONE.items() if key not in kept}
    if "data.mosaics" in kept:
        changes["data.mosaics"] = "1500"
    recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])
    whole = options.batch_size - round(options.batch_size * recipe.data.region_share)
    own = whole - round(whole * recipe.data.extra_share) if recipe.data.extra_train else whole
    changes |= {
        "train.batch_size": str(options.batch_size),
        "train.epochs": repr(options.steps / (images // own)),
        "train.evaluate_every": "0",
        "data.cached_augmentations": "2",
        "model.encoder.freeze_until": "20",
        "optim.warmup_steps": "20",
        "data.train": str(options.data / "flickr8k" / "captions.jsonl"),
    }
    for key in ("data.extra_train", "data.translations", "data.texts"):
        if key in kept:
            paths = getattr(recipe.data, key.partition(".")[2])
            moved = [str(options.data / str(path).partition("shared/data/")[2]) for path in paths]
            changes[key] = json.dumps(moved)
    if options.llm:
        changes |= {"init.llm": options.llm, "init.keep_layers": "[]", "init.quantize_embeddings": "false"}
    return [f"{key}={value}" for key, value in changes.items()]


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--llm", default="")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--parts", default="kinds,boxes,retrieval,languages,captions")
    options = parser.parse_args()
    images = len(load_dataset(options.data / "flickr8k" / "captions.jsonl", split="train"))
    labels = base_folder("imagenet_labels") / "labels.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    table = options.work / "table.json"
    found: dict[str, Any] = json.loads(table.read_text()) if table.exists() else {}
    for row, (name, kept) in enumerate(IDEAS.items()):
        if name in found:
            continue
        out = options.work / f"row{row}"
        changes = [*overrides(kept, options, images), f"train.out={out}"]
        print(f"{name}: mmgem train {RECIPE.name} {' '.join(changes)}", flush=True)
        subprocess.run([sys.executable, "-m", "mmgem", "train", str(RECIPE), *changes], check=True)
        found[name] = flat(measure(str(out / "model"), options.data, labels, options.parts.split(",")))
        table.write_text(json.dumps(found, indent=1) + "\n")
    rows = dict.fromkeys(key for scores in found.values() for key in scores)
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {key} | " + " | ".join(s.get(key, "") for s in found.values()) + " |" for key in rows]
    (options.work / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
