"""Camera raw files: the largest JPEG that lies in one, and what its header says. Nothing is developed.

Every camera puts what its display shows into the file, mostly in the size of the photo. CR2, NEF, ARW, DNG,
PEF and SRW are TIFF, ORF and RW2 are TIFF by another number, CR3 is boxes (ISO 14496-12) with TIFF in some of
them, RAF begins with a table of its own. A TIFF counts as raw if one of its directories holds what a sensor
sees (PhotometricInterpretation 32803 or 34892), if it says its DNG version, or by Canon's mark.

Notable choices. What a file says is read in bounds: so many directories, entries, segments and boxes, so that
no file costs more than some thousand small reads. A directory that is damaged ends its branch; a JPEG counts
by the frame that it states (baseline or progressive, 8 bits: sensors' data are lossless JPEG), and one that
lies behind the end of its file is an error, not a reason to take a smaller one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from PIL import ExifTags
from PIL.TiffImagePlugin import IFDRational

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")

RAW_SIGNATURES = (b"FUJIFILMCCD-RAW ", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0\0\0\x18ftypcrx ")
"""First bytes of raw files that are no TIFF; those of others are TIFF's."""

_DIRECTORIES, _ENTRIES, _VALUES, _SEGMENTS, _BOXES = 64, 1024, 64, 256, 256
_TEXT = 1024  # bytes of a text that are read

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I"}
_COMPRESSION, _PHOTOMETRIC, _STRIPS, _STRIP_BYTES = 259, 262, 273, 279
_SUB_DIRECTORIES, _JPEG, _JPEG_BYTES, _PANASONIC_JPEG = 330, 513, 514, 46
_MAKER_NOTE, _DNG_VERSION = 37500, 50706
_SENSOR = (32803, 34892)  # CFA, LinearRaw
_IN_JPEG = (6, 7)
_OLYMPUS = {b"OLYMPUS\0": 12, b"OM SYSTEM\0": 16}  # how the note begins, and where its directory is
_OLYMPUS_SETTINGS, _OLYMPUS_START, _OLYMPUS_BYTES = 0x2020, 0x101, 0x102
_CANON_HEADER = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
_CANON_PREVIEW = bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16")

_MAIN_TAGS = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Orientation)
_EXIF_TAGS = (ExifTags.Base.DateTimeOriginal,)
_GPS_TAGS = (1, 2, 3, 4)  # latitude and longitude, each with its reference


@dataclass
class RawPreview:
    """Where the largest JPEG of a raw file is, in bytes; tags of EXIF's main, Exif and GPS directories."""

    offset: int = 0
    length: int = 0
    main: dict[int, Any] = field(default_factory=dict)
    exif: dict[int, Any] = field(default_factory=dict)
    gps: dict[int, Any] = field(default_factory=dict)


def find_preview(file: BinaryIO) -> RawPreview | None:
    """The preview in a camera's raw file; None if ``file`` is none. Raises ValueError for a raw file without
    a JPEG, and for one whose JPEG would lie behind its end."""
    reader = _Reader(file)
    start = reader.start
    if start.startswith(b"FUJIFILMCCD-RAW "):
        offset, length = struct.unpack(">II", reader.at(84, 8))
        return _with_largest(reader, RawPreview(), [(offset, length)])
    if start[4:12] == b"ftypcrx ":
        return _canon_boxes(reader)
    if start[:2] in (b"II", b"MM"):
        return _tiff(reader)
    return None


class _Reader:
    """A file that is read at places it names itself, never beyond its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        self.start = self.at(0, min(32, self.size))

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on. Raises ValueError where the file ends before."""
        if offset < 0 or offset + size > self.size:
            raise ValueError("a camera's raw file that is cut off or damaged")
        self.file.seek(offset)
        return self.file.read(size)


@dataclass
class _Field:
    kind: int
    count: int
    offset: int  # of its values in the file


