"""Can search tell that nothing fits? AUROC of queries whose photo is in the index against the same without.

    python benchmarks/no_match.py flickr8k/captions.jsonl [--split dev] [--model tiny] [--keep vectors.npz]
    python benchmarks/no_match.py flickr8k/captions.jsonl --labels caltech101/captions.jsonl ...
    python benchmarks/no_match.py flickr8k/captions.jsonl --second-look 200
    python benchmarks/no_match.py flickr8k/captions.jsonl --quick      # 100 photos, few draws

Scores of the first hit by the size of the index: its cosine; the cosine standardised by the query's
background (mean and covariance of photos' embeddings); the gap to the second; logistic regressions of these
and of the size, fitted on one half of the photos; the calibration as mmgem calibrate fits it. Measured on
captions of the other half, in random indexes of its photos (of all photos, where it is too small), in ten
batches of draws: mean and standard error over the batches.

"lookalikes out": photos whose own captions have the query's words (TF-IDF cosine as high as captions of
one photo have in three of four cases) are taken out as well, so that what is left does not fit. "kept",
"flagged": shares of searches that a probability of 0.5 leaves alone with the photo and marks without it.
"R@1": how often the photo is the first hit. Where it is not, the index has the same first hit with the photo
and without, so no score of that hit can be above the "ceiling", 1 - (1 - R@1)^2 / 2.

`--labels`: photos with labels; classes are named with their own among them and without. `--second-look N`:
log P(text | image) of the first hit too, less that of the mean photo, for N queries a half (slow). `--keep`
is a file for the vectors, read if it is there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmgem.api import MMGEM
from mmgem.data.readers import load_dataset
from mmgem.evaluate.calibrate import CalibrationOptions, fit_weights, logistic_regression
from mmgem.evaluate.classify import class_embeddings
from mmgem.evaluate.match import Alike, MatchDraws, alike_by_text, auroc, draw_classes, draw_searches
from mmgem.inference.calibration import Background, match_features
from mmgem.search.rerank import RerankOptions, log_probs

SIZES = (10, 30, 100, 300, 1000)
CLASS_COUNTS = (3, 5, 10, 30, 100, 300)
BATCHES = 10


class Captioned:
    """Embeddings of photos and captions, which half is fitted on, and what is known of each draw."""

    def __init__(self, vectors: dict[str, np.ndarray], rank: int) -> None:
        self.images, self.texts, self.owners = vectors["images"], vectors["texts"], vectors["owners"]
        self.captions = [str(caption) for caption in vectors["captions"]]
        order = np.random.default_rng(0).permutation(len(self.images))
        self.fitted, self.measured = (np.sort(half) for half in np.array_split(order, 2))
        self.mean, self.std = Background.of(self.images[self.fitted], rank).cosines(self.texts)

    def draws(self, size: int, count: int, seed: int, fit: bool, alike: Alike | None = None) -> MatchDraws:
        """``count`` searches by captions of one half."""
        half = self.fitted if fit else self.measured
        pool = half if size <= len(half) else None
        return draw_searches(
            self.images, self.texts, self.owners, size, count, seed, pool=pool, asked=half, alike=alike
        )

    def known(self, draw: MatchDraws, present: bool) -> dict[str, np.ndarray]:
        """What is known of one side of a draw, each ``(n,)``."""
        queries, photos = draw.present_query, draw.present_photos if present else draw.absent_photos
        cosine = draw.present if present else draw.absent
        second = np.einsum("nd,nd->n", self.texts[queries], self.images[photos[:, -1]])
        mean, std = self.mean[queries], self.std[queries]
        log_size = np.full(len(queries), np.log(draw.size))
        standardised = (cosine - mean) / std
        return {
            "cosine": cosine,
            "mean": mean,
            "std": std,
            "standardised": standardised,
            "gap": cosine - second,
            "log size": log_size,
        }


METHODS = {
    "cosine": ("cosine",),
    "standardised": ("standardised",),
    "gap to the second": ("gap",),
    "regression: cosine, size": ("cosine", "log size"),
    "  standardised, size": ("standardised", "log size"),
    "  cosine, background, size": ("cosine", "mean", "std", "log size"),
    "  all, with the gap": ("cosine", "mean", "std", "standardised", "gap", "log size"),
}
"""What each way to score a first hit knows; those of one alone need no fit."""


def embed(data: Path, split: str, model: MMGEM, count: int | None) -> dict[str, np.ndarray]:
    """Vectors of the photos (n, D) and of their captions (m, D), and the photo of each caption (m,)."""
    records = [record for record in load_dataset(data, split=split) if record.captions][:count]
    owners = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    captions = [caption for record in records for caption in record.captions]
    return {
        "images": model.embed_images([record.image for record in records]),
        "texts": model.embed_texts(captions),
        "owners": owners,
        "captions": np.array(captions),
    }


def word_vectors(captions: list[str]) -> np.ndarray:
    """TF-IDF (m, words) of length 1, or of 0 for a caption without words."""
    words = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    column = {word: n for n, word in enumerate(sorted(set().union(*words)))}
    rows = np.zeros((len(words), len(column)), np.float32)
    for row, of_caption in zip(rows, words, strict=True):
        row[[column[word] for word in of_caption]] = 1
    rows *= np.log(len(rows) / rows.sum(axis=0))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def cell(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):.3f} ±{np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def search_table(data: Captioned, sizes: list[int], count: int) -> None:
    """Print AUROC of every method by the size of the index, and what the calibration makes of it."""
    fit_sizes = [size for size in sizes if size <= len(data.fitted)]
    alike = alike_by_text(data.texts, data.owners, len(data.images))
    fits = [data.draws(size, BATCHES * count, 1, True) for size in fit_sizes]
    weights = fit_weights(
        [data.draws(size, BATCHES * count, 1, True, alike) for size in fit_sizes], data.mean, data.std
    )
    measured = {size: [data.draws(size, count, 2 + b, False) for b in range(BATCHES)] for size in sizes}
    words_alike = alike_by_text(word_vectors(data.captions), data.owners, len(data.images))
    apart = {
        size: [data.draws(size, count, 2 + b, False, words_alike) for b in range(BATCHES)] for size in sizes
    }
    print(f"{'photos in the index':28}" + "".join(f"{size:>15,}" for size in sizes))
    for name, keys in METHODS.items():
        slopes = np.ones(1)
        if len(keys) > 1:
            sides = [
                np.concatenate([columns(data.known(draw, present), keys) for draw in fits])
                for present in (True, False)
            ]
            targets = np.repeat([1.0, 0.0], [len(side) for side in sides])
            slopes, _ = logistic_regression(np.concatenate(sides), targets)
        values = {
            size: [
                auroc(*(columns(data.known(draw, present), keys) @ slopes for present in (True, False)))
                for draw in draws
            ]
            for size, draws in measured.items()
        }
        print(f"{name:28}" + "".join(f"{cell(values[size]):>15}" for size in sizes))

    def chances(draw: MatchDraws, present: bool) -> np.ndarray:
        known = data.known(draw, present)
        return weights.probability(match_features(known["cosine"], known["mean"], known["std"], draw.size))

    def show(name: str, figure: Callable[[MatchDraws], float], draws: dict[int, list[MatchDraws]]) -> None:
        print(f"{name:28}" + "".join(f"{cell([figure(d) for d in draws[size]]):>15}" for size in sizes))

    def found(draw: MatchDraws) -> float:
        return float((data.owners[draw.present_query] == draw.present_photos[:, 0]).mean())

    def calibrated(draw: MatchDraws) -> float:
        return auroc(chances(draw, True), chances(draw, False))

    show("calibration (as kept)", calibrated, measured)
    show("  lookalikes out", calibrated, apart)
    show("  kept", lambda draw: float((chances(draw, True) >= 0.5).mean()), measured)
    show("  flagged", lambda draw: float((chances(draw, False) < 0.5).mean()), measured)
    show("  flagged, lookalikes out", lambda draw: float((chances(draw, False) < 0.5).mean()), apart)
    show("R@1", found, measured)
    show("ceiling", lambda draw: 1 - (1 - found(draw)) ** 2 / 2, measured)


def columns(known: dict[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray:
    """``(n, len(keys))`` of what is known."""
    return np.stack([known[key] for key in keys], axis=1)


def second_look(model: MMGEM, data: Captioned, sizes: list[int], queries: int) -> None:
    """Print AUROC with log P(text | first hit) and without, one batch of draws, fitted on the other half."""
    mean_photo = data.images[data.fitted].mean(axis=0, keepdims=True)
    mean_photo /= np.linalg.norm(mean_photo)

    def rows(draw: MatchDraws, present: bool) -> np.ndarray:
        photos = (draw.present_photos if present else draw.absent_photos)[:, 0]
        ids = model.tokenizer.encode_all([data.captions[query] for query in draw.present_query])
        log_p, prior = (
            log_probs(model.network, vectors, ids, model.tokenizer.end, RerankOptions().embedding_norm)
            for vectors in (data.images[photos], np.repeat(mean_photo, len(ids), axis=0))
        )
        known = data.known(draw, present)
        return np.column_stack([columns(known, ("cosine", "mean", "std", "log size")), log_p - prior])

    sides: dict[tuple[int, bool], list[np.ndarray]] = {}
    for size in (size for size in sizes if size <= len(data.fitted)):
        for fit in (True, False):
            draw = data.draws(size, queries, 1, fit)
            sides[size, fit] = [rows(draw, present) for present in (True, False)]
    for name, kept in (("without log P", slice(4)), ("log P alone", slice(4, 5)), ("with log P", slice(5))):
        fitted = [side for (_, fit), both in sides.items() if fit for side in both]
        targets = np.concatenate(
            [np.repeat([1.0, 0.0], len(both[0])) for (_, fit), both in sides.items() if fit]
        )
        slopes, _ = logistic_regression(np.concatenate(fitted)[:, kept], targets)
        values = [
            auroc(*(side[:, kept] @ slopes for side in both)) for (_, fit), both in sides.items() if not fit
        ]
        print(f"{name:28}" + "".join(f"{value:>15.3f}" for value in values))


def class_table(model: MMGEM, paths: list[Path], split: str, count: int, rank: int) -> None:
    """Print AUROC of photos whose class is among those named against those whose is not."""
    for path in paths:
        records = [record for record in load_dataset(path, split=split) if record.label]
        names = sorted({record.label for record in records if record.label})
        images = model.embed_images([record.image for record in records])
        classes = class_embeddings(model.embed_texts, names)
        labels = np.array([names.index(record.label or "") for record in records])
        order = np.random.default_rng(0).permutation(len(images))
        fitted, measured = np.array_split(order, 2)
        mean, std = Background.of(images[fitted], rank).cosines(classes)
        counts = [n for n in CLASS_COUNTS if n < len(names)]

        def draw(size: int, seed: int, half: np.ndarray) -> MatchDraws:
            return draw_classes(images[half], classes, labels[half], size, count, seed)  # noqa: B023

        weights = fit_weights([draw(n, 1, fitted) for n in counts], mean, std)

        def scores(draw: MatchDraws, calibrated: bool) -> list[np.ndarray]:
            sides = ((draw.present, draw.present_query), (draw.absent, draw.absent_query))
            if not calibrated:
                return [cosines for cosines, _ in sides]
            return [
                weights.probability(match_features(cosines, mean[rows], std[rows], draw.size))  # noqa: B023
                for cosines, rows in sides
            ]

        top1 = 100 * ((images @ classes.T).argmax(axis=1) == labels).mean()
        print(f"\n{path.parent.name}: {len(images)} photos, {len(names)} classes, top-1 {top1:.1f}")
        print(f"{'classes named':28}" + "".join(f"{n:>15}" for n in counts))
        for name, calibrated in (("cosine", False), ("calibration", True)):
            values = [
                [auroc(*scores(draw(n, 2 + b, measured), calibrated)) for b in range(BATCHES)] for n in counts
            ]
            print(f"{name:28}" + "".join(f"{cell(v):>15}" for v in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--labels", type=Path, nargs="*", default=[])
    parser.add_argument("--second-look", type=int, default=0, metavar="N")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    model = MMGEM.from_pretrained(options.model)
    if options.keep is not None and options.keep.exists():
        vectors = dict(np.load(options.keep, allow_pickle=False))
    else:
        vectors = embed(options.data, options.split, model, 100 if options.quick else None)
        if options.keep is not None:
            np.savez(options.keep, **vectors)  # type: ignore[arg-type]
    rank = CalibrationOptions().rank
    data = Captioned(vectors, rank)
    sizes = [size for size in SIZES if size <= len(data.images)] or [len(data.images)]
    count = 100 if options.quick else 1000
    print(f"{len(data.images):,} photos, {len(data.texts):,} texts; AUROC and its standard error")
    search_table(data, sizes, count)
    if options.second_look:
        print(f"\nA second look, {options.second_look} queries a half")
        second_look(model, data, sizes, options.second_look)
    class_table(model, options.labels, options.split, count, rank)


if __name__ == "__main__":
    main()
