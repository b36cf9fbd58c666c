"""A run: what is missing is made, here or on Ray, and then all of it is counted."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmgem.bulk.collection import Partition, find_collection
from mmgem.bulk.on_ray import require_ray, write_on_ray
from mmgem.bulk.output import OutputFolder, SkippedPhoto
from mmgem.bulk.worker import BulkJob, Worker
from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
from mmgem.data.shards.parquet import require_pyarrow
from mmgem.errors import ImageError, UsageError
from mmgem.utils.progress import Meter


@dataclass(frozen=True, slots=True)
class BulkReport:
    """What is in the output after a run. ``photos``: rows in all partitions; ``written``: of ``parts``, those
    that this run made, with ``embedded`` photos in ``seconds``; ``skipped``: what was left out, of all runs;
    ``died``: workers that were killed in the middle of a partition in this run."""

    parts: int
    written: int
    photos: int
    embedded: int
    skipped: list[SkippedPhoto]
    died: int
    seconds: float


def embed_collection(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] = "tiny",
    captions: bool = False,
    part_size: int = 1000,
    workers: int | None = None,
    address: str | None = None,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> BulkReport:
    """Embed every photo of ``source`` into parquet partitions in the folder ``out``, ``part_size`` photos
    each; see :func:`mmgem.bulk.output.schema` for their columns. ``captions``: write a caption of each too.

    ``workers``: processes on Ray (None: one a CPU), 0: none, all is done here and Ray is not needed.
    ``address``: of a Ray cluster; None: Ray is started on this machine, or used if this process has begun it.
    Partitions that are there already are kept, but for those that lack photos which could only not be read
    then (no memory, no right to). The partitions do not depend on who makes them.

    ``device`` and ``precision``: of the model, as of :meth:`mmgem.api.MMGEM.from_pretrained`.

    Raises UsageError for arguments that cannot work, for an ``out`` made of other photos, by another model or
    with other options, and if Ray is missing; ImageError if not a single photo can be read.
    """
    if part_size < 1 or (workers or 0) < 0:
        raise UsageError("part_size must be at least 1 and workers not negative")
    if address is not None and workers == 0:
        raise UsageError("an address needs workers")
    require_pyarrow()
    if workers != 0:
        require_ray()
    collection, output = find_collection(source), OutputFolder(Path(out).absolute())
    if output.out == collection.root:
        raise UsageError(f"{out}: the parts would lie among the photos; choose a folder of their own")
    model_fingerprint = fingerprint(resolve(model))
    settings = {
        "photos": len(collection),
        "collection": collection.digest,
        "model": model_fingerprint,
        "captions": captions,
        "part_size": part_size,
    }
    if precision != "float32":
        settings["precision"] = precision
    partitions = collection.partitions(part_size)
    with output.locked(settings):
        missing = [partition for partition in partitions if not output.is_done(partition)]
        began, embedded, skipped_count = time.perf_counter(), 0, 0
        job = BulkJob(
            collection.root, output.out, lasting_name(model), model_fingerprint, captions, device, precision
        )
        with (
            closing(_write_partitions(job, missing, workers, address)) as written,
            Meter("Embedding", len(partitions), len(partitions) - len(missing), " photos") as meter,
        ):
            for partition, skipped in written:
                embedded, skipped_count = embedded + len(partition) - skipped, skipped_count + skipped
                meter.advance(1, len(partition), {"skipped": skipped_count})
        seconds = time.perf_counter() - began
        problems = [SkippedPhoto(None, None, shard, reason) for shard, reason in collection.problems]
        photos, all_skipped, died = output.finish(partitions, problems)
    if not photos:
        raise ImageError(
            f"{source}: none of the {len(collection)} photos could be read; see {out}/skipped.jsonl"
        )
    return BulkReport(len(partitions), len(missing), photos, embedded, all_skipped, died, seconds)


def _write_partitions(
    job: BulkJob, partitions: Sequence[Partition], workers: int | None, address: str | None
) -> Generator[tuple[Partition, int]]:
    """Make ``partitions``; yields each as it is done, and how many of its photos were skipped."""
    if not partitions:
        return
    if workers == 0:
        worker = Worker(job)
        for partition in partitions:
            yield partition, worker.write_partition(partition)
        return
    yield from write_on_ray(job, partitions, workers, address)