class _Tiff:
    """Directories of the TIFF at ``base`` of a file, to which its offsets count."""

    def __init__(self, reader: _Reader, base: int = 0) -> None:
        self.reader, self.base = reader, base
        self.order = {b"II": "<", b"MM": ">"}.get(reader.at(base, 2), "")
        if not self.order:
            raise ValueError("a camera's raw file whose header is damaged")
        self.first: int = self.unpack("I", base + 4)[0]
        self._left = _DIRECTORIES

    def unpack(self, format: str, offset: int) -> tuple[Any, ...]:
        """Numbers at a place in the file."""
        format = self.order + format
        return struct.unpack(format, self.reader.at(offset, struct.calcsize(format)))

    def directory(self, offset: int) -> tuple[dict[int, _Field], int]:
        """The fields of a directory, and where the next one is, 0: nowhere. Raises ValueError."""
        if not self._left:
            raise ValueError("a camera's raw file of too many directories")
        self._left -= 1
        start = self.base + offset
        (count,) = self.unpack("H", start)
        if count > _ENTRIES:
            raise ValueError("a camera's raw file with a damaged directory")
        fields = {}
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = self.unpack("HHI", at)
            size = number * _SIZES.get(kind, 0)
            place = at + 8 if size <= 4 else self.base + self.unpack("I", at + 8)[0]
            fields[tag] = _Field(kind, number, place)
        (following,) = self.unpack("I", start + 2 + 12 * count)
        return fields, following

    def directories(self) -> Iterator[dict[int, _Field]]:
        """All of them: the chain, and those below each; what is damaged ends its branch."""
        waiting, seen = [self.first], set[int]()
        while waiting:
            offset = waiting.pop(0)
            if not offset or offset in seen:
                continue
            seen.add(offset)
            try:
                fields, following = self.directory(offset)
                waiting += [*self.numbers(fields, _SUB_DIRECTORIES), following]
            except ValueError:
                continue
            yield fields

    def numbers(self, fields: dict[int, _Field], tag: int) -> list[int]:
        """Whole numbers of a field, at most so many; none if it is not there or not of numbers."""
        found = fields.get(tag)
        if found is None or found.kind not in _NUMBERS:
            return []
        count = min(found.count, _VALUES)
        return list(self.unpack(f"{count}{_NUMBERS[found.kind]}", found.offset))

    def value(self, found: _Field) -> Any:
        """A text, a number or a tuple of fractions, as EXIF has them; None for anything else."""
        if found.kind == 2:
            text = self.reader.at(found.offset, min(found.count, _TEXT))
            return text.partition(b"\0")[0].decode("utf-8", "replace")
        if found.kind == 3 and found.count == 1:
            return self.unpack("H", found.offset)[0]
        if found.kind in (5, 10) and 1 <= found.count <= 3:
            parts = self.unpack(f"{2 * found.count}{'I' if found.kind == 5 else 'i'}", found.offset)
            return tuple(IFDRational(*parts[i : i + 2]) for i in range(0, len(parts), 2))
        return None

    def tags(self, fields: dict[int, _Field], wanted: tuple[int, ...]) -> dict[int, Any]:
        """The values of some fields, as far as they can be read."""
        values = {}
        for tag in wanted:
            try:
                value = self.value(fields[tag]) if tag in fields else None
            except ValueError:
                continue
            if value is not None:
                values[tag] = value
        return values

    def below(self, fields: dict[int, _Field], tag: int) -> dict[int, _Field]:
        """The directory that a field points to; without fields if there is none, or it is damaged."""
        try:
            return next((self.directory(offset)[0] for offset in self.numbers(fields, tag)[:1]), {})
        except ValueError:
            return {}


