"""Retrieval by fewer dimensions: the first of each vector, or the first after a rotation that photos suggest.

    python benchmarks/dimensions.py flickr8k/captions.jsonl [--split dev] [--model tiny] [--keep vectors.npz]
    python benchmarks/dimensions.py flickr8k/captions.jsonl --quick     # 100 photos

Both ways on the same vectors, R@1 and R@10 in percent, without rescoring. The rotation is that of an HNSW
index of fewer dimensions (`mmgem index --hnsw int8:128`). `--keep` is a file for the vectors, read if it is
there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mmgem.api import MMGEM
from mmgem.data.readers import load_dataset
from mmgem.evaluate.retrieval import RetrievalScores, retrieval_scores
from mmgem.inference.pca import pca_components

DIMS = (256, 128, 64)


def embed(data: Path, split: str, model: str, count: int | None) -> dict[str, np.ndarray]:
    """Vectors of the photos (n, D) and of their captions (m, D), and the photo of each caption (m,)."""
    mmgem = MMGEM.from_pretrained(model)
    records = [record for record in load_dataset(data, split=split) if record.captions][:count]
    owner = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    images = mmgem.embed_images([record.image for record in records])
    texts = mmgem.embed_texts([caption for record in records for caption in record.captions])
    return {"images": images, "texts": texts, "owner": owner}


def truncate_embeddings(vectors: dict[str, np.ndarray], axes: np.ndarray) -> RetrievalScores:
    """Retrieval by what ``axes`` (D, d) keep of the vectors."""
    images, texts = (vectors[side] @ axes for side in ("images", "texts"))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return retrieval_scores(images, texts, vectors["owner"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.keep is not None and options.keep.exists():
        vectors = dict(np.load(options.keep, allow_pickle=False))
    else:
        vectors = embed(options.data, options.split, options.model, 100 if options.quick else None)
        if options.keep is not None:
            np.savez(options.keep, **vectors)  # type: ignore[arg-type]
    dim = vectors["images"].shape[1]

    def show(name: str, axes: np.ndarray) -> None:
        scores = truncate_embeddings(vectors, axes)
        cells = [f"{scores[way]['R@1']:5.1f} / {scores[way]['R@10']:4.1f}" for way in ("i2t", "t2i")]
        print(f"{name:14} {cells[0]}   {cells[1]}")

    print(f"{len(vectors['images']):,} photos, {len(vectors['texts']):,} texts, R@1 / R@10")
    print(f"{'':14} photo -> text  text -> photo")
    show(f"all {dim}", np.eye(dim, dtype=np.float32))
    for dims in DIMS:
        show(f"first {dims}", np.eye(dim, dims, dtype=np.float32))
        show(f"rotated, {dims}", pca_components(vectors["images"], dims))


if __name__ == "__main__":
    main()
