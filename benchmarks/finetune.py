"""What `recipes/finetune.toml` brings on a person's own photos, and what it costs of what was known before.

    python benchmarks/finetune.py --data grocery/captions.jsonl --keep flickr8k/captions.jsonl
    python benchmarks/finetune.py --emoji NotoColorEmoji.ttf --keep flickr8k/captions.jsonl

300 photos are learned (of the split ``train`` if there is one), the split ``dev`` is measured on, or without
one up to 300 others. ``--emoji``: the pictures of a font, named as Unicode names them: drawings of a
kind and of names that no training has seen. All figures are percent with one standard error (captions:
CIDEr): class names among all of the set; captions to photos, R@1 and R@10. ``--keep``: retrieval and captions
of 200 dev photos of another set, before and after. The recipe runs as it ships, but for what ``--set``
changes.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmgem.api import MMGEM
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, write_jsonl
from mmgem.evaluate.captions import caption_scores
from mmgem.evaluate.classify import class_embeddings, classification_scores
from mmgem.evaluate.retrieval import retrieval_scores

RECIPE = Path(__file__).parent.parent / "recipes" / "finetune.toml"
_STRIKE = 109  # pixels of the bitmaps of such a font
_KEPT = 200


def emoji(font: Path, folder: Path) -> list[Record]:
    """A picture of every emoji that has a name of its own, on white, as 224 x 224 JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ImageFont.truetype(str(font), _STRIKE)
    records = []
    for code in (*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F6FD), *range(0x1F90C, 0x1FAF9)):
        name = unicodedata.name(chr(code), "")
        canvas = Image.new("RGB", (160, 160), "white")
        ImageDraw.Draw(canvas).text((12, 16), chr(code), font=drawn, embedded_color=True)
        if not name or "EMOJI MODIFIER" in name or np.asarray(canvas).std() < 5:
            continue
        path = folder / f"{code:x}.jpg"
        canvas.resize((224, 224)).save(path, quality=90)
        records.append(Record(path.resolve(), (name.lower(),)))
    return records


def parted(records: Sequence[Record], photos: int) -> list[Record]:
    """``photos`` records of the split ``train``, the others ``dev``."""
    own = [record for record in records if record.split in ("train", None)]
    dev = [record for record in records if record.split == "dev"]
    random.Random(0).shuffle(own)
    train, rest = own[:photos], own[photos : 2 * photos]
    return [in_split(r, "train") for r in train] + [in_split(r, "dev") for r in dev or rest]


def in_split(record: Record, split: str) -> Record:
    """``record`` in ``split``, without what no training reads."""
    return Record(record.image, record.captions, split, record.label)


def share(percent: float, count: int) -> str:
    """A percentage of ``count`` with its standard error."""
    p = percent / 100
    return f"{percent:.1f} ± {100 * math.sqrt(p * (1 - p) / count):.1f}"


def measure(model: MMGEM, records: Sequence[Record], names: Sequence[str], captions: bool) -> dict[str, str]:
    """The figures of ``model`` on ``records``; ``captions``: CIDEr of what it writes, too."""
    figures: dict[str, str] = {}
    images = model.embed_images([record.image for record in records])
    if names:
        classes = class_embeddings(model.embed_texts, names)
        rows = [n for n, record in enumerate(records) if record.label is not None]
        targets = [names.index(str(records[n].label)) for n in rows]
        scores = classification_scores(images[rows], classes, targets)
        figures |= {k: share(float(scores[k]), len(rows)) for k in ("top1", "top5")}  # type: ignore[literal-required]
        figures["name -> photo R@10"] = name_recall(images[rows], classes, np.array(targets))
    told = [n for n, record in enumerate(records) if record.captions]
    if told:
        owner = np.repeat(np.arange(len(told)), [len(records[n].captions) for n in told])
        texts = model.embed_texts([caption for n in told for caption in records[n].captions])
        found = retrieval_scores(images[told], texts, owner)["t2i"]
        figures |= {f"text -> photo {k}": share(float(found[k]), len(owner)) for k in ("R@1", "R@10")}
        if captions:
            said = model.caption([records[n].image for n in told])
            cider = caption_scores(said, [list(records[n].captions) for n in told])["CIDEr"]
            figures["captions CIDEr"] = f"{cider:.1f}"
    return figures


def name_recall(images: np.ndarray, classes: np.ndarray, targets: np.ndarray) -> str:
    """How many of the photos of a name (of at most ten) are among the first ten it finds: mean over names."""
    order = np.argsort(-(classes @ images.T), axis=1)[:, :10]
    found = [
        np.count_nonzero(targets[order[c]] == c) / min(10, np.count_nonzero(targets == c))
        for c in np.unique(targets)
    ]
    return f"{100 * np.mean(found):.1f} ± {100 * np.std(found) / math.sqrt(len(found)):.1f}"


def main() -> None:
    """Train, measure before and after, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--emoji", type=Path, metavar="FONT")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_benchmark"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--measure-only", action="store_true", help="of a run that has ended")
    options = parser.parse_args()
    records = emoji(options.emoji, options.out / "emoji") if options.emoji else load_dataset(options.data)
    records = parted(records, options.photos)
    data = options.out / "photos.jsonl"
    write_jsonl(data, records)
    wall = time.monotonic()
    if not options.measure_only:
        changes = [f"data.train={data}", f"train.out={options.out / 'run'}", *options.set]
        command = [sys.executable, "-m", "mmgem", "train", str(RECIPE), *changes]
        subprocess.run(command, check=True)
    print(f"trained on {sum(r.split == 'train' for r in records)} photos: {time.monotonic() - wall:.0f} s")
    dev = [record for record in records if record.split == "dev"]
    names = sorted({r.label for r in records if r.label is not None})
    kept = load_dataset(options.keep, split="dev")[:_KEPT] if options.keep else []
    rows: dict[str, list[str]] = {}
    for model in (MMGEM.from_pretrained("tiny"), MMGEM.from_pretrained(options.out / "run" / "model")):
        figures = measure(model, dev, names, captions=False)
        figures |= {
            f"kept: {k}": v for k, v in (measure(model, kept, [], captions=True) if kept else {}).items()
        }
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        print(f"{name:32}" + "".join(f"{value:>18}" for value in values))


if __name__ == "__main__":
    main()