def _tiff(reader: _Reader) -> RawPreview | None:
    olympus, panasonic = reader.start[2:4] in (b"RO", b"RS", b"OR"), reader.start[:4] == b"IIU\0"
    if not (olympus or panasonic or reader.start[:4] in (b"II*\0", b"MM\0*")):
        return None
    marked = olympus or panasonic or reader.start[8:10] == b"CR"
    try:
        tiff = _Tiff(reader)
        directories = list(tiff.directories())
    except ValueError:
        if marked:
            raise
        return None
    sensors = [set(tiff.numbers(fields, _PHOTOMETRIC)) & set(_SENSOR) for fields in directories]
    if not (marked or any(sensors) or any(_DNG_VERSION in fields for fields in directories)):
        return None
    places: list[tuple[int, int]] = []
    for fields in directories:
        places += zip(tiff.numbers(fields, _JPEG), tiff.numbers(fields, _JPEG_BYTES), strict=False)
        strips = tiff.numbers(fields, _STRIPS)
        if len(strips) == 1 and set(tiff.numbers(fields, _COMPRESSION)) & set(_IN_JPEG):
            places += zip(strips, tiff.numbers(fields, _STRIP_BYTES), strict=False)
        if panasonic and _PANASONIC_JPEG in fields:
            places.append((fields[_PANASONIC_JPEG].offset, fields[_PANASONIC_JPEG].count))
    main = directories[0] if directories else {}
    exif = tiff.below(main, ExifTags.IFD.Exif)
    if olympus:
        places += _olympus_preview(reader, exif)
    preview = RawPreview(
        main=tiff.tags(main, _MAIN_TAGS),
        exif=tiff.tags(exif, _EXIF_TAGS),
        gps=tiff.tags(tiff.below(main, ExifTags.IFD.GPSInfo), _GPS_TAGS),
    )
    return _with_largest(reader, preview, places)


def _olympus_preview(reader: _Reader, exif: dict[int, _Field]) -> list[tuple[int, int]]:
    """Where the maker's note says that the preview is; its newer kinds count offsets from their own start."""
    note = exif.get(_MAKER_NOTE)
    if note is None:
        return []
    try:
        start = reader.at(note.offset, min(16, note.count))
        skip = next((skip for mark, skip in _OLYMPUS.items() if start.startswith(mark)), 0)
        if not skip:  # before 2003: without a preview that is larger than the thumbnail
            return []
        tiff = _Tiff(reader)
        tiff.base, tiff.order = note.offset, ">" if start[skip - 4 : skip - 2] == b"MM" else "<"
        settings = tiff.directory(skip)[0].get(_OLYMPUS_SETTINGS)
        if settings is None:
            return []
        (place,) = (settings.offset - tiff.base,) if settings.kind == 7 else tiff.unpack("I", settings.offset)
        fields = tiff.directory(place)[0]
        starts, lengths = tiff.numbers(fields, _OLYMPUS_START), tiff.numbers(fields, _OLYMPUS_BYTES)
        return [(note.offset + at, length) for at, length in zip(starts, lengths, strict=False)]
    except ValueError:
        return []


def _canon_boxes(reader: _Reader) -> RawPreview:
    """CR3: thumbnail, preview and the photo itself as JPEGs in boxes; EXIF as three TIFFs."""
    preview, places = RawPreview(), list[tuple[int, int]]()
    for kind, start, end in _boxes(reader, 0, reader.size):
        if kind == b"uuid" and reader.at(start, 16) == _CANON_PREVIEW:
            places += _jpeg_within(reader, start + 16, end)
        for inner, at, stop in _boxes(reader, start, end) if kind == b"moov" else ():
            if inner == b"trak":
                places += _first_sample(reader, at, stop)
            elif inner == b"uuid" and reader.at(at, 16) == _CANON_HEADER:
                for name, here, until in _boxes(reader, at + 16, stop):
                    places += _jpeg_within(reader, here, until) if name == b"THMB" else []
                    _canon_tags(reader, name, here, preview)
    return _with_largest(reader, preview, places)


