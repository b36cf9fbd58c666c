"""What a file says of its own pixels: depth, polarity, several pictures in one file; too many of them."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from mmgem.data.images import decoded_size, image_header, image_size, open_image
from mmgem.errors import ImageError

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
"""Shares of white."""


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    sample_format: int = 1,
    order: str = "<",
    extra: int = -1,
) -> bytes:
    """An uncompressed TIFF of ``samples`` (H, W) or (H, W, C), written by hand from the specification."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    if bits in (8, 16, 32):
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        pixels = samples.astype(f"{order}{kind}{bits // 8}").tobytes()
    else:  # rows of packed bits, each row to a whole byte
        rows = []
        for row in samples.reshape(height, -1):
            text = "".join(f"{int(value):0{bits}b}" for value in row)
            text += "0" * (-len(text) % 8)
            rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
        pixels = b"".join(rows)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(pixels))]
    if extra >= 0:
        tags.append((338, 3, 1, extra))
    tags.append((339, 3, channels, sample_format))
    start = 8 + len(pixels) + len(pixels) % 2
    after = start + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, kind, count, value in tags:
        entry = struct.pack(f"{order}HHI", tag, kind, count)
        if kind == 3 and count > 2:
            entry += struct.pack(f"{order}I", after + len(tail))
            tail += struct.pack(f"{order}{count}H", *[value] * count)
        elif kind == 3:
            entry += struct.pack(f"{order}2H", value, value if count == 2 else 0)
        else:
            entry += struct.pack(f"{order}I", value)
        entries += entry
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    return head + pixels + b"\0" * (len(pixels) % 2) + directory + tail


