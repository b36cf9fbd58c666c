"""The C library's heap, which keeps what was freed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


@cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None


def trim_heap() -> bool:
    """Gives freed memory back to the system and says whether there was any; False where the C library is
    not glibc.

    Tensors of another length in each batch leave holes that nothing fits into: without it the heap of a
    training on a CPU grows by a tenth of a gigabyte at each step.
    """
    libc = _libc()
    return libc is not None and bool(libc.malloc_trim(0))
