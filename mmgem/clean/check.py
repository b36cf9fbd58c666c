"""What is wrong with a data set, told without a model: copies, captions that say nothing, broken files.

Beside what a reader holds (records, or the index of shards) a photo takes about a kilobyte of memory (its
coarse picture and its digest), a caption 8 bytes; all else lies on the disk (:mod:`mmgem.clean.scan`).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmgem.clean.pairs import PairData
from mmgem.clean.scan import Scan, ScannedPhoto
from mmgem.data.languages import guess_language, is_other_language, usual_language
from mmgem.data.near_copies import SIDE, near_pairs
from mmgem.data.scripts import text_units
from mmgem.utils.disjoint_sets import DisjointSets
from mmgem.utils.files import atomic_file, cache_home
from mmgem.utils.progress import track

SHORT = 3
"""Words (characters of scripts without spaces) below which a caption is too short."""
REPEATED = 10
"""Photos under which the same caption is one too many."""
KINDS = {
    "unreadable": "photos cannot be read",
    "same": "groups of photos with the same bytes",
    "near": "groups of near copies",
    "empty": "photos without a caption, label or region",
    "short": f"captions of fewer than {SHORT} words",
    "repeated": f"captions under {REPEATED} photos or more",
    "language": "captions in another language than most",
}
_EXAMPLES = 12
_NAMED = 8  # photos of one finding in its examples


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, of ``kind``: with the ``photos``, by name; ``caption``, and a ``reason`` where there
    is something to say. ``count``: of the photos, of a repeated caption more than are named."""

    kind: str
    photos: list[str]
    caption: str = ""
    reason: str = ""
    count: int = 1


