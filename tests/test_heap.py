"""Memory that was freed is given back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmgem.utils.heap import trim_heap


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_lies_between_holes_is_given_back() -> None:
    pieces = [bytearray(65536) for _ in range(3000)]  # below malloc's threshold for maps of their own
    kept = pieces[::50]
    del pieces
    before = resident_pages()
    if not trim_heap():
        pytest.skip("not glibc, or nothing was kept")
    assert resident_pages() < before
    assert len(kept) == 60
