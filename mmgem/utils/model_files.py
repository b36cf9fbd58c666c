"""Files of a model folder as data: regular files, inside the folder, of bounded size."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from mmgem.errors import CheckpointError, why

MAX_JSON_BYTES = 4 << 20
"""Of a configuration; a real one has some kilobytes, or a million with the names of 20,000 classes."""

_MAX_DEPTH = 32


def check_file(path: Path, folder: Path | None = None) -> int:
    """Size in bytes of a regular file of ``folder`` (its own if not given).

    Raises ``CheckpointError`` if it is missing, a folder, a pipe or a device, or a link out of the folder.
    """
    try:
        info = path.stat()
        outside = path.resolve()
        root = (folder or path.parent).resolve()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name with a zero, a loop of links
        raise CheckpointError(f"{path}: cannot be read: {why(error)}") from error
    if not stat.S_ISREG(info.st_mode):
        what = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe, socket or device"
        raise CheckpointError(f"{path}: is {what}, not a file")
    # The hub's cache keeps the content of every version's files beside the versions.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not outside.is_relative_to(root) and not outside.is_relative_to(blobs):
        raise CheckpointError(f"{path}: is a link out of the model folder, to {outside}")
    return info.st_size


def read_text_file(path: Path, folder: Path | None = None, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Text of a file of a model folder. Raises ``CheckpointError`` as :func:`check_file` does, for more than
    ``max_bytes``, and for what is not UTF-8."""
    size = check_file(path, folder)
    if size > max_bytes:
        raise CheckpointError(f"{path}: {size} bytes, more than the {max_bytes} that such a file may have")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {why(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not UTF-8 text") from error


def read_json_object(
    path: Path, folder: Path | None = None, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ``CheckpointError`` as :func:`read_text_file` does, for what is
    no JSON object, and for one that is nested more than 32 levels deep."""
    return parse_json_object(read_text_file(path, folder, max_bytes), str(path))


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``text``. Raises ``CheckpointError`` that begins with ``where``."""
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: expected an object")
    level: list[Any] = [data]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return data
    raise CheckpointError(f"{where}: nested too deeply")
