"""Camera raw files, small and made by hand: what cameras lay out, around a JPEG preview."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
_SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}
DATE, MAKE, MODEL = "2021:06:05 12:34:56", "Toy", "Toy R5"


def jpeg(width: int = 96, height: int = 64, seed: int = 0, **options: Any) -> bytes:
    """A picture of four colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
    picture.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def lossless() -> bytes:
    """What a sensor's data begin with: a JPEG of a kind that is not decoded, stated as very large."""
    frame = struct.pack(">BBHBHHB3B", 0xFF, 0xC3, 11, 14, 4000, 6000, 1, 1, 0x11, 0)
    return b"\xff\xd8" + frame + b"\xff\xda" + bytes(64)


class Tiff:
    """Writes directories one after the other, their values behind them."""

    def __init__(self, order: str = "<", magic: bytes = b"*\0", mark: bytes = b"") -> None:
        self.order = order
        magic = magic if order == "<" else magic[::-1]
        self.data = bytearray((b"II" if order == "<" else b"MM") + magic + bytes(4) + mark)

    def put(self, data: bytes) -> int:
        """Append bytes; where they are."""
        if len(self.data) % 2:
            self.data += b"\0"
        self.data += data
        return len(self.data) - len(data)

    def directory(self, fields: dict[int, tuple[int, Any]], following: int = 0) -> int:
        """Append a directory of ``{tag: (type, values)}``; where it is."""
        entries = b""
        for tag, (kind, values) in sorted(fields.items()):
            if isinstance(values, bytes):
                data = values
            else:
                flat = values if isinstance(values, tuple) else (values,)
                letter = {SHORT: "H", LONG: "I", RATIONAL: "I", BYTE: "B"}[kind]
                data = struct.pack(f"{self.order}{len(flat)}{letter}", *flat)
            count = len(data) // _SIZES[kind]
            value = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(f"{self.order}I", self.put(data))
            entries += struct.pack(f"{self.order}HHI", tag, kind, count) + value
        return self.put(
            struct.pack(f"{self.order}H", len(fields)) + entries + struct.pack(f"{self.order}I", following)
        )

    def first(self, offset: int) -> bytes:
        """Say where the first directory is; the whole file."""
        self.data[4:8] = struct.pack(f"{self.order}I", offset)
        return bytes(self.data)

    def facts(self, orientation: int = 6) -> dict[int, tuple[int, Any]]:
        """Camera, orientation, date and place, as fields of a first directory."""
        exif = self.directory({36867: (ASCII, DATE.encode() + b"\0")})
        gps = self.directory(gps_fields())
        return {
            271: (ASCII, MAKE.encode() + b"\0"),
            272: (ASCII, MODEL.encode() + b"\0"),
            274: (SHORT, orientation),
            34665: (LONG, exif),
            34853: (LONG, gps),
        }


def gps_fields() -> dict[int, tuple[int, Any]]:
    """48.5 degrees north, 11.25 degrees west."""
    return {
        1: (ASCII, b"N\0"),
        2: (RATIONAL, (48, 1, 30, 1, 0, 1)),
        3: (ASCII, b"W\0"),
        4: (RATIONAL, (11, 1, 15, 1, 0, 1)),
    }


def cr2(preview: bytes) -> bytes:
    """Canon: the photo as a strip of the first directory, the sensor's data as lossless JPEG in the last."""
    tiff = Tiff("<", mark=b"CR\x02\0" + bytes(4))
    strip, sensor, small = tiff.put(preview), tiff.put(lossless()), tiff.put(jpeg(16, 12))
    last = tiff.directory({259: (SHORT, 6), 273: (LONG, sensor), 279: (LONG, len(lossless()))})
    thumb = tiff.directory({513: (LONG, small), 514: (LONG, len(jpeg(16, 12)))}, last)
    first = {259: (SHORT, 6), 273: (LONG, strip), 279: (LONG, len(preview)), **tiff.facts()}
    return tiff.first(tiff.directory(first, thumb))


def nef(preview: bytes, order: str = ">") -> bytes:
    """Nikon: a thumbnail without compression first, preview and sensor in directories below."""
    tiff = Tiff(order)
    place, small, sensor = tiff.put(preview), tiff.put(bytes(4 * 3 * 3)), tiff.put(bytes(100))
    photo = tiff.directory({513: (LONG, place), 514: (LONG, len(preview))})
    below = tiff.directory({259: (SHORT, 34713), 262: (SHORT, 32803), 273: (LONG, sensor), 279: (LONG, 100)})
    first = {
        256: (LONG, 4), 257: (LONG, 3), 258: (SHORT, (8, 8, 8)), 259: (SHORT, 1), 262: (SHORT, 2),
        273: (LONG, small), 277: (SHORT, 3), 278: (LONG, 3), 279: (LONG, 36), 330: (LONG, (photo, below)),
    }  # fmt: skip
    return tiff.first(tiff.directory({**first, **tiff.facts()}))


