"""Photos of requests: from uploads, data URIs, addresses or the index, checked before they are decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes

from PIL import Image

from mmgem.config import Preprocessing
from mmgem.data.camera_raw import find_preview
from mmgem.data.clips import middle_frame
from mmgem.data.images import RAW, decoded_size, image_header, image_size, open_image
from mmgem.data.moments import Moment
from mmgem.data.records import Box
from mmgem.errors import ImageError, UsageError
from mmgem.inference.images import open_for_sizes
from mmgem.inference.pyramid import input_sizes
from mmgem.serve.errors import APIError
from mmgem.serve.limits import THUMB, Limits

_DATA = re.compile(
    r"\s*data:\s*[\w.+-]*/?[\w.+-]*(?:\s*;\s*[\w.+-]+=[^;,]*)*\s*;\s*base64\s*,", re.IGNORECASE
)
_WHITE_SPACE = b" \t\r\n\f\v"
_LARGEST_USE = THUMB  # pixels a side: no request needs more of a photo
_MAX_REDUCTION = 8  # how many times the limit a JPEG may have that is decoded at a reduced scale
_MAX_JPEG_SCANS = 200  # of a JPEG; each is another pass over all its pixels, and real ones have a dozen


_FULL = 1 << 16  # pixels: as large as it is


class FrameCache(Protocol):
    """JPEGs by a key, remembered for a while."""

    def get(self, key: str, /) -> bytes | None: ...
    def put(self, key: str, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of a photo in a form."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PhotoSource:
    """A photo that may be decoded. ``key`` is equal for equal photos; ``index_id`` is its id if it is of the
    index."""

    data: bytes | Path
    key: str
    index_id: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedPhoto:
    """A decoded photo, and the size of the one it was decoded from, in pixels."""

    image: Image.Image
    size: tuple[int, int]

    def to_decoded(self, box: Box) -> Box:
        """A box of the photo -> the same of :attr:`image`."""
        across, down = self.image.width / self.size[0], self.image.height / self.size[1]
        return box[0] * across, box[1] * down, box[2] * across, box[3] * down

    def to_original(self, box: Box) -> Box:
        """A box of :attr:`image` -> the same of the photo."""
        across, down = self.size[0] / self.image.width, self.size[1] / self.image.height
        x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
        return round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)


def is_data_uri(image: str) -> bool:
    """Whether a text is a data URI, perhaps a damaged one, and not an address."""
    return image[:256].lstrip()[:5].lower() == "data:"


def load_sent_photo(image: str | Upload, limits: Limits) -> PhotoSource:
    """A photo somebody sent: bytes, or a data URI. Raises ``APIError``, and ``ImageError`` if it is none."""
    if isinstance(image, Upload):
        data = image.data
    elif match := _DATA.match(image[:256]):
        data = _decode_base64(image[match.end() :])
    else:
        message = "must be a data URI (data:image/...;base64,...)"
        if not is_data_uri(image):
            message += "; addresses are not fetched here"
        raise APIError(422, "bad_image", message, "image")
    _check(data, limits)
    return PhotoSource(data, hashlib.blake2b(data, digest_size=16).hexdigest())


def _decode_base64(text: str) -> bytes:
    """As browsers decode data URIs: white space (mail programs break lines), ``%xx`` and missing padding are
    fine. Raises ``APIError``."""
    try:
        data = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
        data = data.translate(None, _WHITE_SPACE)
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise APIError(422, "bad_image", "the data URI is not valid base64", "image") from error


def load_indexed_photo(
    path: Path, photo: str, limits: Limits, moment: Moment | None = None, frames: FrameCache | None = None
) -> PhotoSource:
    """A photo of the index; of a ``moment`` its middle frame, looked for in ``frames`` first. Raises
    ``APIError`` (404) if its file is gone or is no photo any more."""
    try:
        stat = path.stat()
        key = f"{photo} {stat.st_size} {stat.st_mtime_ns}"
        if moment is not None:
            return PhotoSource(_frame(path, key, moment, frames), key, photo)
        _check(path, limits)
    except (OSError, ImageError, UsageError) as error:
        raise photo_gone(photo) from error
    return PhotoSource(path, key, photo)


def _frame(path: Path, key: str, moment: Moment, frames: FrameCache | None) -> bytes:
    """The middle frame of a moment as a JPEG in its own size."""
    jpeg = None if frames is None else frames.get(key)
    if jpeg is None:
        buffer = io.BytesIO()
        middle_frame(path, moment, _FULL).save(buffer, "JPEG", quality=92)
        jpeg = buffer.getvalue()
        if frames is not None:
            frames.put(key, jpeg)
    return jpeg


def photo_gone(photo: str) -> APIError:
    """The file of a photo of the index cannot be read."""
    return APIError(
        404, "not_found", f"photo {photo} is in the index, but its file is gone or damaged", "photo"
    )


def decode_for_boxes(photo: PhotoSource, prep: Preprocessing) -> DecodedPhoto:
    """Decode a photo large enough for boxes of any size. Raises ``ImageError``."""
    image = open_for_sizes(input_sizes(prep), photo.data)
    return DecodedPhoto(image, photo_size(photo, image))


def photo_size(photo: PhotoSource, decoded: Image.Image | None = None) -> tuple[int, int]:
    """Width and height in pixels of the upright photo; ``decoded`` saves decoding it for that."""
    if decoded is None or image_header(photo.data)[0] in ("JPEG", RAW):  # the only ones decoded smaller
        return image_size(photo.data)
    return decoded.size


def thumbnail(photo: PhotoSource, side: int) -> bytes:
    """A JPEG whose longest side is at most ``side`` pixels. Raises ``ImageError``."""
    image = open_image(photo.data, min_side=side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def clip_media_type(path: Path) -> str:
    """The MIME type of a video or an animated picture, by its suffix."""
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def media_type(photo: PhotoSource) -> str:
    """The MIME type of the file, by its content."""
    return Image.MIME.get(image_header(photo.data)[0], "application/octet-stream")


def _check(data: bytes | Path, limits: Limits) -> None:
    image_format, (width, height) = image_header(data)
    decoded_width, decoded_height = decoded_size(data, _LARGEST_USE)
    most = limits.megapixels * 1e6
    if decoded_width * decoded_height > most or width * height > _MAX_REDUCTION * most:
        message = f"{width} x {height} pixels are over {limits.megapixels:g} megapixels"
        raise APIError(413, "too_many_pixels", message, "image")
    if isinstance(data, bytes) and _scans(image_format, data) > _MAX_JPEG_SCANS:
        raise APIError(422, "bad_image", f"a JPEG of more than {_MAX_JPEG_SCANS} scans", "image")


def _scans(image_format: str, data: bytes) -> int:
    """How many scans a JPEG may have, or that in a camera's raw file; 0: it is none."""
    if image_format == RAW and (preview := find_preview(io.BytesIO(data))) is not None:
        data = data[preview.offset : preview.offset + preview.length]
    elif image_format != "JPEG":
        return 0
    return data.count(b"\xff\xda")


__all__ = [
    "DecodedPhoto",
    "PhotoSource",
    "Upload",
    "clip_media_type",
    "decode_for_boxes",
    "is_data_uri",
    "load_indexed_photo",
    "load_sent_photo",
    "media_type",
    "photo_gone",
    "photo_size",
    "thumbnail",
]
