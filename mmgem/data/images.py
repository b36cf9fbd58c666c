"""Any picture a user has -> an RGB image of 8 bits, upright; and the pictures in a folder.

Notable choices. Everything that goes wrong with one picture is one ``ImageError`` with a one-line reason,
so a caller can count, report and skip it. A truncated file is an error: half a photo embeds as something
else. Only the formats in ``FORMATS`` are decoded, whatever the suffix says (Pillow would otherwise start
Ghostscript for an EPS file named ``.jpg``). Colour profiles are ignored, as vision encoders are trained so.
How many pixels are too many is asked of what is decoded: of a JPEG that is decoded smaller, of the smaller
one. What was wrong only now (memory, the disk) is a ``TransientImageError``. Depth and polarity are
:mod:`mmgem.data.pixels`.

Boxes are pixels of the stored, upright image (:func:`image_size`). ``open_image(..., min_side=n)`` may
return a smaller picture: scale boxes by the ratio of the two sizes.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from mmgem.data.camera_raw import RawPreview, find_preview
from mmgem.data.image_kinds import (
    SIGNATURE_BYTES,
    boxed_kind,
    prepare_boxed,
    readable_suffixes,
    starts_as_image,
)
from mmgem.data.pixels import raw_mode, to_rgb
from mmgem.data.records import Media
from mmgem.errors import (
    ImageError,
    MissingFolderError,
    MMGEMError,
    TransientImageError,
    UsageError,
    is_transient,
)
from mmgem.utils.files import open_regular

_log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
RAW = "RAW"
"""The format of a camera's raw file, of which the JPEG in it is read."""

_MAX_JPEG_PIXELS = 1_000_000_000  # as stored; each is read, however small the result

# Photos all the same, which nothing here decodes.
_FOREIGN = frozenset(
    ".heic .heif .hif .avif .jxl .x3f .3fr .iiq .mrw .psd .xcf .svg .eps".split()  # noqa: SIM905
)

# EXIF orientation -> what brings the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, min_side: int | None = None) -> Image.Image:
    """Decode ``source`` to a new upright image of mode RGB.

    ``source`` is a path, the bytes of an image file, a PIL image (its current frame; it is not changed) or
    a uint8 array (H, W), (H, W, 3) or (H, W, 4). The EXIF orientation is applied and all metadata dropped;
    transparency is composited on white; of an animation the first frame is taken. Deep pictures become 8 bits
    by the depth and polarity their file states: :func:`mmgem.data.pixels.to_rgb`.

    ``min_side`` (pixels) makes large JPEG files and bytes cheap: they are decoded at the smallest of the
    scales 1/8, 1/4, 1/2, 1 that keeps both sides at or above ``min_side``. Other sources ignore it. A JPEG
    over Pillow's limit of pixels (``2 * Image.MAX_IMAGE_PIXELS``) is decoded at the largest of the scales
    that is within it, so it may be smaller than :func:`image_size` also without ``min_side``.

    Raises ImageError (missing, empty, truncated, not an image, too many pixels, wrong array),
    TransientImageError (no memory, no right to read it, a fault of the disk) and UsageError (``source`` is
    none of the above, or ``min_side`` is below 1).
    """
    if min_side is not None and min_side < 1:
        raise UsageError(f"min_side must be at least 1 pixel, not {min_side}")
    with header(source) as image:
        if image is not source and isinstance(image, JpegImagePlugin.JpegImageFile):
            scale = _jpeg_scale(image, min_side)
            if scale > 1:
                image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        raw = raw_mode(image)
        image.load()
        rgb = to_rgb(image, raw)
        turn = _TURNS.get(_orientation(image))
        if turn is not None:
            rgb = rgb.transpose(turn)
        rgb.info = {}
        return rgb


def image_header(source: ImageSource) -> tuple[str, tuple[int, int]]:
    """Format (one of ``FORMATS``, or ``RAW``) and ``(width, height)`` in pixels as stored, from the header
    alone: never decodes, so it is the first thing to ask of a picture nobody vouches for. The JPEG of several
    pictures that phones write (MPO) is a JPEG. Raises as :func:`open_image`."""
    with header(source) as image:
        return _format(image), image.size


