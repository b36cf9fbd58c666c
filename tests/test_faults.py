"""The faults of ``benchmarks/faults.py``, a few of each: none loses anything, or is wrong in silence."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("resource", reason="kills and limits processes")

import faults

BAD = (faults.WRONG, faults.LOST, faults.RAW)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["corpus add"], {"kills": 1, "races": 4, "disks": 1}),
        (["data pack"], {"kills": 2, "races": 1, "disks": 1}),
        (["index"], {"kills": 1, "races": 1, "disks": 1}),
        (["train"], {"kills": 1, "races": 1}),
        (["corpus add, export", "mosaic"], {"races": 2}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_nothing_is_lost_or_wrong_in_silence(
    names: list[str], counts: dict[str, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = faults.measure(tmp_path, counts, names)
    said = capfd.readouterr().err
    assert sum(found.total() for found in results.values()) == len(names) * sum(counts.values())
    assert not any(found[bad] for found in results.values() for bad in BAD), said
    if "corpus add" in names:
        assert results["corpus add: race"][faults.RIGHT] == counts["races"]


def test_the_table() -> None:
    rows = faults.table({"a: kill": Counter({faults.RIGHT: 2, faults.LOST: 1})}).splitlines()
    assert rows[0] == "| what | tries | right | clear error | silent wrong | lost | raw error |"
    assert rows[2] == "| a: kill | 3 | 2 | 0 | 0 | 1 | 0 |"
