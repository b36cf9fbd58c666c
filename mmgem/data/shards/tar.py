"""Tar shards in webdataset's layout: ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` are one sample.

The key of a member is its path up to the first dot of the file name; hidden members are passed over. Names of
photos have dots of their own, though: where what follows the first is no kind known here, and the last suffix
is (``IMG_2024.05.01.jpg``), the key is all before the last. A dotted photo or text that makes no pair so, and
whose first dot leads to a sample with a photo, is another member of that sample, as webdataset has it
(``1.depth.png`` of ``1.jpg``), and passed over like all kinds that are not known. ``.txt`` holds captions one
a line, ``.cls`` a label, ``.json`` the fields of our record or those of others. A scan
reads headers and texts and seeks over the photos. What a member lies at is an offset into the file, so a
sample is read without the tar module; the file is opened for each, which is cheap beside decoding a photo and
leaves nothing to share between processes.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmgem.data.image_kinds import IMAGE_SUFFIXES
from mmgem.data.records import Record
from mmgem.data.shards.fields import make_record
from mmgem.data.shards.index import Index, indexed
from mmgem.data.shards.shard import Sample, Shard, open_blocks
from mmgem.errors import DataError
from mmgem.utils.checksums import FileBlocks
from mmgem.utils.files import open_regular

_TEXTS = ("txt", "json", "cls")
_MOST_TEXT = 1 << 24
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_BLOCK = tarfile.BLOCKSIZE

_COLUMNS = 3 + 2 * len(_TEXTS)

ByteRange = tuple[int, int]  # offset and size


class TarShard(Shard):
    """A tar file. Raises UsageError if it is missing, DataError if it is not an uncompressed tar."""

    def __init__(self, path: Path):
        super().__init__(path, indexed(path, _COLUMNS, _scan))
        self.checksums = open_blocks(path)

    def read(self, i: int) -> Sample:
        """Sample number ``i``, its photo not decoded. Raises ``DataError`` if it can be read no longer."""
        name = self.index.names[i]
        _, *numbers = self.index.rows[i].tolist()
        photo, *texts = zip(numbers[::2], numbers[1::2], strict=True)
        try:
            with open_regular(self.path) as file:
                data = _read_range(file, photo, self.checksums)
                parts = {
                    kind: _read_range(file, byte_range, self.checksums)
                    for kind, byte_range in zip(_TEXTS, texts, strict=True)
                    if byte_range[0] >= 0
                }
            return Sample(_split_known(name)[0], data, _record(self.path, name, parts))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {name}: {error}; has the file changed?") from error


class TarPhotos(Shard):
    """The photos of a tar file, whatever lies beside them; records are empty. Raises as :class:`TarShard`."""

    def __init__(self, path: Path):
        super().__init__(path, indexed(path, 3, _scan_photos, "photos"))
        self.checksums = open_blocks(path)

    def read(self, i: int) -> Sample:
        """Photo number ``i``, not decoded. Raises ``DataError`` if it can be read no longer."""
        name = self.index.names[i]
        _, offset, size = self.index.rows[i].tolist()
        try:
            with open_regular(self.path) as file:
                data = _read_range(file, (offset, size), self.checksums)
                return Sample(_split(name)[0], data, Record(self.path / name))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: {name}: {error}; has the file changed?") from error


@dataclass
class _Group:
    """The members of one key: the photo, and the texts by their kind."""

    first: str
    key: str = ""
    name: str | None = None
    photo: ByteRange = (-1, 0)
    ranges: dict[str, ByteRange] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def _scan(path: Path) -> Index:
    problems: list[str] = []
    with open_regular(path) as file:
        groups = _groups(path, file, problems)
    rows, names = [], []
    for group in groups:
        if group.name is None:
            problems.append(f"{path}: {group.first}: no photo beside it")
            continue
        try:
            record = _record(path, group.name, group.texts)
        except ValueError as error:
            problems.append(f"{path}: {group.name}: {error}")
            continue
        row = [int(bool(record.captions)), *group.photo]
        for kind in _TEXTS:
            row += group.ranges.get(kind, (-1, 0))
        rows.append(row)
        names.append(group.name)
    table = np.array(rows, np.int64).reshape(len(rows), _COLUMNS)
    return Index(table, names, [len(rows)] if rows else [], problems)


def _scan_photos(path: Path) -> Index:
    """Every photo, also those of one key: ``a.left.jpg`` beside ``a.right.jpg``."""
    problems: list[str] = []
    rows, names = [], []
    with open_regular(path) as file:
        for member in _members(path, file, problems):
            if not _split(member.name)[0] or not member.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if not member.isreg() or member.issparse():
                problems.append(f"{path}: {member.name}: not a plain file")
                continue
            rows.append([0, member.offset_data, member.size])
            names.append(member.name)
    table = np.array(rows, np.int64).reshape(len(rows), 3)
    return Index(table, names, [len(rows)] if rows else [], problems)


def _groups(path: Path, file: BinaryIO, problems: list[str]) -> list[_Group]:
    """Members by key, in the order of their first. A kind of member that a key has already begins another
    sample: keys may come again."""
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}
    for member in _members(path, file, problems):
        key, kind = _split_known(member.name)
        if not key:
            continue
        if not member.isreg() or member.issparse():
            problems.append(f"{path}: {member.name}: not a plain file")
            continue
        if not _is_known(kind):
            continue
        is_photo = kind not in _TEXTS
        group = latest.get(key)
        if group is None or kind in group.ranges:
            group = latest[key] = _Group(member.name, key)
            groups.append(group)
        place = (member.offset_data, member.size)
        group.ranges[kind] = place
        if not is_photo:
            if member.size > _MOST_TEXT:
                problems.append(f"{path}: {member.name}: {member.size} bytes are too many for a text")
            else:
                file.seek(member.offset_data)
                group.texts[kind] = file.read(member.size)
        elif group.name is None:
            group.name, group.photo = member.name, place
    with_photo = {group.key for group in groups if group.name is not None}
    return [
        group
        for group in groups
        if (group.name is not None and group.texts)
        or (owner := _split(group.first)[0]) == group.key
        or owner not in with_photo
    ]


def _members(path: Path, file: BinaryIO, problems: list[str]) -> list[tarfile.TarInfo]:
    """The whole members of a tar; what is cut off or damaged at its end is added to ``problems``."""
    size = path.stat().st_size
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (it owns nothing)
    except tarfile.TarError as error:
        raise DataError(f"{path}: not an uncompressed tar file ({error})") from error
    members: list[tarfile.TarInfo] = []
    reason = ""
    while True:
        try:
            member = archive.next()
        except tarfile.TarError as error:
            reason = str(error)
            break
        if member is None:
            break
        members.append(member)
    if members and (last := members[-1]).offset_data + last.size > size:
        members.pop()
        problems.append(f"{path}: {last.name}: cut off; the tar ends in the middle of it")
        return members
    end = archive.offset
    file.seek(min(end, size))
    block = file.read(_BLOCK)
    if reason or len(block) < _BLOCK or any(block):
        after = f"after {members[-1].name}" if members else "at its beginning"
        what = "damaged" if len(block) == _BLOCK else "cut off"
        problems.append(f"{path}: {what} {after}, at byte {end}; what followed is lost")
    return members


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member; no key: it is none of ours."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else ("", "")


def _split_known(name: str) -> tuple[str, str]:
    """:func:`_split`, but by the last dot if the kind is known only so."""
    key, kind = _split(name)
    _, dot, last = kind.rpartition(".")
    if key and dot and not _is_known(kind) and _is_known(last):
        return name[: -len(last) - 1], last
    return key, kind


def _is_known(kind: str) -> bool:
    return kind in _TEXTS or f".{kind}" in IMAGE_SUFFIXES


def _read_range(file: BinaryIO, byte_range: ByteRange, blocks: FileBlocks | None) -> bytes:
    if blocks is not None:
        data = blocks.read(file, *byte_range)
    else:
        file.seek(byte_range[0])
        data = file.read(byte_range[1])
    if len(data) < byte_range[1]:
        raise ValueError("cut off")
    return data


def _record(path: Path, name: str, text_bytes: dict[str, bytes]) -> Record:
    """The record of the photo ``name`` from the text members beside it; ValueError says what is wrong."""
    kind = ""
    try:
        texts = {kind: text_bytes[kind].decode("utf-8-sig") for kind in text_bytes}
        fields = {}
        if "json" in texts:
            kind = "its .json: "
            fields = json.loads(texts["json"])
            if not isinstance(fields, dict):
                raise ValueError("not an object")
        if "cls" in texts and fields.get("label") is None:
            fields = {**fields, "label": texts["cls"].strip()}
        kind = ""
        lines = [" ".join(line.split()) for line in texts.get("txt", "").splitlines()]
        return make_record(fields, name, path, lines)
    except UnicodeDecodeError as error:
        raise ValueError("its texts are not UTF-8") from error
    except RecursionError as error:
        raise ValueError("its .json is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{kind}{error}") from error
