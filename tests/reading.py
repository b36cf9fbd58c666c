"""What the tests of readers share: files written, warnings counted, errors of one line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from logs import logged

from mmgem.data.records import Record, read_jsonl, write_jsonl
from mmgem.errors import DataError, UsageError


def put(path: Path, content: str | dict | list = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def refused(call, *args, **kwargs) -> str:
    with pytest.raises((DataError, UsageError)) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def quiet(call, *args, **kwargs):
    """The result of a call that must not warn."""
    with logged() as records, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = call(*args, **kwargs)
    assert not records
    return result


def warned(call, *args, **kwargs) -> tuple[list[Record], str]:
    """The result of a call, and the one line it warned of; the line must come from a logger of mmgem's."""
    with logged() as said:
        records = call(*args, **kwargs)
    assert len(said) == 1 and said[0].name.startswith("mmgem.") and said[0].levelname == "WARNING"
    assert "\n" not in said[0].getMessage()
    return records, said[0].getMessage()


def survives(records: list[Record], path: Path) -> None:
    write_jsonl(path, records)
    assert read_jsonl(path) == records
