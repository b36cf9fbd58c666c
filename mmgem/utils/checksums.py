"""CRC-32 checksums, written with the data and compared when it is read: damage is an error, never a result.

    FOLDER/checksums.json   bytes and checksum of the files of a folder that is written as a whole
    .NAME.crc32             checksums of the blocks of the one file NAME beside it, read piece by piece

Notable choices. CRC-32 as zlib has it runs at gigabytes a second, sees every burst of up to 32 bits and
misses other damage once in four billion. What has no checksums (an earlier version wrote it) is read as
before. Files that people edit (model cards) and those that hold a checksum of their own are not listed.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmgem.errors import CheckpointError, MMGEMError
from mmgem.utils.files import write_atomic, write_atomic_bytes

_log = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
BLOCK_BYTES = 1 << 16
_FORMAT = 1
_CHUNK = 1 << 20


def file_crc32(path: Path) -> int:
    """CRC-32 of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def sealed_json(value: dict[str, Any]) -> str:
    """``value`` as JSON, with a checksum of itself under ``crc32``."""
    return json.dumps(value | {"crc32": _json_crc32(value)})


def unsealed_json(text: str, since: str | None = None) -> dict[str, Any]:
    """What :func:`sealed_json` was given. ``since``: a key without which the object may also be an earlier
    version's, that has no checksum.

    Raises ``ValueError`` for text that is not such an object, or damaged.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    sealed = "crc32" in value or since is None or since in value
    if sealed and value.pop("crc32", None) != _json_crc32(value):
        raise ValueError("its checksum does not match")
    return value


def _json_crc32(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def write_checksums(folder: Path, leave_out: Iterable[str] = ()) -> None:
    """Write ``checksums.json`` of the files that lie in ``folder`` (not of those in folders below), but of
    texts (``.md``) and those called as ``leave_out`` says."""
    skipped = {CHECKSUMS_FILE, *leave_out}
    files = {
        path.name: {"bytes": path.stat().st_size, "crc32": file_crc32(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in skipped and path.suffix != ".md"
    }
    write_atomic(folder / CHECKSUMS_FILE, json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n")


def read_checksums(folder: Path) -> dict[str, tuple[int, int]] | None:
    """Bytes and CRC-32 of each file of ``folder`` that has them; None if the folder has no checksums.

    Raises ``ValueError`` if ``checksums.json`` cannot be read.
    """
    try:
        text = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    try:
        value = json.loads(text)
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']!r}, this version reads {_FORMAT}")
        return {name: (int(entry["bytes"]), int(entry["crc32"])) for name, entry in value["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged ({' '.join(str(error).split())})") from error


def file_problem(path: Path) -> str | None:
    """What is wrong with a file by the checksums of its folder; None if nothing is, or there are none."""
    try:
        expected = (read_checksums(path.parent) or {}).get(path.name)
    except ValueError as error:
        return f"its {CHECKSUMS_FILE} is {error}"
    if expected is None:
        return None
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{size} bytes instead of {expected[0]}"
        return None if file_crc32(path) == expected[1] else "its checksum does not match"
    except OSError as error:
        return error.strerror or str(error)


def verify_file(path: Path, remedy: str, error: type[MMGEMError] = CheckpointError) -> None:
    """Raise ``error``, which says ``remedy``, if a file is not as its folder's checksums say."""
    if (problem := file_problem(path)) is not None:
        raise error(
            f"{path}: damaged; {remedy} ({problem}; if you changed it yourself, remove "
            f"{path.parent / CHECKSUMS_FILE})"
        )


def folder_problems(folder: Path, but: str | None = None) -> list[tuple[Path, str]]:
    """Every file directly in ``folder`` that is not as its ``checksums.json`` says, and why. Those with the
    suffix ``but`` are not read."""
    try:
        names = list(read_checksums(folder) or {})
    except ValueError as error:
        return [(folder / CHECKSUMS_FILE, str(error))]
    problems = [(folder / n, file_problem(folder / n)) for n in names if but is None or not n.endswith(but)]
    return [(path, problem) for path, problem in problems if problem is not None]


