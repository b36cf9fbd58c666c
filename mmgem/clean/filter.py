"""The captions that fit their photos, as a model sees it, and a list of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.api import MMGEM
from mmgem.checkpoints.resolve import fingerprint, resolve
from mmgem.clean.judge import Judge, make_judge
from mmgem.clean.output import CleanOutput, name_of, with_captions
from mmgem.clean.pairs import PairData
from mmgem.clean.scores import ScoredPairs, ScoreFile
from mmgem.data.records import Record


@dataclass
class CleanReport:
    """What was written. ``pairs``: captions there were, ``kept`` of them stayed; ``added``: captions of the
    model's; ``records``: written, of ``photos``; ``wrong_share``: what the mixture takes for wrong, None
    without one; ``rule``: by what pairs were kept; ``dropped``: what went, also listed in ``dropped_file``;
    ``problems``: broken samples of shards; ``resumed``: photos that had scores already."""

    pairs: int
    kept: int
    photos: int
    records: int
    rule: str
    dropped_file: Path
    added: int = 0
    wrong_share: float | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resumed: int = 0


def filter_pairs(
    source: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    keep: float | None = None,
    min_cosine: float | None = None,
    load: Callable[[], MMGEM] | None = None,
) -> CleanReport:
    """Write to ``out`` the records of ``source`` (any data; of shards, shards) with those captions that fit
    by :func:`mmgem.clean.judge.make_judge`, and what went, with the reason.

    Captions of whole photos are judged; regions, labels and translations stay. The scores stay beside
    ``out``: a killed run goes on, and another threshold costs nothing. ``load``: of the model. Raises
    ``UsageError`` and ``DataError`` as it does, and for data and places that cannot be.
    """
    data = PairData(source, split)
    output = CleanOutput(data, Path(out))
    with ScoreFile(output.work_file("scores"), data, fingerprint(resolve(model))) as scores:
        scores.run(load or (lambda: MMGEM.from_pretrained(model)))
        pairs, resumed = scores.results(), scores.resumed
        judge = make_judge(pairs, keep, min_cosine)
        return write_judged(output, pairs, judge, resumed)


def write_judged(
    output: CleanOutput,
    pairs: ScoredPairs,
    judge: Judge,
    resumed: int,
    added: Callable[[int], str | None] = lambda number: None,
) -> CleanReport:
    """Write what ``judge`` keeps of ``pairs``. ``added``: a caption more for a photo, by its number, which
    takes the place of the first that goes, or comes last."""
    values = judge.values(pairs.scores)
    keeps = values >= judge.least
    report = CleanReport(
        len(values),
        int(keeps.sum()),
        len(pairs.starts),
        0,
        f"{judge.what} >= {judge.least:.4g}",
        output.dropped_file,
        wrong_share=None if judge.mixture is None else judge.mixture.share,
        problems=output.data.problems,
        resumed=resumed,
    )
    folder = output.data.path if output.data.path.is_dir() else output.data.path.parent

    def drop(record: Record, caption: str, reason: str, at: int | None = None) -> None:
        row: dict[str, Any] = {"image": name_of(record, folder), "caption": caption, "reason": reason}
        if at is not None:
            row |= {"cosine": _number(pairs.scores.cosine[at]), "gain": _number(pairs.scores.gain[at])}
        report.dropped.append(row)

    def change(number: int, record: Record) -> Record | None:
        if number in pairs.errors:
            drop(record, "", pairs.errors[number])
            return None
        first, stop = int(pairs.starts[number]), int(pairs.stops[number])
        captions: list[str] = []
        more = added(number)
        for at, caption in zip(range(first, stop), record.captions, strict=True):
            if keeps[at]:
                captions.append(caption)
                continue
            drop(record, caption, judge.reason(float(values[at])), at)
            if more is not None:
                captions.append(more)
                report.added, more = report.added + 1, None
        if more is not None and more not in captions:
            captions.append(more)
            report.added += 1
        return with_captions(record, captions)

    report.records = output.write(change)
    output.write_dropped(report.dropped)
    return report


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