def arw(preview: bytes) -> bytes:
    """Sony: the preview in the first directory, the thumbnail in the next."""
    tiff = Tiff("<")
    place, small = tiff.put(preview), tiff.put(jpeg(16, 12))
    below = tiff.directory({259: (SHORT, 32767), 262: (SHORT, 32803)})
    thumb = tiff.directory({513: (LONG, small), 514: (LONG, len(jpeg(16, 12)))})
    first = {259: (SHORT, 6), 330: (LONG, below), 513: (LONG, place), 514: (LONG, len(preview))}
    return tiff.first(tiff.directory({**first, **tiff.facts()}, thumb))


def dng(preview: bytes) -> bytes:
    """Adobe: said by its version, the preview as a strip below."""
    tiff = Tiff("<")
    place = tiff.put(preview)
    photo = tiff.directory({259: (SHORT, 7), 262: (SHORT, 6), 273: (LONG, place), 279: (LONG, len(preview))})
    first = {330: (LONG, photo), 50706: (BYTE, (1, 4, 0, 0))}
    return tiff.first(tiff.directory({**first, **tiff.facts()}))


def orf(preview: bytes) -> bytes:
    """Olympus: the preview by the settings in the maker's note, which counts from its own start."""
    tiff = Tiff("<", magic=b"RO")
    settings = 12 + 2 + 12 + 4
    place = settings + 2 + 24 + 4
    note = b"OLYMPUS\0II\x03\0" + struct.pack("<HHHIII", 1, 0x2020, 13, 1, settings, 0)
    note += struct.pack("<H", 2)
    note += struct.pack("<HHII", 0x101, LONG, 1, place) + struct.pack("<HHII", 0x102, LONG, 1, len(preview))
    note += bytes(4) + preview
    facts = tiff.facts()
    exif = tiff.directory({36867: (ASCII, DATE.encode() + b"\0"), 37500: (UNDEFINED, note)})
    return tiff.first(tiff.directory({**facts, 34665: (LONG, exif)}))


def rw2(preview: bytes) -> bytes:
    """Panasonic: the preview as the value of a field."""
    tiff = Tiff("<", magic=b"U\0")
    return tiff.first(tiff.directory({46: (UNDEFINED, preview), **tiff.facts()}))


def raf(preview: bytes) -> bytes:
    """Fuji: a table at its start; EXIF is the preview's own."""
    head = b"FUJIFILMCCD-RAW 0201FF129502Toy".ljust(84, b"\0")
    return head + struct.pack(">II", 160, len(preview)) + bytes(68) + preview + bytes(200)


def cr3(preview: bytes) -> bytes:
    """Canon's newer: boxes, the photo as the sample of a track."""
    photo_at = 0

    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(data), kind) + data

    def whole() -> bytes:
        small = jpeg(16, 12)
        main, exif, place = Tiff("<"), Tiff("<"), Tiff("<")
        facts = {tag: value for tag, value in main.facts().items() if tag < 34665}
        canon = b"".join(
            (
                box(b"CMT1", main.first(main.directory(facts))),
                box(b"CMT2", exif.first(exif.directory({36867: (ASCII, DATE.encode() + b"\0")}))),
                box(b"CMT4", place.first(place.directory(gps_fields()))),
                box(b"THMB", struct.pack(">IHHIHH", 0, 16, 12, len(small), 1, 0) + small),
            )
        )
        sizes = box(b"stsz", struct.pack(">III", 0, len(preview), 1))
        table = box(b"stbl", sizes + box(b"co64", struct.pack(">IIQ", 0, 1, photo_at)))
        track = box(b"trak", box(b"mdia", box(b"minf", table)))
        header = box(b"uuid", bytes.fromhex("85c0b687820f11e08111f4ce462b6a48") + canon)
        middle = jpeg(32, 24)
        shown = box(b"PRVW", struct.pack(">IHHHHI", 0, 1, 32, 24, 1, len(middle)) + middle)
        more = box(b"uuid", bytes.fromhex("eaf42b5e1c984b88b9fbb7dc406e4d16") + bytes(8) + shown)
        start = box(b"ftyp", b"crx \0\0\0\1crx isom") + box(b"moov", header + track) + more
        return start + box(b"mdat", preview)

    photo_at = len(whole()) - len(preview)
    return whole()


MAKERS = {"cr2": cr2, "cr3": cr3, "nef": nef, "arw": arw, "dng": dng, "orf": orf, "rw2": rw2}
"""By suffix, what has EXIF of its own; RAF's is the JPEG's."""