@dataclass
class CheckReport:
    """What was found. ``counts``: findings of each of :data:`KINDS`; ``examples``: the first of each, and
    ``pictures`` of their photos by name, ``(h, w, 3)`` uint8; ``across_splits``: groups of copies with photos
    of several splits; ``language``: of most captions, None if of none; ``problems``: what of shards is
    broken, a line each; ``resumed``: photos an earlier run had looked at."""

    photos: int = 0
    captions: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    across_splits: int = 0
    language: str | None = None
    problems: list[str] = field(default_factory=list)
    resumed: int = 0
    examples: dict[str, list[Finding]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def check_pairs(data: PairData, out: Path | None = None) -> CheckReport:
    """Look at every photo and caption of ``data``. ``out``: a folder that gets ``findings.jsonl``, all that
    was found; None: what a killed run goes on with is kept in the cache.

    The same data give the same report, however often a run was killed. Raises as :class:`Scan`.
    """
    folder = out or cache_home() / "check" / data.digest
    with Scan(data, folder) as scan:
        scan.run()
        report = CheckReport(resumed=scan.resumed, problems=data.problems)
        if out is None:
            _collect(scan, report, None)
        else:
            with atomic_file(out / "findings.jsonl") as file:
                _collect(scan, report, file)
        scan.remove()
    if out is None:
        folder.rmdir()
    return report


def _collect(scan: Scan, report: CheckReport, file: BinaryIO | None) -> None:
    findings = _findings(scan, report)
    shown: dict[str, None] = {}
    for finding in findings:
        if file is not None:
            file.write(json.dumps(asdict(finding)).encode() + b"\n")
        report.counts[finding.kind] += 1
        if len(report.examples[finding.kind]) < _EXAMPLES:
            named = finding.photos[:_NAMED]
            report.examples[finding.kind].append(
                Finding(finding.kind, named, finding.caption, finding.reason, finding.count)
            )
            shown |= dict.fromkeys(named)
    pictures = scan.pictures()
    for photo in scan.photos():
        if photo.name in shown and not photo.error:
            report.pictures[photo.name] = _in_shape(pictures[photo.first], photo.shape)


def _findings(scan: Scan, report: CheckReport) -> Iterator[Finding]:
    """All findings; counts what is counted on the way."""
    hashes = array("Q")
    languages: Counter[str] = Counter()
    for photo in scan.photos():
        report.photos += 1
        report.captions += len(photo.captions)
        hashes.extend({_hash(caption) for caption in photo.captions})
        languages.update(filter(None, map(guess_language, photo.captions)))
    report.language = usual_language(languages)
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    repeated = dict(zip(values.tolist(), counts.tolist(), strict=True))
    repeated = {value: count for value, count in repeated.items() if count >= REPEATED}
    del hashes, values, counts
    under: dict[int, list[str]] = defaultdict(list)
    texts: dict[int, str] = {}
    for photo in scan.photos():
        if photo.error:
            yield Finding("unreadable", [photo.name], reason=photo.error)
        if not photo.captions and not photo.has_more:
            yield Finding("empty", [photo.name])
        for caption in photo.captions:
            if len(text_units(caption)) < SHORT:
                yield Finding("short", [photo.name], caption)
            if report.language and (other := is_other_language(caption, report.language)):
                yield Finding("language", [photo.name], caption, other)
        for value in {_hash(caption): caption for caption in photo.captions}.items():
            if value[0] in repeated:
                texts.setdefault(*value)
                if len(under[value[0]]) < _NAMED:
                    under[value[0]].append(photo.name)
    for number in sorted(texts, key=lambda n: (-repeated[n], texts[n])):
        yield Finding("repeated", under[number], texts[number], count=repeated[number])
    yield from _copies(scan, report)


def _copies(scan: Scan, report: CheckReport) -> Iterator[Finding]:
    """Groups of photos with the same bytes, then groups of near copies (with their exact ones)."""
    firsts = np.array([photo.first for photo in scan.photos()], np.int64)
    sets = DisjointSets(len(firsts), firsts.tolist())
    progress = partial(track, label="Comparing", unit=" blocks")
    for a, b in near_pairs(scan.pictures(), progress):
        sets.join(a, b)
    roots = np.array([sets.root(number) for number in firsts.tolist()], np.int64)
    is_many = np.bincount(roots, minlength=len(roots)) > 1
    groups: dict[int, list[ScannedPhoto]] = defaultdict(list)
    for photo in scan.photos():
        if is_many[roots[photo.number]]:
            groups[int(roots[photo.number])].append(photo)
    same, near = [], []
    for group in groups.values():
        by_bytes: dict[int, list[ScannedPhoto]] = defaultdict(list)
        for photo in group:
            by_bytes[photo.first].append(photo)
        same += [photos for photos in by_bytes.values() if len({photo.name for photo in photos}) > 1]
        near += [group] if len(by_bytes) > 1 else []
        names = {photo.name for photo in group}
        report.across_splits += len(names) > 1 and len({photo.split for photo in group}) > 1
    for kind, found in (("same", same), ("near", near)):
        for photos in sorted(found, key=lambda photos: (-len(photos), photos[0].number)):
            yield Finding(kind, list(dict.fromkeys(p.name for p in photos)), reason=_splits(photos))


def _splits(photos: Sequence[ScannedPhoto]) -> str:
    """The splits of copies, if they are of several."""
    splits = sorted({photo.split or "" for photo in photos})
    return f"in the splits {', '.join(splits)}" if len(splits) > 1 else ""


def _hash(caption: str) -> int:
    """Of a caption, whatever its case and the dot at its end: 8 bytes."""
    text = " ".join(caption.casefold().split()).rstrip(" .")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _in_shape(picture: np.ndarray, shape: float) -> np.ndarray:
    """A small picture in the shape (width over height) that its photo has."""
    from PIL import Image

    width, height = (SIDE, max(1, round(SIDE / shape))) if shape > 1 else (max(1, round(SIDE * shape)), SIDE)
    return np.asarray(Image.fromarray(np.asarray(picture)).resize((width, height), Image.Resampling.BICUBIC))
