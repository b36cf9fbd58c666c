"""How well captions fit their photos, as a model sees it: for each pair its cosine, log P(caption | photo) a
token, and the same of the mean of 32 photos, what the caption is worth of any.

Their difference is the gain: how much likelier the photo makes the caption. The first caption of each photo
is scored with the next photo too: what wrong pairs of this very data look like.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmgem.api import MMGEM
from mmgem.clean.pairs import Pair, PairData
from mmgem.data.images import attempt
from mmgem.errors import CheckpointError, DataError, ImageError, UsageError
from mmgem.inference.images import encode_images
from mmgem.inference.texts import embed_texts, unit_rows
from mmgem.search.rerank import photo_scores
from mmgem.utils.progress import Meter
from mmgem.utils.work_file import WorkFile

_VERSION = 1
BLOCK = 32  # photos whose mean is the photo of none; a kill loses no more


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n pairs: ``cosine`` ``(n,)``; ``log_prob`` and ``prior`` ``(n,)``: log P a token given the photo and
    given the mean of photos, nats. All float32; NaN where the model cannot say."""

    cosine: np.ndarray
    log_prob: np.ndarray
    prior: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """``(n,)``: nats a token by which the photo makes the caption likelier."""
        return self.log_prob - self.prior

    def columns(self) -> np.ndarray:
        """Cosine and gain ``(n, 2)``."""
        return np.stack([self.cosine, self.gain], axis=1)

    def rows(self) -> list[list[float | None]]:
        """As JSON: a list a pair."""
        table = np.stack([self.cosine, self.log_prob, self.prior], axis=1)
        return [[None if np.isnan(x) else round(float(x), 5) for x in row] for row in table]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """Of the three of each pair, in turn."""
        return cls(*np.array(numbers, np.float32).reshape(-1, 3).T)

    @classmethod
    def of_row(cls, row: Sequence[float | None]) -> Self:
        """Of one of :meth:`rows`."""
        return cls.of(_numbers(row))

    def part(self, start: int, stop: int) -> Scores:
        """Those of some pairs."""
        return Scores(self.cosine[start:stop], self.log_prob[start:stop], self.prior[start:stop])


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """``scores`` of all pairs; those of photo n are ``starts[n]`` to ``stops[n]``; ``wrong``: of pairs put
    together at random; ``errors``: why photos cannot be read, by number."""

    starts: np.ndarray
    stops: np.ndarray
    scores: Scores
    wrong: Scores
    errors: dict[int, str]