def _canon_tags(reader: _Reader, name: bytes, at: int, preview: RawPreview) -> None:
    for box, wanted, part in (
        (b"CMT1", _MAIN_TAGS, preview.main),
        (b"CMT2", _EXIF_TAGS, preview.exif),
        (b"CMT4", _GPS_TAGS, preview.gps),
    ):
        if box == name:
            try:
                tiff = _Tiff(reader, at)
                part |= tiff.tags(tiff.directory(tiff.first)[0], wanted)
            except ValueError:
                continue


def _boxes(reader: _Reader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of what the boxes between two places hold. Raises ValueError."""
    for _ in range(_BOXES):
        if start + 8 > end:
            return
        size, kind, header = *struct.unpack(">I4s", reader.at(start, 8)), 8
        if size == 1:
            size, header = struct.unpack(">Q", reader.at(start + 8, 8))[0], 16
        stop = end if size == 0 else start + size
        if stop < start + header or stop > end:
            if kind == b"mdat":  # cut off there: what was before may do
                return
            raise ValueError("a camera's raw file that is cut off or damaged")
        yield kind, start + header, stop
        start = stop


def _jpeg_within(reader: _Reader, start: int, end: int) -> list[tuple[int, int]]:
    """The JPEG that begins in the first bytes of a box."""
    found = reader.at(start, min(64, end - start)).find(b"\xff\xd8\xff")
    return [] if found < 0 else [(start + found, end - start - found)]


def _first_sample(reader: _Reader, start: int, end: int) -> list[tuple[int, int]]:
    """Where the first sample of a track is, by its tables of sizes and chunks."""
    tables: dict[bytes, int] = {}
    places = [(start, end)]
    for path in (b"mdia", b"minf", b"stbl"):
        places = [(at, to) for a, z in places for kind, at, to in _boxes(reader, a, z) if kind == path]
    for a, z in places:
        tables |= {kind: at for kind, at, _ in _boxes(reader, a, z)}
    if b"stsz" not in tables or not {b"co64", b"stco"} & tables.keys():
        return []
    size, count = struct.unpack(">II", reader.at(tables[b"stsz"] + 4, 8))
    if not size and count:
        (size,) = struct.unpack(">I", reader.at(tables[b"stsz"] + 12, 4))
    wide = b"co64" in tables
    number, offset = struct.unpack(
        ">IQ" if wide else ">II", reader.at(tables[b"co64" if wide else b"stco"] + 4, 12 if wide else 8)
    )
    return [(offset, size)] if number else []


def _with_largest(reader: _Reader, preview: RawPreview, places: list[tuple[int, int]]) -> RawPreview:
    """``preview`` with the place of the JPEG of most pixels. Raises ValueError if there is none."""
    best = 0
    for offset, length in places:
        if not offset or not length:
            continue
        if offset >= reader.size:
            raise ValueError("a camera's raw file that is cut off: its preview is behind its end")
        pixels, whole = _jpeg_pixels(reader, offset, offset + length), offset + length <= reader.size
        if not pixels and not whole:
            raise ValueError("a camera's raw file that is cut off within its preview")
        length = min(length, reader.size - offset)
        if pixels > best:
            best, preview.offset, preview.length = pixels, offset, length
    if not best:
        raise ValueError("a camera's raw file without a JPEG preview, which is what is read of them")
    return preview


def _jpeg_pixels(reader: _Reader, start: int, end: int) -> int:
    """Width times height of a JPEG of the kinds that are decoded; 0 for anything else."""
    try:
        if reader.at(start, 2) != b"\xff\xd8":
            return 0
        at = start + 2
        for _ in range(_SEGMENTS):
            filler, marker, length = struct.unpack(">BBH", reader.at(at, 4))
            if filler != 0xFF or at >= end:
                return 0
            if marker == 0xFF:
                at += 1
            elif marker in (0xC0, 0xC1, 0xC2):
                bits, height, width = struct.unpack(">BHH", reader.at(at + 4, 5))
                return width * height if bits == 8 else 0
            elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xD9, 0xDA):
                return 0
            else:
                at += 2 + length
    except ValueError:
        pass
    return 0