def decoded_size(source: ImageSource, min_side: int | None = None) -> tuple[int, int]:
    """``(width, height)`` in pixels of what :func:`open_image` has to hold to decode ``source`` with
    ``min_side``, before it is turned; from the header alone. A progressive JPEG is held whole, whatever is
    made of it. Raises as :func:`open_image`."""
    with header(source) as image:
        if image is source or not isinstance(image, JpegImagePlugin.JpegImageFile):
            return image.size
        scale = 1 if image.info.get("progressive") else _jpeg_scale(image, min_side)
        return -(-image.width // scale), -(-image.height // scale)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Return ``(width, height)`` in pixels of the upright image, as ``open_image(source).size`` would be.

    Reads the header only, except for PNG files without early EXIF and turned TIFF files, which Pillow has to
    decode to be sure. Raises as :func:`open_image` does, but does not notice damaged pixels.
    """
    with header(source) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """:func:`image_size` of an image that :func:`header` opened."""
    turned = _orientation(image) >= 5
    if turned and isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()  # turns itself; whether the size before was turned depends on Pillow's version
        turned = False
    width, height = image.size
    return (height, width) if turned else (width, height)


def check_box(box: Sequence[float], size: tuple[int, int]) -> None:
    """Raise ``UsageError`` unless ``box`` is ``x0, y0, x1, y1`` in pixels with some of it inside an upright
    image of ``size``, ``(width, height)``."""
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
        raise UsageError(f"box {tuple(box)} is not x0,y0,x1,y1 with x1 > x0 and y1 > y0")
    width, height = size
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise UsageError(f"box {tuple(box)} lies outside the image of {width} x {height} pixels")


def other_files(
    folder: str | os.PathLike[str], skip: Path | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """How many files under ``folder`` :func:`list_images` leaves out, by suffix, the most first: photos in
    formats that cannot be read here (HEIC without its extra, and the like), and all others that have a
    suffix. Hidden files and folders are skipped, and ``skip``, a folder of our own."""
    skipped = None if skip is None else skip.resolve()
    suffix_counts: Counter[str] = Counter()
    for at, folders, files in os.walk(Path(folder).resolve()):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(at, name) != skipped]
        suffix_counts.update(Path(name).suffix.lower() for name in files if not name.startswith("."))
    counts = [(s, n) for s, n in sorted(suffix_counts.items(), key=lambda item: (-item[1], item[0])) if s]
    read = readable_suffixes()
    foreign = {suffix: count for suffix, count in counts if suffix in _FOREIGN and suffix not in read}
    others = {s: count for s, count in counts if s not in _FOREIGN and s not in read}
    return foreign, others


def list_images(
    folder: str | os.PathLike[str], exclude: Sequence[str] = (), more: tuple[str, ...] = ()
) -> list[Path]:
    """List the files under ``folder`` whose suffix is one of :func:`readable_suffixes` (any case) or of
    ``more``, and those without a suffix that begin as images do; sorted by path.

    What matches a pattern of ``exclude``, as a shell matches, by its name or by its path in ``folder``, is
    left out, folders with all that is in them. Hidden files and folders are skipped. Linked files and folders
    are followed, each folder once (under its real place if that is inside), never up to a parent of
    ``folder``. Subfolders that may not be read are skipped with a warning in the log. Raises UsageError if
    ``folder`` is missing or not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFolderError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    real_root, suffixes = root.resolve(), readable_suffixes()
    images: list[Path] = []
    visited: set[tuple[int, int]] = set()
    pending, linked = [root], list[Path]()
    while pending or linked:
        current = pending.pop() if pending else linked.pop(0)
        try:
            stat = current.stat()
            if (stat.st_dev, stat.st_ino) in visited:
                continue
            visited.add((stat.st_dev, stat.st_ino))
            with os.scandir(current) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if current == root:
                raise UsageError(f"{root}: {error.strerror}") from error
            _log.warning("%s: skipped, %s", current, error.strerror)
            continue
        for entry in entries:
            if exclude and _excluded(entry, root, exclude):
                continue
            if _is(entry, "dir"):
                if not entry.is_symlink():
                    pending.append(Path(entry.path))
                elif not real_root.is_relative_to(Path(entry.path).resolve()):
                    linked.append(Path(entry.path))
            elif _named_as_image(entry, suffixes + more) and _is(entry, "file"):
                images.append(Path(entry.path))
    return sorted(images)


def _excluded(entry: os.DirEntry[str], root: Path, patterns: Sequence[str]) -> bool:
    path = Path(entry.path).relative_to(root).as_posix()
    return any(fnmatch(entry.name, pattern) or fnmatch(path, pattern) for pattern in patterns)


def _named_as_image(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    """Whether a file is an image by its suffix or, if it has none, by its first bytes."""
    if "." in entry.name:
        return entry.name.lower().endswith(suffixes)
    try:
        with open_regular(entry.path) as file:
            return starts_as_image(file.read(SIGNATURE_BYTES))
    except OSError:
        return False


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Whether an entry is (or links to) a dir or file; a link to itself is neither."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def attempt(function: Callable[[list[S]], Sequence[T]], images: list[S]) -> list[T | ImageError]:
    """What ``function`` makes of each image, or its error: a batch with a bad one, or too large for the
    memory, is halved until that one is alone."""
    try:
        return list(function(images))
    except ImageError as error:
        if len(images) == 1:
            return [error]
    except MemoryError:
        if len(images) == 1:
            name = str(images[0]) if isinstance(images[0], Media) else _name(images[0])
            return [TransientImageError(f"{name}: could not be read now: out of memory")]
    middle = len(images) // 2
    return attempt(function, images[:middle]) + attempt(function, images[middle:])


@cache
def _formats() -> list[str]:
    """``FORMATS`` without those this build of Pillow lacks, and those that are opened by themselves."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN and name != "HEIF"]


@contextmanager
def header(source: ImageSource) -> Iterator[Image.Image]:
    """Open ``source`` without decoding it; any failure inside the block becomes an ImageError that names
    it, as :func:`open_image` raises it."""
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            yield source
        elif isinstance(source, np.ndarray):
            yield _from_array(source)
        else:
            with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
                yield _open_file(file)
    except MMGEMError:
        raise
    except Exception as error:  # decoders raise nearly every built-in exception on damaged files
        reason = " ".join(_reason(error).split())
        if is_transient(error):
            raise TransientImageError(f"{name}: could not be read now: {reason}") from error
        raise ImageError(f"{name}: {reason}") from error


def _name(source: object) -> str:
    """What messages call ``source``. Raises UsageError for what is no image."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    kinds = {bytes: "image bytes", np.ndarray: "image array", Image.Image: "PIL image"}
    for kind, name in kinds.items():
        if isinstance(source, kind):
            return name
    raise UsageError(f"an image is a path, bytes, a PIL image or a uint8 array, not {type(source).__name__}")


def _open_file(file: BinaryIO) -> Image.Image:
    """What ``Image.open`` does, of a camera's raw file with the JPEG in it."""
    start = file.read(SIGNATURE_BYTES)
    if not start:
        raise ValueError("is empty")
    if start[:3] == b"\xff\xd8\xff" and "JPEG" in _formats():
        return _open_jpeg(file)
    preview = find_preview(file)
    if preview is None:
        kind = boxed_kind(start)
        prepare_boxed(kind)
        file.seek(0)
        return Image.open(file, formats=["HEIF"] if kind == "HEIF" else _formats())
    file.seek(preview.offset)
    image = _open_jpeg(io.BytesIO(file.read(preview.length)))
    _add_tags(image, preview)
    image.format = RAW
    return image


def _add_tags(image: Image.Image, preview: RawPreview) -> None:
    """Let the EXIF of an image, the JPEG of a raw file, say what the raw file says."""
    exif = Image.Exif()
    for tag, value in preview.main.items():
        exif[tag] = value
    for directory, tags in ((ExifTags.IFD.Exif, preview.exif), (ExifTags.IFD.GPSInfo, preview.gps)):
        if tags:
            exif[directory] = tags
    if len(exif):
        image.getexif().load(exif.tobytes())


def _open_jpeg(file: BinaryIO) -> Image.Image:
    """A JPEG without Pillow's limit on the pixels that are stored: ours is that of what is decoded of it."""
    file.seek(0)
    try:
        image: Image.Image = Image.OPEN["JPEG"][0](file, "")
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise UnidentifiedImageError from error
    pixels, limit = image.width * image.height, _pixel_limit()
    held = limit if image.info.get("progressive") else 64 * limit
    if pixels > min(held, max(limit, _MAX_JPEG_PIXELS)):
        raise Image.DecompressionBombError(f"{image.width} x {image.height}")
    return image


def _pixel_limit() -> float:
    """The pixels beyond which Pillow refuses to open a picture; programs may have set it."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _jpeg_scale(image: Image.Image, min_side: int | None) -> int:
    """1, 2, 4 or 8: what the sides of a JPEG that is not decoded yet are divided by."""
    shrink = 1 if min_side is None else min(image.size) // min_side
    scale = max(s for s in (1, 2, 4, 8) if s <= max(1, shrink))
    while scale < 8 and (image.width // scale) * (image.height // scale) > _pixel_limit():
        scale *= 2
    return scale


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else image.format or ""


def _reason(error: Exception) -> str:
    """What to tell the user about a decoding failure."""
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(_formats())
        return (
            f"not an image in a known format ({known}), or its header is damaged or of a kind not read here"
        )
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too many pixels to decode safely: {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; damaged EXIF counts as upright, the pixels being fine."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TURNS else 1
    except Exception as error:  # the EXIF parser raises many built-in exceptions
        if is_transient(error):
            raise
        return 1


def _from_array(array: np.ndarray) -> Image.Image:
    """Array (H, W), (H, W, 3) or (H, W, 4) uint8 -> image of mode L, RGB or RGBA."""
    if array.dtype != np.uint8:
        raise ValueError(f"must be uint8, not {array.dtype}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    if array.size == 0:
        raise ValueError(f"has no pixels: {array.shape}")
    return Image.fromarray(array)
