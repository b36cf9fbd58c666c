"""How well copies of photos are found: 300 photos of Flickr8k dev, five made copies each.

OMP_NUM_THREADS=1 python benchmarks/near_duplicates.py flickr8k/captions.jsonl --work dup/

Resized to half, compressed again at quality 40, cropped by 5%, brightened by 30%, and one that is cropped at
a side, resized, darker and compressed. Pairs are counted: a right one is two versions of one photo. What is
made is kept in ``--work``, so a second run only measures.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mmgem import MMGEM
from mmgem.search.duplicates import MIN_COSINE, find_duplicates
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex

COPIES = 5


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The bytes of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def versions(path: Path) -> Iterator[bytes]:
    """The file itself and its copies."""
    yield path.read_bytes()
    image = Image.open(path).convert("RGB")
    width, height = image.size
    yield jpeg(image.resize((width // 2, height // 2), Image.Resampling.LANCZOS), 90)
    yield jpeg(image, 40)
    across, down = round(0.025 * width), round(0.025 * height)
    yield jpeg(image.crop((across, down, width - across, height - down)), 90)
    yield jpeg(ImageEnhance.Brightness(image).enhance(1.3), 90)
    cut = image.crop((0, 0, round(0.95 * width), round(0.95 * height)))
    small = cut.resize((width * 3 // 4, height * 3 // 4))
    yield jpeg(ImageEnhance.Brightness(small).enhance(0.8), 60)


def build(captions: Path, work: Path, count: int) -> PhotoIndex:
    """The index of so many photos of the dev split and their copies."""
    records = [json.loads(line) for line in captions.read_text().splitlines()]
    dev = [record["image"] for record in records if record.get("split") == "dev"]
    random.Random(0).shuffle(dev)
    files = []
    for number, image in enumerate(dev[:count]):
        for kind, data in enumerate(versions(captions.parent / image)):
            files.append(work / "photos" / f"{number:03}-{kind}.jpg")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            files[-1].write_bytes(data)
    if (work / "vectors.npy").is_file():
        vectors = np.load(work / "vectors.npy")
    else:
        model = MMGEM.from_pretrained("tiny")
        vectors = model.embed_images(files)
        np.save(work / "vectors.npy", vectors)
    out = work / "photos.idx"
    with IndexStore(out, "f") as store:
        store.set_source(work / "photos", "tiny")
        digests = [str(path.name).encode() for path in files]
        contents = [
            NewContent(digest, vector[None], (None,)) for digest, vector in zip(digests, vectors, strict=True)
        ]
        store.record(
            [content for content in contents if store.content(content.digest) is None],
            [HashedFile(path.name, 1, 1, digest) for path, digest in zip(files, digests, strict=True)],
        )
    return PhotoIndex.open(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    index = build(options.captions, options.work.resolve(), options.photos)
    cosines = index.vectors @ index.vectors.T
    owner = np.array([name[:3] for name in index.names])
    copies = owner[:, None] == owner
    others = ~copies
    np.fill_diagonal(copies, False)
    for least in (0.7, MIN_COSINE, 0.9, 0.95):
        found, wrong = (cosines[copies] >= least).mean(), (cosines[others] >= least).sum() // 2
        print(f"cosine >= {least}: {100 * found:.1f}% of the copies, and {wrong} other pairs")
    pairs = {
        pair
        for group in find_duplicates(index)
        for pair in combinations(sorted(path.name for path in group.paths), 2)
    }
    right = sum(one[:3] == two[:3] for one, two in pairs)
    expected = options.photos * (COPIES + 1) * COPIES // 2
    print(f"pairs found {len(pairs)}, right {right} of {expected}")
    print(f"precision {right / max(1, len(pairs)):.4f}, recall {right / expected:.4f}")
    for one, two in sorted(pair for pair in pairs if pair[0][:3] != pair[1][:3])[:5]:
        print(f"wrong: {one} {two}")


if __name__ == "__main__":
    main()