def png(samples: np.ndarray, bits: int, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG of ``samples`` (H, W) or (H, W, C) of ``bits``; ``transparent`` is its tRNS chunk."""
    height, width = samples.shape[:2]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = []
    for row in samples.reshape(height, -1):
        if bits >= 8:
            data = row.astype(">u2" if bits == 16 else "u1").tobytes()
        else:
            text = "".join(f"{int(value):0{bits}b}" for value in row)
            text += "0" * (-len(text) % 8)
            data = int(text, 2).to_bytes(len(text) // 8, "big")
        rows.append(b"\0" + data)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    if transparent:
        head += chunk(b"tRNS", transparent)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


def pgm(values: np.ndarray, most: int, magic: str = "P5") -> bytes:
    body = values.astype(">u2" if most > 255 else "u1").tobytes()
    return f"{magic} {values.shape[1]} {values.shape[0]} {most}\n".encode() + body


def encode(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(open_image(data)).astype(int)


def close(data: bytes, expected: np.ndarray, within: float = 1) -> None:
    """``expected``: shares of white, (H, W) or (H, W, 3)."""
    wanted = np.round(255 * (expected[..., None] if expected.ndim == 2 else expected))
    assert np.abs(read(data) - wanted).max() <= within


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_tiff_by_its_tags(order, bits, white_is_zero):
    most = 2**bits - 1
    stored = np.round(RAMP * most).astype(np.uint64)
    data = tiff(most - stored if white_is_zero else stored, bits, 0 if white_is_zero else 1, order=order)
    unread = {(12, ">", False), (32, ">", False), (16, ">", True)}
    if (bits, order, white_is_zero) in unread or (white_is_zero and bits in (12, 32)):
        with pytest.raises(ImageError, match="of a kind not read here"):  # refused, not read wrongly
            open_image(data)
        return
    close(data, stored / most)


def test_dark_deep_pictures_stay_dark():
    dark = RAMP * 200
    close(tiff(dark, 16, 1), np.floor(dark) / 65535)
    close(tiff(dark, 12, 1), np.floor(dark) / 4095)
    close(tiff(dark, 16, 1, 2), np.floor(dark) / 32767)
    close(pgm(dark, 65535), np.floor(dark) / 65535)
    close(pgm(dark, 1023), np.floor(dark) / 1023)
    close(png(np.floor(dark), 16, 0), np.floor(dark) / 65535)


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_and_float_tiff(order):
    close(tiff(np.round(RAMP * 32767), 16, 1, 2, order), RAMP)
    below = np.array([[-32768, -1, 0, 32767]])
    close(tiff(below, 16, 1, 2, order), np.array([[0, 0, 0, 1.0]]))
    close(tiff(RAMP, 32, 1, 3, order), RAMP)
    close(tiff(1 - RAMP, 32, 0, 3, order), RAMP)
    close(tiff(RAMP * 65535, 32, 0, 3, order), 1 - RAMP)


def test_unsigned_32_bits_are_not_negative():
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint64)
    close(tiff(values, 32, 1), np.array([[0, 0.5, 1]]))


@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_tiff_of_16_bits(order):
    colours = np.stack([RAMP, 1 - RAMP, RAMP**2], -1)
    deep = np.round(colours * 65535)
    close(tiff(deep, 16, 2, order=order), colours)
    half = np.concatenate([deep, np.full((3, 4, 1), 32768)], -1)
    close(tiff(half, 16, 2, order=order, extra=2), (colours + 1) / 2, 2)
    close(tiff(half, 16, 2, order=order, extra=0), colours)
    cmyk = np.zeros((3, 4, 4))
    cmyk[..., 3] = np.round((1 - RAMP) * 65535)
    close(tiff(cmyk, 16, 5, order=order), RAMP)


def test_png_of_16_bits():
    colours = np.stack([RAMP, 1 - RAMP, RAMP**2], -1)
    deep, alpha = np.round(colours * 65535), np.full((3, 4, 1), 32768)
    close(png(deep, 16, 2), colours)
    close(png(np.concatenate([deep, alpha], -1), 16, 6), (colours + 1) / 2, 2)
    close(png(np.concatenate([deep[..., :1], alpha], -1), 16, 4), (RAMP + 1) / 2, 2)


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 3), (4, 15), (8, 255), (16, 65535)])
def test_the_transparent_grey_of_a_png_is_in_its_own_depth(bits, most):
    values = np.array([[0, most]])
    assert read(png(values, bits, 0, struct.pack(">H", 0)))[0, :, 0].tolist() == [255, 255]
    assert read(png(values, bits, 0, struct.pack(">H", most)))[0, :, 0].tolist() == [0, 255]
    if bits in (2, 4):
        third = np.array([[0, most // 3]])
        assert read(png(third, bits, 0, struct.pack(">H", most // 3)))[0, :, 0].tolist() == [0, 255]


def test_the_transparent_colour_of_a_deep_png():
    values = np.array([[[0x1234, 0x2345, 0x3456], [0x4567, 0x5678, 0x6789]]])
    clear = read(png(values, 16, 2, struct.pack(">3H", 0x1234, 0x2345, 0x3456)))
    assert clear[0].tolist() == [[255] * 3, [0x45, 0x56, 0x67]]


def test_pgm_and_ppm_by_their_largest_value():
    for most in (100, 255, 1000, 4095, 65535):
        values = np.round(RAMP * most)
        close(pgm(values, most), values / most)
        colours = np.stack([values, values[::-1], values], -1)
        close(pgm(colours, most, "P6"), colours / most)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_jpeg_2000_of_16_bits():
    deep = Image.fromarray(np.round(RAMP * 65535).astype(np.uint16))
    close(encode(deep, "JPEG2000"), RAMP)
    dark = np.array([[0, 100, 200]], np.uint16)
    assert read(encode(Image.fromarray(dark), "JPEG2000")).max() <= 1


def test_cielab_tiff():
    stored = np.array([[[255, 0, 0], [0, 0, 0], [128, 0, 0], [140, 30, 40], [140, 226, 216], [80, 246, 20]]])
    light, a, b = np.moveaxis((stored - [0, 256, 256] * (stored > 127))[0] / 1.0, -1, 0)
    light = (stored[0, :, 0] / 2.55 + 16) / 116
    shares = np.stack([light + a / 500, light, light - b / 200])
    xyz = np.where(shares > 6 / 29, shares**3, 3 * (6 / 29) ** 2 * (shares - 4 / 29))
    xyz *= np.array([[0.9642], [1.0], [0.8249]])  # the white point of D50
    to_linear = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = np.clip(np.array(to_linear) @ xyz, 0, 1).T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    close(tiff(stored, 8, 8), srgb[None], 3)


def test_cmyk_jpeg_with_adobe_marker_and_as_ycck():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encode(image, "JPEG")
    at = data.index(b"Adobe")
    ycck = data[: at + 11] + b"\x02" + data[at + 12 :]
    assert data[at + 11] == 0
    assert np.abs(read(data)[0, 0] - [255, 0, 0]).max() <= 3
    # The stored samples 255, 0, 0 taken as Y, Cb, Cr are 255 - 179, 255 (clipped) and 255 - 227 of ink.
    assert np.abs(read(ycck)[0, 0] - [179, 0, 227]).max() <= 3


# --- several pictures in one file


def mpo(size=(640, 480), orientation=1) -> bytes:
    y, x = np.mgrid[: size[1], : size[0]]
    first = Image.fromarray(np.stack([x % 256, y % 256, x * 0 + 90], -1).astype(np.uint8))
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", size, "red")], exif=tags)


def test_a_photo_of_several_pictures_is_a_jpeg():
    data = mpo()
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert image_header(data) == ("JPEG", (640, 480))
    small = open_image(data, min_side=100)
    assert small.size == (160, 120) and image_size(data) == (640, 480)
    assert small.getpixel((80, 60))[2] == pytest.approx(90, abs=8)  # the first of them


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_mpo_is_turned(orientation):
    data = mpo(orientation=orientation)
    size = (640, 480) if orientation == 1 else (480, 640)
    assert image_size(data) == open_image(data).size == size
    assert open_image(data, min_side=240).size == (size[0] // 2, size[1] // 2)


# --- more pixels than the limit


def test_the_limit_is_of_what_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # 10,000 are refused by Pillow
    image = Image.new("RGB", (400, 200), (10, 200, 30))
    data = encode(image, "JPEG")
    assert image_size(data) == (400, 200) and image_header(data)[1] == (400, 200)
    assert (
        open_image(data, min_side=100).size == decoded_size(data, 100) == (100, 50)
    )  # 200 x 100 is too many
    assert open_image(data, min_side=25).size == decoded_size(data, 25) == (50, 25)
    assert open_image(data).size == (100, 50)  # the largest scale within the limit
    for fmt in ("PNG", "TIFF", "BMP"):
        with pytest.raises(ImageError, match="too many pixels"):
            open_image(encode(image, fmt), min_side=25)
    with pytest.raises(ImageError, match="too many pixels"):  # held whole, whatever is made of it
        open_image(encode(image, "JPEG", progressive=True), min_side=25)


def test_no_jpeg_is_read_beyond_the_absolute_limit(monkeypatch):
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 40_000, 40_000)
    for call in (open_image, image_size, image_header):
        with pytest.raises(ImageError, match="too many pixels"):
            call(bytes(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit at all, by the program's own wish
    assert image_size(bytes(data)) == (40_000, 40_000)


def test_a_photo_of_200_megapixels():
    data = encode(Image.new("L", (16_320, 12_240), 77), "JPEG", quality=40)
    assert image_size(data) == (16_320, 12_240) and decoded_size(data, 448) == (2040, 1530)
    image = open_image(data, min_side=448)
    assert image.size == (2040, 1530) and abs(image.getpixel((1000, 1000))[0] - 77) <= 2
