"""CapFilt (BLIP, arXiv 2201.12086): the model's captions where the given ones do not fit, if its own do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmgem.api import MMGEM
from mmgem.checkpoints.resolve import fingerprint, resolve
from mmgem.clean.filter import CleanReport, write_judged
from mmgem.clean.judge import Judge, make_judge
from mmgem.clean.output import CleanOutput
from mmgem.clean.pairs import Pair, PairData
from mmgem.clean.scores import BLOCK, PairScorer, ScoredPairs, ScoreFile, Scores, read_block
from mmgem.errors import CheckpointError, UsageError
from mmgem.inference.captioning import describe
from mmgem.utils.progress import Meter
from mmgem.utils.work_file import WorkFile

_VERSION = 1


def recaption_pairs(
    source: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    keep_both: bool = False,
    keep: float | None = None,
    min_cosine: float | None = None,
    load: Callable[[], MMGEM] | None = None,
) -> CleanReport:
    """As :func:`mmgem.clean.filter.filter_pairs`, but a photo that loses a caption, or has none, gets the
    model's own if that is kept by the same rule; with ``keep_both`` every photo does.

    Raises as that does, ``UsageError`` for a model that writes no captions.
    """
    data = PairData(source, split)
    output = CleanOutput(data, Path(out))
    name, loader = fingerprint(resolve(model)), load or (lambda: MMGEM.from_pretrained(model))
    loaded: list[MMGEM] = []

    def load_once() -> MMGEM:
        if not loaded:
            loaded.append(loader())
            if loaded[0].fingerprint != name:
                raise CheckpointError(f"{model}: has changed")
            if not loaded[0].network.captions:
                raise UsageError(f"{model}: writes no captions")
        return loaded[0]

    with ScoreFile(output.work_file("scores"), data, name) as scores:
        scores.run(load_once)
        pairs, resumed = scores.results(), scores.resumed
        judge = make_judge(pairs, keep, min_cosine)
        wanted = _wanted(pairs, judge, keep_both)
        head = {"version": _VERSION, "data": data.digest, "model": name, "wanted": _digest(wanted)}
        with WorkFile(output.work_file("captions"), head) as file:
            _write_captions(file, data, wanted, load_once)
            own = _accepted(file, judge)
        return write_judged(output, pairs, judge, resumed, own.get)


def _wanted(pairs: ScoredPairs, judge: Judge, every: bool) -> list[bool]:
    """The photos that the model is to describe: all that can be read, or those with too few captions."""
    keeps = judge.keeps(pairs.scores)
    return [
        n not in pairs.errors and (every or start == stop or not keeps[start:stop].all())
        for n, (start, stop) in enumerate(zip(pairs.starts.tolist(), pairs.stops.tolist(), strict=True))
    ]


def _digest(wanted: Sequence[bool]) -> str:
    return hashlib.blake2b(bytes(wanted), digest_size=8).hexdigest()


def _write_captions(
    file: WorkFile, data: PairData, wanted: Sequence[bool], load: Callable[[], MMGEM]
) -> None:
    """Describe the photos of ``wanted`` that ``file`` lacks."""
    if file.count == len(data):
        return
    file.keep(file.count // BLOCK * BLOCK)
    model: MMGEM | None = None
    pairs = data.pairs(file.count)
    with Meter("Captioning", len(data), file.count, " photos") as meter:
        while block := list(islice(pairs, BLOCK)):
            rows: list[dict[str, Any]] = [{"caption": None, "scores": None} for _ in block]
            if any(wanted[pair.number] for pair in block):
                model = model or load()
                _describe_block(model, block, wanted, rows)
            file.append(rows)
            meter.advance(len(block), len(block), {})


def _describe_block(
    model: MMGEM, block: Sequence[Pair], wanted: Sequence[bool], rows: list[dict[str, Any]]
) -> None:
    scorer = PairScorer(model)
    visual, _, mean = read_block(scorer, block)
    chosen = [n for n, pair in enumerate(block) if wanted[pair.number] and visual[n] is not None]
    if not chosen:
        return
    shown = torch.stack([v for n in chosen if (v := visual[n]) is not None])
    captions = [
        text for part in shown.split(model.batch) for text in describe(model.network, model.tokenizer, part)
    ]
    said = [at for at, text in enumerate(captions) if text.strip()]
    scores = scorer.score(shown[said], mean, [captions[at] for at in said]).rows()
    for at, row in zip(said, scores, strict=True):
        rows[chosen[at]] = {"caption": captions[at], "scores": row}


def _accepted(file: WorkFile, judge: Judge) -> dict[int, str]:
    """The model's captions that ``judge`` keeps, by the number of their photo."""
    written = {n: row for n, row in enumerate(file.rows()) if row["caption"] is not None}
    if not written:
        return {}
    numbers = [x for row in written.values() for x in row["scores"]]
    keeps = judge.keeps(Scores.of_row(numbers))
    return {n: row["caption"] for (n, row), kept in zip(written.items(), keeps, strict=True) if kept}
