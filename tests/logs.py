"""What the library logs, for tests to look at."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """The warnings that mmgem logs inside the block."""
    kept, log = _Kept(), logging.getLogger("mmgem")
    log.addHandler(kept)
    try:
        yield kept.records
    finally:
        log.removeHandler(kept)


@contextmanager
def warns(match: str) -> Iterator[list[logging.LogRecord]]:
    """The block must log a warning that ``match`` is found in."""
    with logged() as records:
        yield records
    said = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert any(re.search(match, line) for line in said), said
