"""Look at everything in shards: their checksums, their samples, and the log of what packed them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmgem.data.shards.find import open_shard
from mmgem.errors import DataError, MMGEMError
from mmgem.utils.checksums import FileBlocks
from mmgem.utils.checkup import Checkup

_BEGIN = "remove it and the shards of its split, and run mmgem data pack again"
_AGAIN = "copy it again, or remove it and run mmgem data pack again"


def check_shards(paths: Sequence[Path]) -> Checkup:
    """Read every sample of every shard, and compare the shards with their checksums and logs."""
    found = Checkup("shards", {"shards": len(paths), "samples": 0})
    without: list[Path] = []
    for path in paths:
        try:
            blocks = FileBlocks.open(path)
            if blocks is None:
                without.append(path)
            else:
                blocks.verify()
        except (OSError, ValueError) as error:
            found.add(path, str(error), _AGAIN)
        _check_samples(path, found)
    for log in sorted({log for path in paths for log in path.parent.glob("*.pack.json")}):
        _check_log(log, found)
    if without:
        found.notes.append(
            f"{len(without)} of {len(paths)} shards have no checksums (mmgem data pack writes them), the "
            f"first is {without[0]}"
        )
    return found


def _check_samples(path: Path, found: Checkup) -> None:
    try:
        shard = open_shard(path)
    except MMGEMError as error:
        found.add(path, str(error).removeprefix(f"{path}: "), _AGAIN)
        return
    for problem in shard.problems:
        found.add(path, problem.removeprefix(f"{path}: ").removeprefix(f"{path.absolute()}: "), _AGAIN)
    for number in range(len(shard)):
        try:
            shard.read(number)
        except DataError as error:
            found.add(path, str(error).removeprefix(f"{path}: "), _AGAIN)
    found.counts["samples"] += len(shard)


def _check_log(log: Path, found: Checkup) -> None:
    try:
        shards = json.loads(log.read_text())["shards"]
        sizes = {name: int(facts["bytes"]) for name, facts in shards.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found.add(log, f"damaged ({error})", _BEGIN)
        return
    for name, size in sizes.items():
        path = log.with_name(name)
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            what = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            found.add(path, what, "run mmgem data pack again")