def warn_of_edits(folder: Path) -> None:
    """Log a warning for each file of a model's folder, but those of weights, that is not as its
    ``checksums.json`` says."""
    for path, problem in folder_problems(folder, but=".safetensors"):
        remedy = f"if you edited it, remove {folder / CHECKSUMS_FILE}"
        _log.warning("%s: edited or damaged, %s; %s", path, problem, remedy)


def sidecar(path: Path) -> Path:
    """Where the checksums of the blocks of ``path`` are."""
    return path.with_name(f".{path.name}.crc32")


def write_block_checksums(content: Path, sums: Path) -> None:
    """Write the checksums of the blocks of the file ``content`` to ``sums``."""
    crcs = []
    with content.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while block := file.read(BLOCK_BYTES):
            crcs.append(zlib.crc32(block))
    table = np.array(crcs, "<u4").tobytes()
    head = {"format": _FORMAT, "bytes": size, "block_bytes": BLOCK_BYTES, "table": zlib.crc32(table)}
    write_atomic_bytes(sums, sealed_json(head).encode() + b"\n" + table)


class FileBlocks:
    """The checksums of the blocks of the file ``path``, each compared the first time it is read."""

    def __init__(self, path: Path, size: int, block_bytes: int, crcs: np.ndarray):
        """``crcs``: ``(blocks,)`` uint32; ``size``: of the file, in bytes."""
        self.path, self.size, self.block_bytes, self.crcs = path, size, block_bytes, crcs
        self._verified = np.zeros(len(crcs), bool)

    @classmethod
    def open(cls, path: Path, any_size: bool = False, sums: Path | None = None) -> FileBlocks | None:
        """Those of ``path`` in ``sums`` (None: its :func:`sidecar`); None if it has none.

        Raises ``ValueError`` if they cannot be read or, unless ``any_size``, are of a file of another size.
        """
        sums = sums or sidecar(path)
        try:
            line, _, table = sums.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{sums.name} cannot be read ({error.strerror})") from error
        try:
            head = unsealed_json(line.decode())
            if head["format"] != _FORMAT or zlib.crc32(table) != head["table"]:
                raise ValueError("its checksum does not match")
            crcs = np.frombuffer(table, "<u4")
            size, block_bytes = head["bytes"], head["block_bytes"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{sums.name} is damaged; remove it to read without") from error
        if (found := path.stat().st_size) != size and not any_size:
            raise ValueError(
                f"damaged, {found} bytes instead of {size} (if you replaced it: remove {sums.name})"
            )
        return cls(path, size, block_bytes, crcs)

    def read(self, file: BinaryIO, offset: int, size: int) -> bytes:
        """``size`` bytes of ``file`` from ``offset`` on, fewer at its end.

        Raises ``ValueError`` where a block of them is damaged."""
        first, stop = offset // self.block_bytes, -(-(offset + size) // self.block_bytes)
        stop = min(stop, len(self.crcs))
        if self._verified[first:stop].all():
            file.seek(offset)
            return file.read(size)
        start = first * self.block_bytes
        file.seek(start)
        data = memoryview(file.read((stop - first) * self.block_bytes))
        for number in range(first, stop):
            at = (number - first) * self.block_bytes
            if not self._verified[number]:
                block = data[at : at + self.block_bytes]
                if zlib.crc32(block) != self.crcs[number]:
                    raise ValueError(f"damaged between bytes {start + at} and {start + at + len(block)}")
                self._verified[number] = True
        return bytes(data[offset - start : offset - start + size])

    def verify(self) -> None:
        """Compare every block. Raises ``ValueError`` for the first that is damaged."""
        with self.path.open("rb") as file:
            for number in range(len(self.crcs)):
                self.read(file, number * self.block_bytes, self.block_bytes)
