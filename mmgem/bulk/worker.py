"""Makes partitions: the one piece of work, done alike in this process and by each worker on Ray.

A partition that is there is not made again, so making one twice does no harm. The photos of a partition go
through the model in batches of their order in it, so that all who make it make the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmgem.bulk.collection import Partition, PhotoReader, RawPhoto
from mmgem.bulk.output import OutputFolder, PhotoRow, SkippedPhoto, schema
from mmgem.data.images import attempt, image_size
from mmgem.errors import CheckpointError, ImageError, TransientImageError, UsageError
from mmgem.utils.unit_vectors import embedding_problem

if TYPE_CHECKING:
    from mmgem.api import MMGEM


@dataclass(frozen=True, slots=True)
class BulkJob:
    """What all workers of a run are told: where the photos are (``root``) and where the partitions go
    (``out``), both absolute; the ``model`` by name and ``fingerprint``; whether it writes ``captions``
    too; what runs the model, and in which ``precision``."""

    root: Path
    out: Path
    model: str
    fingerprint: str
    captions: bool = False
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"


class Worker:
    """Makes partitions of ``job``, with ``threads`` of torch (None: as many as it has)."""

    def __init__(self, job: BulkJob, threads: int | None = None):
        self.job, self.threads = job, threads
        self.output = OutputFolder(job.out)
        self.reader = PhotoReader(job.root)

    @cached_property
    def model(self) -> MMGEM:
        """The model, loaded once, when the first partition needs it.

        Raises UsageError if the photos or the output cannot be seen from where this runs, CheckpointError if
        the model is another one here.
        """
        for folder, there in ((self.job.root, self.job.root.is_dir()), (self.job.out, self.output.exists())):
            if not there:
                raise UsageError(
                    f"{folder}: not there on a worker; photos and output must be where all see them"
                )
        import torch

        from mmgem.api import MMGEM

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = MMGEM.from_pretrained(self.job.model, self.job.device, self.job.precision)
        if model.fingerprint != self.job.fingerprint:
            raise CheckpointError(f"{self.job.model}: is another model on a worker")
        return model

    def write_partition(self, partition: Partition) -> int:
        """Write ``partition`` unless it is there. Returns how many of its photos were skipped just now."""
        if self.output.is_done(partition):
            return 0
        rows: list[PhotoRow] = []
        skipped: list[SkippedPhoto] = []
        photos, columns = self.reader.photos(partition), schema(self.model.dim, self.job.captions)
        with self.output.temporary_file(partition) as temporary:
            while batch := list(islice(photos, self.model.batch)):
                self._embed_batch(batch, rows, skipped)
            self.output.write(partition, temporary, rows, skipped, columns)
        return len(skipped)

    def _embed_batch(
        self, batch: Sequence[RawPhoto], rows: list[PhotoRow], skipped: list[SkippedPhoto]
    ) -> None:
        """Embed ``batch`` and add each photo of it to one of the two."""
        readable = [photo for photo in batch if photo.error is None]
        results = iter(attempt(self._embed, [photo.data for photo in readable]) if readable else [])
        for photo in batch:
            result = photo.error or next(results)
            if isinstance(result, ImageError):
                reason = str(result).removeprefix("image bytes: ")
                transient = isinstance(result, TransientImageError)
                skipped.append(SkippedPhoto(photo.item, photo.key, photo.shard, reason, transient))
                continue
            (width, height), vector, caption = result
            digest = hashlib.blake2b(photo.data, digest_size=16).digest()
            rows.append(PhotoRow(photo.item, photo.key, photo.shard, digest, width, height, vector, caption))

    def _embed(self, images: list[bytes]) -> list[tuple[tuple[int, int], np.ndarray, str | None]]:
        """Size, embedding and caption of each image. Raises ImageError."""
        captions: Sequence[str | None] = [None] * len(images)
        if self.job.captions:
            vectors, captions = self.model.describe(images)
        else:
            vectors = self.model.embed_images(images)
        if problem := embedding_problem(vectors):
            raise ImageError(problem)
        return list(zip(map(image_size, images), vectors, captions, strict=True))
