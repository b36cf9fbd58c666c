"""Kinds of pictures that need more than Pillow as it comes: HEIC, AVIF, camera raw; and what a file is by its
first bytes."""

from __future__ import annotations

import errno
from functools import cache
from importlib.util import find_spec

from PIL import Image

from mmgem.data.camera_raw import RAW_SIGNATURES, RAW_SUFFIXES

HEIF_SUFFIXES = (".heic", ".heif", ".hif")

# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", *HEIF_SUFFIXES, *RAW_SUFFIXES,
)

# First bytes of files that are images for sure.
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n", *RAW_SIGNATURES,
)
_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
# fmt: on

_NEEDS_HEIF = 'pip install "mmgem[heif]"'
_NEEDS_AVIF = 'pip install "pillow>=11.3"'


class MissingDecoderError(OSError):
    """A picture that needs a package that is not installed: no verdict on its bytes."""

    def __init__(self, problem: str):
        super().__init__(errno.ENOSYS, problem)


SIGNATURE_BYTES = 64
"""How many first bytes of a file tell what it is."""


def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of files that can be read with what is installed."""
    lacking = (*(() if _finds_heif() else HEIF_SUFFIXES), *(() if reads_avif() else (".avif",)))
    return tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in lacking)


def install_hint(suffix: str) -> str:
    """The command that makes photos of a suffix readable; empty if none does."""
    return _NEEDS_HEIF if suffix in HEIF_SUFFIXES else _NEEDS_AVIF if suffix == ".avif" else ""


def starts_as_image(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is an image that can be read with what is installed."""
    if start.startswith(_SIGNATURES) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
        return True
    boxed = boxed_kind(start)
    return boxed == "CR3" or (boxed == "AVIF" and reads_avif()) or (boxed == "HEIF" and _finds_heif())


def boxed_kind(start: bytes) -> str:
    """``HEIF``, ``AVIF`` or ``CR3`` for the first bytes of a file of boxes (ISO 14496-12); empty: none."""
    if start[4:8] != b"ftyp":
        return ""
    brand, size = start[8:12], int.from_bytes(start[:4], "big")
    if brand == b"crx ":
        return "CR3"
    compatible = [start[at : at + 4] for at in range(16, min(size, len(start)), 4)]
    if brand in _AVIF or (brand in (b"mif1", b"msf1") and set(_AVIF) & set(compatible)):
        return "AVIF"
    return "HEIF" if brand in _HEIF else ""


@cache
def reads_avif() -> bool:
    """Whether this build of Pillow decodes AVIF."""
    Image.init()
    return "AVIF" in Image.OPEN


def _finds_heif() -> bool:
    return find_spec("pillow_heif") is not None


def prepare_boxed(kind: str) -> None:
    """Let Pillow read files of boxes of this ``kind``. Raises MissingDecoderError, which says what to
    install."""
    if kind == "AVIF" and not reads_avif():
        raise MissingDecoderError(f"is AVIF, which this Pillow does not read: {_NEEDS_AVIF}")
    if kind == "HEIF":
        _register_heif()


@cache
def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise MissingDecoderError(f"is HEIC; to read it: {_NEEDS_HEIF}") from error
    register_heif_opener()
