"""Does the filter find wrong captions: 30% of Flickr8k's train captions swapped between photos.

OMP_NUM_THREADS=1 python benchmarks/clean_pairs.py flickr8k/captions.jsonl --work clean/ --photos 500

Prints precision and recall of the filter (a caption is wrong if it was swapped), also of keeping the best
70%, and how well each score alone tells wrong from right (area under the ROC curve). ``--train RECIPE`` then
trains it for ``--steps`` on the clean, the noisy, the filtered and the recaptioned captions and measures each
on dev, as ``mmgem compare`` does. What is made is kept in ``--work``; killed, it goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmgem.checkpoints.resolve import fingerprint, resolve
from mmgem.clean.filter import filter_pairs
from mmgem.clean.judge import Judge, make_judge
from mmgem.clean.pairs import PairData
from mmgem.clean.recaption import recaption_pairs
from mmgem.clean.scores import ScoredPairs, ScoreFile
from mmgem.compare.run import compare
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, write_jsonl

Wrong = list[list[bool]]


def swapped(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], Wrong]:
    """``records`` with so many of their captions exchanged between photos, and which were, of each photo.

    Those that are taken go round among themselves; one that comes back to its own photo is not wrong.
    """
    places = [(n, i) for n, record in enumerate(records) for i in range(len(record.captions))]
    taken = random.Random(seed).sample(places, round(share * len(places)))
    captions = [list(record.captions) for record in records]
    wrong = [[False] * len(record.captions) for record in records]
    for (n, i), (m, j) in zip(taken, taken[1:] + taken[:1], strict=True):
        captions[n][i] = records[m].captions[j]
        wrong[n][i] = n != m
    return [replace_captions(r, c) for r, c in zip(records, captions, strict=True)], wrong


def replace_captions(record: Record, captions: Sequence[str]) -> Record:
    """``record`` with other captions."""
    return Record(record.media, tuple(captions), record.split, record.label, record.regions, record.meta)


def make(options: argparse.Namespace) -> tuple[Path, Path, Wrong]:
    """The clean and the noisy data, and which captions are wrong."""
    records = load_dataset(options.data, split=options.split)
    random.Random(options.seed).shuffle(records)
    chosen = [replace_captions(r, r.captions[: options.captions]) for r in records[: options.photos]]
    noisy, wrong = swapped(chosen, options.share, options.seed)
    files = options.work / "clean.jsonl", options.work / "noisy.jsonl"
    for file, made in zip(files, (chosen, noisy), strict=True):
        write_jsonl(file, made)
    return *files, wrong


def auc(values: np.ndarray, wrong: np.ndarray) -> float:
    """The probability that a right pair has a higher value than a wrong one."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values)] = np.arange(1, len(values) + 1)
    right = int((~wrong).sum())
    return float((ranks[~wrong].sum() - right * (right + 1) / 2) / (right * wrong.sum()))


def show(name: str, pairs: ScoredPairs, judge: Judge, wrong: np.ndarray) -> None:
    """Print precision and recall of ``judge``, with the standard error of each."""
    goes = ~judge.keeps(pairs.scores)
    hits = int((goes & wrong).sum())
    figures = []
    for what, of in (("precision", int(goes.sum())), ("recall", int(wrong.sum()))):
        share = hits / max(1, of)
        figures.append(f"{what} {share:.3f} +- {np.sqrt(share * (1 - share) / max(1, of)):.3f}")
    lost = int((goes & ~wrong).sum()) / int((~wrong).sum())
    print(
        f"{name}: {goes.sum()} go, {wrong.sum()} are wrong; {', '.join(figures)}; right ones lost {lost:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="train", help="a model knows the captions it has learned")
    parser.add_argument("--photos", type=int, help="of the split (default: all)")
    parser.add_argument("--captions", type=int, help="of each photo (default: all)")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    clean, noisy, swaps = make(options)
    filtered, recaptioned = options.work / "filtered.jsonl", options.work / "recaptioned.jsonl"
    report = filter_pairs(noisy, options.model, filtered)
    with ScoreFile(
        options.work / ".filtered.jsonl.scores", PairData(noisy), fingerprint(resolve(options.model))
    ) as file:
        pairs = file.results()
    wrong = np.array([of for photo in swaps for of in photo])
    share = report.wrong_share
    print(f"{report.photos} photos, {report.pairs} captions; the mixture takes {share:.3f} for wrong")
    show("mixture", pairs, make_judge(pairs), wrong)
    show("best 70%", pairs, make_judge(pairs, keep=1 - options.share), wrong)
    for name in ("cosine", "log_prob", "gain"):
        print(f"AUC of {name}: {auc(getattr(pairs.scores, name), wrong):.4f}")
    print(f"AUC of cosine and gain: {auc(make_judge(pairs, keep=0.5).values(pairs.scores), wrong):.4f}")
    if options.train is None:
        return
    scores = options.work / ".recaptioned.jsonl.scores"
    if not scores.exists():
        scores.write_bytes((options.work / ".filtered.jsonl.scores").read_bytes())
    recaptioned_report = recaption_pairs(noisy, options.model, recaptioned)
    print(f"recaptioned: {recaptioned_report.added} captions of the model's")
    dev = options.work / "dev.jsonl"
    write_jsonl(dev, load_dataset(options.data, split="dev"))
    texts = [json.dumps(str(path.absolute())) for path in (clean, noisy, filtered, recaptioned)]
    overrides = [
        f"data.train={texts[0]}",
        f"data.dev={json.dumps(str(dev.absolute()))}",
        f"train.steps={options.steps}",
    ]
    vary = [f"data.train={','.join(texts[1:])}"]
    result = compare(
        [options.train], options.work / "runs", None, overrides, vary=vary, seeds=options.seeds, say=print
    )
    print(result.table)


if __name__ == "__main__":
    main()
