"""Look at everything in the output of ``mmgem bulk``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mmgem.bulk.output import OutputFolder, checksums_of, read_column
from mmgem.errors import MMGEMError
from mmgem.utils.checkup import Checkup
from mmgem.utils.unit_vectors import not_unit_rows


def check_output(out: Path) -> Checkup:
    """Read every partition of ``out`` and compare it with its checksums and with ``bulk.json``."""
    found = Checkup("bulk output", {"parts": 0, "photos": 0})
    output = OutputFolder(out)
    try:
        settings = output.settings()
        photos, size = int(settings["photos"]), int(settings["part_size"])
    except (MMGEMError, KeyError, TypeError, ValueError) as error:
        found.add(out / "bulk.json", str(error), f"remove {out} and begin again")
        return found
    files = output.partition_files()
    for file in files:
        _check_partition(file, size, found)
    expected = math.ceil(photos / size)
    if len(files) < expected:
        what = f"{expected - len(files)} of {expected} parts are missing"
        found.add(out, what, "run mmgem bulk again, it goes on")
    if without := [file for file in files if not checksums_of(file).is_file()]:
        found.notes.append(
            f"{len(without)} of {len(files)} parts have no checksums, an earlier version wrote them; those "
            "that are removed are made again, with checksums"
        )
    return found


def _check_partition(file: Path, size: int, found: Checkup) -> None:
    remedy = "remove it and run mmgem bulk again"
    try:
        items = np.array(read_column(file, "item").to_pylist(), np.int64)
        column = read_column(file, "embedding")
        vectors = np.asarray(column.combine_chunks().flatten()).reshape(len(column), column.type.list_size)
    except (MMGEMError, ValueError) as error:
        found.add(file, str(error).removeprefix(f"{file}: ").partition("; ")[0], remedy)
        return
    found.counts["parts"] += 1
    found.counts["photos"] += len(items)
    if len(wrong := not_unit_rows(vectors)):
        what = f"{len(wrong)} embeddings are not finite and of unit length, the first in row {wrong[0]}"
        found.add(file, what, remedy)
    first = int(file.stem) * size
    if len(items) and ((np.diff(items) <= 0).any() or items[0] < first or items[-1] >= first + size):
        found.add(file, "its photos are not those of this part", remedy)