class PairScorer:
    """Scores pairs by ``model``. Raises ``UsageError`` for one that neither embeds nor captions."""

    def __init__(self, model: MMGEM):
        self.network, self.tokenizer = model.network, model.tokenizer
        if not (self.network.embeds or self.network.captions):
            raise UsageError("to score pairs a model has to embed or to caption")

    def encode(self, photos: list[bytes]) -> list[Tensor | ImageError]:
        """What the model sees of each photo, or why it cannot be read."""

        def visual(images: list[bytes]) -> Sequence[Tensor]:
            with torch.inference_mode():
                return list(encode_images(self.network, self.tokenizer.prep, images))

        return attempt(visual, photos) if photos else []

    @torch.inference_mode()
    def score(self, visual: Tensor, mean: Tensor, texts: Sequence[str]) -> Scores:
        """Scores of ``visual`` ``(n, ...)`` and a text each; ``mean`` ``(...)``: the mean of photos."""
        count = len(texts)
        cosine, log_prob, prior = (np.full(count, np.nan, np.float32) for _ in range(3))
        if count and self.network.embeds:
            cosine = (unit_rows(self.network.image_embeddings(visual)) * self._embed(texts)).sum(1)
        if self.network.captions:
            tokens_of = self._tokens(texts)
            short = [n for n, tokens in enumerate(tokens_of) if tokens is not None]
            if short:
                ids = [tokens for tokens in tokens_of if tokens is not None]
                lengths = np.array([len(tokens) + 1 for tokens in ids])
                end = self.tokenizer.end
                log_prob[short] = photo_scores(self.network, visual[short], ids, end)[0] / lengths
                nobody = mean.expand(len(short), *mean.shape)
                prior[short] = photo_scores(self.network, nobody, ids, end)[0] / lengths
        return Scores(cosine, log_prob, prior)

    def _tokens(self, texts: Sequence[str]) -> list[Tensor | None]:
        """Token ids; None for a text that is none or too long."""
        try:
            return self.tokenizer.encode_short(texts)
        except DataError:
            if len(texts) == 1:
                return [None]
        middle = len(texts) // 2
        return self._tokens(texts[:middle]) + self._tokens(texts[middle:])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, D)`` float32 of unit length; NaN for a text that is none or too long."""
        try:
            return embed_texts(self.network, self.tokenizer, texts, BLOCK)
        except DataError:
            if len(texts) == 1:
                return np.full((1, self.network.config.dim), np.nan, np.float32)
        middle = len(texts) // 2
        return np.concatenate([self._embed(texts[:middle]), self._embed(texts[middle:])])


class ScoreFile:
    """The scores of all captions of ``data`` by a model, in ``path``; :meth:`run` makes what is missing.
    Raises as :class:`WorkFile`."""

    def __init__(self, path: Path, data: PairData, fingerprint: str):
        self.data = data
        self.fingerprint = fingerprint
        self._file = WorkFile(path, {"version": _VERSION, "data": data.digest, "model": fingerprint})
        self.resumed = self._file.count

    def run(self, load: Callable[[], MMGEM]) -> None:
        """Score what is missing; the model is loaded only if anything is."""
        if self._file.count == len(self.data):
            return
        self._file.keep(self._file.count // BLOCK * BLOCK)
        model = load()
        if model.fingerprint != self.fingerprint:
            raise CheckpointError(f"{model.name}: has changed")
        scorer = PairScorer(model)
        pairs = self.data.pairs(self._file.count)
        with Meter("Scoring", len(self.data), self._file.count, " photos") as meter:
            while block := list(islice(pairs, BLOCK)):
                self._file.append(_score_block(scorer, block))
                meter.advance(len(block), len(block), {})

    def results(self) -> ScoredPairs:
        """All scores. Raises ``ImageError`` if not a single photo can be read."""
        counts, flat, wrong, errors = array("q"), array("f"), array("f"), {}
        for number, row in enumerate(self._file.rows()):
            counts.append(len(row["scores"]))
            for pair in row["scores"]:
                flat.extend(_numbers(pair))
            if row["wrong"] is not None:
                wrong.extend(_numbers(row["wrong"]))
            if row["error"]:
                errors[number] = row["error"]
        if len(errors) == len(counts):
            raise ImageError(f"{self.data.path}: none of the photos can be read; the first: {errors[0]}")
        ends = np.cumsum(np.array(counts, np.int64))
        return ScoredPairs(ends - counts, ends, Scores.of(flat), Scores.of(wrong), errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_block(scorer: PairScorer, block: Sequence[Pair]) -> tuple[list[Tensor | None], list[str], Tensor]:
    """What the model sees of each photo (None: it cannot be read), why not (or ""), and the mean."""
    encoded = iter(scorer.encode([pair.data for pair in block if pair.error is None]))
    seen = [pair.error or next(encoded) for pair in block]
    visual = [None if isinstance(item, ImageError) else item for item in seen]
    errors = [
        str(item).removeprefix("image bytes: ") if isinstance(item, ImageError) else "" for item in seen
    ]
    readable = [item for item in visual if item is not None]
    return visual, errors, torch.stack(readable).mean(0) if readable else torch.empty(0)


def _score_block(scorer: PairScorer, block: Sequence[Pair]) -> list[dict[str, Any]]:
    """A row for each photo of ``block``, made of it alone."""
    visual, errors, mean = read_block(scorer, block)
    captioned = [n for n, pair in enumerate(block) if visual[n] is not None and pair.record.captions]
    owners = [n for n in captioned for _ in block[n].record.captions]
    others = [captioned[(at + 1) % len(captioned)] for at in range(len(captioned))]
    others = others if len(captioned) > 1 else []
    texts = [caption for n in captioned for caption in block[n].record.captions]
    texts += [block[n].record.captions[0] for n in captioned[: len(others)]]
    rows: list[dict[str, Any]] = [{"scores": [], "wrong": None, "error": error} for error in errors]
    if texts:
        shown = torch.stack([v for n in owners + others if (v := visual[n]) is not None])
        made = scorer.score(shown, mean, texts).rows()
        for n, row in zip(owners, made, strict=False):
            rows[n]["scores"].append(row)
        for n, row in zip(captioned, made[len(owners) :], strict=False):
            rows[n]["wrong"] = row
    return rows


def _numbers(row: Sequence[float | None]) -> list[float]:
    return [float("nan") if x is None else x for x in row]
