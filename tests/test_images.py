"""open_image, image_size and list_images on the odd pictures people have."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import warns
from PIL import Image

from mmgem.data.images import image_size, list_images, open_image
from mmgem.errors import ImageError, UsageError

ORIENTATIONS = range(1, 9)


def encode(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], -1).astype(np.uint8)
    )


def stored_for(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels a camera stores so that ``orientation`` brings them upright (by the EXIF table)."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright).copy()


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_is_applied_once(fmt, orientation):
    upright = np.asarray(smooth(24, 16))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(fmt, {})
    stored = Image.fromarray(stored_for(upright, orientation))
    data = encode(stored, fmt, exif=exif(orientation), **options)
    image = open_image(data)
    assert image.size == image_size(data) == (24, 16)
    difference = np.abs(np.asarray(image).astype(int) - upright)
    assert difference.max() <= (8 if fmt == "JPEG" else 0)
    again = open_image(image)
    assert again.tobytes() == image.tobytes() and image_size(image) == (24, 16)
    lazy = Image.open(io.BytesIO(data))
    assert image_size(lazy) == (24, 16) and open_image(lazy).tobytes() == image.tobytes()
    assert image_size(lazy) == (24, 16)


def test_png_exif_after_the_pixels():
    data = encode(smooth(24, 16), "PNG", exif=exif(6))
    start = data.index(b"eXIf") - 4
    length = struct.unpack(">I", data[start : start + 4])[0] + 12
    moved = data[:start] + data[start + length : -12] + data[start : start + length] + data[-12:]
    assert image_size(moved) == open_image(moved).size == (16, 24)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_and_odd_orientation_count_as_upright():
    for block in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(0), exif(77)):
        data = encode(smooth(24, 16), "JPEG", exif=block)
        assert open_image(data).size == image_size(data) == (24, 16)


def test_every_source_gives_the_same_pixels(tmp_path):
    array = np.asarray(smooth(10, 7))
    file = tmp_path / "ä b.PNG"
    Image.fromarray(array).save(file)
    for source in (file, str(file), file.read_bytes(), Image.open(file), Image.fromarray(array), array):
        image = open_image(source)
        assert type(image) is Image.Image and image.mode == "RGB"
        assert np.array_equal(np.asarray(image), array)
        assert image_size(source) == (10, 7)


def test_content_counts_not_the_suffix(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(encode(smooth(8, 8), "JPEG"))
    assert open_image(file).size == (8, 8)


def test_given_image_is_not_changed_nor_shared():
    given_image = Image.new("RGB", (4, 3), "red")
    given_image.info["dpi"] = (72, 72)
    opened = open_image(given_image, min_side=1)
    opened.putpixel((0, 0), (0, 0, 0))
    assert given_image.getpixel((0, 0)) == (255, 0, 0) and given_image.info == {"dpi": (72, 72)}
    array = np.zeros((3, 4, 3), np.uint8)
    open_image(array).putpixel((0, 0), (9, 9, 9))
    assert not array.any()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_alpha_is_composited_on_white(mode):
    rgba = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "PA":
        image = Image.new("PA", (3, 1))
        image.putpalette([100] * 3 + [0] * 3)
        image.putdata([(0, 255), (1, 0), (1, 128)])
    else:
        image = rgba.convert(mode)
    opened = np.asarray(open_image(image))[0, :, 0]
    assert opened.tolist() == pytest.approx([100, 255, 127], abs=1)


def test_transparent_palette_in_gif_and_png():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 10, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    for data in (
        encode(palette, "GIF", transparency=1),
        encode(palette, "PNG", transparency=1),
        encode(palette, "PNG", transparency=b"\xff\x00"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.asarray(open_image(data)).tolist() == [[[200, 10, 10], [255, 255, 255]]]
    opaque = encode(palette, "PNG")
    assert np.asarray(open_image(opaque)).tolist() == [[[200, 10, 10], [0, 0, 0]]]


def test_transparent_colour_of_rgb_and_grey_png():
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (9, 9, 9))
    assert np.asarray(open_image(encode(rgb, "PNG", transparency=(1, 2, 3)))).tolist() == [
        [[255] * 3, [9] * 3]
    ]
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 8)
    assert np.asarray(open_image(encode(grey, "PNG", transparency=7)))[0, :, 0].tolist() == [255, 8]
    deep = Image.fromarray(np.array([[0, 257 * 30]], np.uint16))
    assert np.asarray(open_image(encode(deep, "PNG", transparency=0)))[0, :, 0].tolist() == [255, 30]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes(mode):
    image = Image.new("RGB", (5, 4), "white").convert(mode)
    opened = open_image(image)
    assert opened.mode == "RGB" and np.asarray(opened).min() >= 250


@pytest.mark.parametrize("colour", [(255, 0, 0), (255, 255, 255), (0, 0, 0)])
def test_cmyk_jpeg_and_tiff(colour):
    image = Image.new("RGB", (16, 16), colour).convert("CMYK")
    for fmt in ("JPEG", "TIFF"):  # Pillow marks its CMYK JPEG as Adobe and inverts it
        opened = np.asarray(open_image(encode(image, fmt))).astype(int)
        assert np.abs(opened - colour).max() <= 3


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    expected = [0, 0, 1, 128, 255]
    deep = Image.fromarray(values)
    assert deep.mode.startswith("I")
    pgm = b"P5 5 1 65535\n" + values.astype(">u2").tobytes()
    for data in (encode(deep, "PNG"), encode(deep, "TIFF"), pgm):
        assert np.asarray(open_image(data))[0, :, 1].tolist() == expected
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    assert np.asarray(open_image(big_endian))[0, :, 1].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 200], [0, 100, 200]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-5, 0, 1_000_000], [0, 0, 255]),
    ],
)
def test_integer_grey(values, expected):
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    assert np.asarray(open_image(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100, 200], [0, 100, 200]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 6e5, 1e6], [0, 153, 255]),
        ([-1, -2, -3], [0, 0, 0]),
        ([np.nan, -np.inf, 1], [0, 0, 255]),
        ([np.inf, 0, 1], [255, 0, 255]),
        ([np.nan] * 3, [0] * 3),
    ],
)
def test_float_grey(values, expected):
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(open_image(image))[0, :, 0].tolist() == expected
        assert np.asarray(open_image(encode(image, "TIFF")))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_many(fmt):
    frames = [Image.new("RGB", (6, 5), c) for c in ("red", "blue", "lime")]
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:])
    r, g, b = open_image(data).getpixel((2, 2))
    assert r > 230 and g < 25 and b < 25
    assert image_size(data) == (6, 5)


def test_arrays():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(open_image(grey))[..., 2], grey)
    rgba = np.zeros((2, 3, 4), np.uint8)
    assert (np.asarray(open_image(rgba)) == 255).all()
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    for view in (colour[::-1, ::2], np.asfortranarray(colour), colour[..., ::-1]):
        assert np.array_equal(np.asarray(open_image(view)), view)
    assert image_size(colour) == (6, 5)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], "(3, 4, 2)"),
        (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "(2, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.array(5, np.uint8), "()"),
    ],
)
def test_wrong_arrays(array, reason):
    for call in (open_image, image_size):
        with pytest.raises(ImageError) as error:
            call(array)
        one_line(error, "image array", reason)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], io.BytesIO(b"x")])
def test_wrong_source_type(source):
    with pytest.raises(UsageError, match=type(source).__name__):
        open_image(source)


def test_missing_folder_and_unreadable(tmp_path):
    with pytest.raises(ImageError) as error:
        open_image(tmp_path / "none.jpg")
    one_line(error, "none.jpg", "No such file")
    with pytest.raises(ImageError) as error:
        open_image(tmp_path)
    one_line(error, str(tmp_path), "directory")
    with pytest.raises(ImageError):
        open_image("a\0b.jpg")
    with pytest.raises(ImageError):
        open_image("")
    with pytest.raises(ImageError):
        open_image("x" * 5000)


def test_empty_and_not_an_image(tmp_path):
    file = tmp_path / "page.jpg"
    for content, reason in [
        (b"", "empty"),
        (b"<html>no</html>", "not an image"),
        (b"\0" * 100, "not an image"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ImageError) as error:
            open_image(file)
        one_line(error, "page.jpg", reason)
        with pytest.raises(ImageError) as error:
            open_image(content)
        one_line(error, "image bytes", reason)


def test_formats_that_start_programs_are_refused():
    eps = encode(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(ImageError, match="known format"):
        open_image(eps)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_errors(fmt, part, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), fmt)
    file = tmp_path / "half.img"
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError) as error:
        open_image(file)
    one_line(error, "half.img")
    if fmt == "JPEG":
        with pytest.raises(ImageError):
            open_image(file, min_side=8)


def test_decompression_bomb():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    for call in (open_image, image_size):
        with pytest.raises(ImageError) as error:
            call(data)
        one_line(error, "too many pixels")


def test_closed_and_empty_pil_images():
    closed = Image.new("RGB", (4, 4))
    closed.close()
    for image in (closed, Image.new("RGB", (0, 4))):
        with pytest.raises(ImageError, match="PIL image"):
            open_image(image)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_never_raise_anything_else(fmt, changes):
    data = bytearray(encode(smooth(20, 14), fmt))
    for place, value in changes:
        data[place % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in (open_image, image_size):
            try:
                call(bytes(data))
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("size", "min_side", "expected"),
    [
        ((800, 600), 600, (800, 600)),
        ((800, 600), 301, (800, 600)),
        ((800, 600), 300, (400, 300)),
        ((800, 600), 224, (400, 300)),
        ((800, 600), 150, (200, 150)),
        ((800, 600), 10, (100, 75)),
        ((801, 601), 301, (801, 601)),
        ((801, 601), 300, (401, 301)),
        ((100, 80), 224, (100, 80)),
    ],
)
def test_min_side_of_jpeg(size, min_side, expected):
    data = encode(smooth(*size), "JPEG")
    image = open_image(data, min_side=min_side)
    assert image.size == expected and image_size(data) == size
    assert min(image.size) >= min(min_side, *size)
    reference = open_image(data).resize(expected, Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(reference)).mean() < 2


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_min_side_keeps_orientation(orientation):
    upright = smooth(320, 160)
    stored = Image.fromarray(stored_for(np.asarray(upright), orientation))
    image = open_image(encode(stored, "JPEG", exif=exif(orientation)), min_side=40)
    assert image.size == (80, 40)
    small = np.asarray(upright.resize((80, 40), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(image) - small).max() < 16


def test_min_side_of_other_modes_and_formats():
    grey = encode(smooth(320, 160).convert("L"), "JPEG")
    cmyk = encode(smooth(320, 160).convert("CMYK"), "JPEG")
    assert open_image(grey, min_side=40).size == open_image(cmyk, min_side=40).size == (80, 40)
    assert open_image(encode(smooth(320, 160), "PNG"), min_side=40).size == (320, 160)
    lazy = Image.open(io.BytesIO(grey))
    assert open_image(lazy, min_side=40).size == lazy.size == (320, 160)
    with pytest.raises(UsageError, match="min_side"):
        open_image(grey, min_side=0)


def test_list_images(tmp_path):
    shown = ["b/2.JPG", "b/1.jpeg", "a.webp", "c/d/e/deep.PnG", "b.d/x.gif"]
    other = [".hidden.png", ".thumbs/x.jpg", "c/.d/x.jpg", "c/notes.txt", "jpg", "a.jpg.bak"]
    for name in shown + other:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "folder.jpg").mkdir()
    found = [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)]
    assert found == ["a.webp", "b/1.jpeg", "b/2.JPG", "b.d/x.gif", "c/d/e/deep.PnG"]
    assert list_images(str(tmp_path / "folder.jpg")) == []


def test_list_images_follows_links_without_loops(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "z").mkdir(parents=True)
    other.mkdir()
    for file in (root / "z" / "1.jpg", other / "2.jpg", tmp_path / "outside.jpg"):
        file.touch()
    (root / "a_link_to_z").symlink_to(root / "z")
    (root / "loop").symlink_to(root)
    (root / "z" / "up").symlink_to("..")
    (root / "above").symlink_to(tmp_path)
    (root / "self").symlink_to("self")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    (root / "elsewhere").symlink_to(other)
    (other / "back").symlink_to(root)
    (root / "3.jpg").symlink_to(other / "2.jpg")
    found = [str(p.relative_to(root)) for p in list_images(root)]
    assert found == ["3.jpg", "elsewhere/2.jpg", "z/1.jpg"]
    (tmp_path / "entry").symlink_to(root)
    assert len(list_images(tmp_path / "entry")) == 3


def test_list_images_of_no_folder(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        list_images(tmp_path / "none")
    (tmp_path / "file.jpg").touch()
    with pytest.raises(UsageError, match="not a folder"):
        list_images(tmp_path / "file.jpg")


def test_list_images_unreadable_subfolder_is_reported(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "1.jpg").touch()
    scandir = os.scandir

    def refusing(place):
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with warns(match=r"locked: skipped, Permission denied"):
        assert list_images(tmp_path) == [tmp_path / "1.jpg"]
