"""Do names find more with words around them? Photos of a kind, searched for by its name alone and in phrases.

    python benchmarks/name_search.py world/*/captions.jsonl [--among flickr8k/captions.jsonl] [--model tiny]
    python benchmarks/name_search.py world/*/captions.jsonl --language de     # those of benchmarks/names.tsv

Every label of the photos of a split is searched for among all of them, and among those of `--among`, but for
photos whose captions have its last word. mAP over labels and how often the first hit has the label, in
percent; the difference to the name alone with its standard error over labels. Then how often the model's
calibration calls the best of so many labelled photos a match, with a photo of the name among them and
without. Then the captions of `--among`
by their length, R@10: whether a phrase harms what is a sentence already. `--language`: labels that
`names.tsv` has, by its words of that language, in the English phrases.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmgem.api import MMGEM
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record
from mmgem.errors import UsageError
from mmgem.evaluate.classify import PROMPTS, fill_prompt
from mmgem.evaluate.match import draw_names
from mmgem.evaluate.standard_error import standard_error
from mmgem.inference.calibration import MATCH_THRESHOLD

PHRASES = {
    "X": ("{}",),
    "a X": ("a {}",),
    "a picture of X": ("a picture of {}",),
    "a photo of X": ("a photo of {}",),
    "X and a picture of X, mean": ("{}", "a picture of {}"),
    f"the {len(PROMPTS)} prompts of classes, mean": PROMPTS,
}
LENGTHS = ((1, 5), (6, 6), (7, 8), (9, 12), (13, 99))


def names_in(language: str) -> dict[str, str]:
    """Words of a language for English labels."""
    with Path(__file__).with_name("names.tsv").open(encoding="utf-8") as file:
        return {row["en"]: row[language] for row in csv.DictReader(file, delimiter="\t")}


def labelled(path: Path, split: str) -> list[Record]:
    """The records of a split that have a label; none, said, of data without that split."""
    try:
        return [record for record in load_dataset(path, split=split) if record.label]
    except UsageError as error:
        print(f"left out: {error}")
        return []


def embedded(model: MMGEM, texts: list[str], templates: tuple[str, ...]) -> np.ndarray:
    """Unit rows ``(n, D)``: the mean of each text in all templates."""
    rows = model.embed_texts([fill_prompt(template, text) for text in texts for template in templates])
    rows = rows.reshape(len(texts), len(templates), -1).mean(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_name(records: list[Record], scores: np.ndarray, labels: list[str]) -> np.ndarray:
    """Average precision, and whether the first is right, ``(labels, 2)``, of scores ``(labels, photos)``."""
    found = []
    own = np.array([record.label or "" for record in records])
    captions = [" ".join(record.captions).lower() for record in records]
    for label, row in zip(labels, scores, strict=True):
        word = re.compile(rf"\b{re.escape(label.lower().split()[-1])}")
        kept = np.array([not word.search(caption) for caption in captions]) | (own == label)
        right = (own == label)[kept][np.argsort(-row[kept], kind="stable")]
        precisions = np.cumsum(right) / np.arange(1, len(right) + 1)
        found.append((100 * precisions[right].mean(), 100 * right[0]))
    return np.array(found)


def by_match(model: MMGEM, images: np.ndarray, names: list[str], owners: np.ndarray) -> None:
    """Print how often the model's calibration calls a hit a match, where a photo of the name is there and
    where none is. ``images`` ``(n, D)``; ``owners``: the name of each photo, -1 of those left out."""
    queries, labels = model.embed_queries(names), owners[owners >= 0]
    for size in (1, 10, 30, 100, 300):
        draws = draw_names(images, queries, labels, size, 2000)
        sides = (draws.present, draws.present_query), (draws.absent, draws.absent_query)
        yes = []
        for cosines, rows in sides:
            found = model.calibration.probability(cosines, queries[rows], size) if model.calibration else None
            yes.append(100 * float(np.mean(np.asarray(found) >= MATCH_THRESHOLD)))
        print(
            f"{size:4d} photos: a match in {yes[0]:.0f}% with a photo of the name, in {yes[1]:.0f}% without"
        )


def by_caption(rank_of: Callable[[str], np.ndarray], lengths: np.ndarray) -> None:
    """Print R@10 of captions by length, alone and as a search reads a short one."""
    alone, phrase = (100.0 * (rank_of(template) <= 10) for template in ("{}", "a picture of {}"))
    for low, high in LENGTHS:
        chosen = (lengths >= low) & (lengths <= high)
        if chosen.any():
            gain = phrase[chosen] - alone[chosen]
            words = f"{low}-{high} words" if high > low else f"{low} words"
            print(
                f"{words:12s} {chosen.sum():6d} captions: R@10 {alone[chosen].mean():.1f}, behind "
                f'"a picture of" {gain.mean():+.1f} +- {standard_error(gain):.1f}'
            )


def main() -> None:
    """Embed, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--among", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--language")
    args = parser.parse_args()
    model = MMGEM.from_pretrained(args.model)
    records = [record for path in args.data for record in labelled(path, args.split)]
    captioned = load_dataset(args.among, split=args.split) if args.among is not None else []
    images = model.embed_images([record.source for record in (*records, *captioned)])
    labels = sorted({record.label for record in records if record.label})
    words = names_in(args.language) if args.language else {label: label for label in labels}
    labels = [label for label in labels if label in words]
    print(f"{len(labels)} names, {len(images)} photos")
    alone = None
    for name, templates in PHRASES.items():
        queries = embedded(model, [words[label] for label in labels], templates)
        scores = by_name([*records, *captioned], queries @ images.T, labels)
        alone = scores if alone is None else alone
        (precision, first), (gain, more) = scores.mean(axis=0), (scores - alone).mean(axis=0)
        error = standard_error((scores - alone)[:, 0])
        print(f"{name:34s} mAP {precision:.1f} ({gain:+.1f} +- {error:.1f}), first {first:.1f} ({more:+.1f})")
    if model.calibration is not None and model.calibration.search is not None:
        owners = np.array([labels.index(r.label) if r.label in labels else -1 for r in records])
        by_match(model, images[: len(records)][owners >= 0], [words[label] for label in labels], owners)
    if captioned:
        texts = [caption for record in captioned for caption in record.captions]
        owners = np.repeat(np.arange(len(captioned)), [len(record.captions) for record in captioned])

        def rank_of(template: str) -> np.ndarray:
            cosines = embedded(model, texts, (template,)) @ images[len(records) :].T
            own = cosines[np.arange(len(texts)), owners]
            return np.count_nonzero(cosines >= own[:, None], axis=1)

        by_caption(rank_of, np.array([len(text.split()) for text in texts]))


if __name__ == "__main__":
    main()
