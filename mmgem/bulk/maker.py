"""Makes parts: the one piece of work, done alike in this process and by each worker on Ray.

A part that is there is not made again, so making one twice does no harm. The photos of a part go through the
model in batches of their order in it, so that all who make it make the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmgem.bulk.collection import Part, Photo, Reader
from mmgem.bulk.output import Output, Row, Skipped, schema
from mmgem.data.images import attempt, image_size
from mmgem.errors import CheckpointError, ImageError, UsageError

if TYPE_CHECKING:
    from mmgem.api import MMGEM


@dataclass(frozen=True, slots=True)
class Job:
    """What all makers of a run are told: where the photos are (``root``) and where the parts go (``out``),
    both absolute; the ``model`` by name and ``fingerprint``; whether it writes ``captions`` too."""

    root: Path
    out: Path
    model: str
    fingerprint: str
    captions: bool = False


class Maker:
    """Makes parts of ``job``, with ``threads`` of torch (None: as many as it has)."""

    def __init__(self, job: Job, threads: int | None = None):
        self.job, self.threads = job, threads
        self.output = Output(job.out)
        self.reader = Reader(job.root)

    @cached_property
    def model(self) -> MMGEM:
        """The model, loaded once, when the first part needs it.

        Raises UsageError if the photos or the output cannot be seen from where this runs, CheckpointError if
        the model is another one here.
        """
        for folder, there in ((self.job.root, self.job.root.is_dir()), (self.job.out, self.output.begun())):
            if not there:
                raise UsageError(
                    f"{folder}: not there on a worker; photos and output must be where all see them"
                )
        import torch

        from mmgem.api import MMGEM

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = MMGEM.from_pretrained(self.job.model)
        if model.fingerprint != self.job.fingerprint:
            raise CheckpointError(f"{self.job.model}: is another model on a worker")
        return model

    def make(self, part: Part) -> int:
        """Write ``part`` unless it is there. Returns how many of its photos were skipped just now."""
        if self.output.part(part.number).exists():
            return 0
        rows: list[Row] = []
        skipped: list[Skipped] = []
        photos, columns = self.reader.photos(part), schema(self.model.dim, self.job.captions)
        with self.output.attempt(part) as temporary:
            while batch := list(islice(photos, self.model.batch)):
                self._add(batch, rows, skipped)
            self.output.write(part, temporary, rows, skipped, columns)
        return len(skipped)

    def _add(self, batch: Sequence[Photo], rows: list[Row], skipped: list[Skipped]) -> None:
        """Embed ``batch`` and add each photo of it to one of the two."""
        good = [photo for photo in batch if not photo.problem]
        seen = iter(attempt(self._see, [photo.data for photo in good]) if good else [])
        for photo in batch:
            found = ImageError(photo.problem) if photo.problem else next(seen)
            if isinstance(found, ImageError):
                reason = str(found).removeprefix("image bytes: ")
                skipped.append(Skipped(photo.item, photo.key, photo.shard, reason))
                continue
            (width, height), vector, caption = found
            digest = hashlib.blake2b(photo.data, digest_size=16).digest()
            rows.append(Row(photo.item, photo.key, photo.shard, digest, width, height, vector, caption))

    def _see(self, images: list[bytes]) -> list[tuple[tuple[int, int], np.ndarray, str | None]]:
        """Size, embedding and caption of each image. Raises ImageError."""
        captions: Sequence[str | None] = [None] * len(images)
        if self.job.captions:
            vectors, captions = self.model.describe(images)
        else:
            vectors = self.model.embed_images(images)
        if not np.isfinite(vectors).all():
            raise ImageError("its embedding is not finite")
        return list(zip(map(image_size, images), vectors, captions, strict=True))
