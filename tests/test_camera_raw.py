"""Camera raw files and HEIC: the pixels of their JPEG, upright, with what the raw file says of it."""

from __future__ import annotations

import io
import struct
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import raw_toys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mmgem.data import image_kinds
from mmgem.data.camera_raw import find_preview
from mmgem.data.images import decoded_size, image_header, image_size, list_images, open_image
from mmgem.data.photo_metadata import read_metadata
from mmgem.errors import ImageError, TransientImageError


def upright(jpeg: bytes) -> np.ndarray:
    """Its pixels by orientation 6."""
    return np.rot90(np.asarray(Image.open(io.BytesIO(jpeg))), -1)


@pytest.mark.parametrize("kind", raw_toys.MAKERS)
def test_the_largest_jpeg_upright_and_what_the_file_says(kind: str, tmp_path: Path) -> None:
    jpeg = raw_toys.jpeg()
    file = tmp_path / f"photo.{kind}"
    file.write_bytes(raw_toys.MAKERS[kind](jpeg))
    image = open_image(file)
    assert image.mode == "RGB" and image.size == image_size(file) == (64, 96)
    np.testing.assert_array_equal(np.asarray(image), upright(jpeg))
    assert open_image(file.read_bytes()).tobytes() == image.tobytes()
    assert image_header(file) == ("RAW", (96, 64))
    metadata = read_metadata(file)
    assert (metadata.width, metadata.height) == (64, 96)
    assert metadata.taken == datetime(2021, 6, 5, 12, 34, 56) and metadata.camera == raw_toys.MODEL
    assert (metadata.latitude, metadata.longitude) == (48.5, -11.25)


def test_fuji_by_the_exif_of_its_jpeg() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = 6, "Toy T1"
    jpeg = raw_toys.jpeg(exif=exif)
    raw = raw_toys.raf(jpeg)
    np.testing.assert_array_equal(np.asarray(open_image(raw)), upright(jpeg))
    assert read_metadata(raw).camera == "Toy T1"


def test_the_raw_file_counts_where_its_jpeg_says_something_else() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = 1, "other"
    raw = raw_toys.nef(raw_toys.jpeg(exif=exif), "<")
    assert open_image(raw).size == (64, 96) and read_metadata(raw).camera == raw_toys.MODEL


def test_a_large_preview_is_decoded_small() -> None:
    raw = raw_toys.cr2(raw_toys.jpeg(1600, 1200))
    assert decoded_size(raw, 200) == (400, 300)  # stored; the upright one is turned
    assert open_image(raw, min_side=200).size == (300, 400) and image_size(raw) == (1200, 1600)


def test_names_do_not_matter(tmp_path: Path) -> None:
    for number, made in enumerate((*raw_toys.MAKERS.values(), raw_toys.raf)):
        (tmp_path / f"{number:02}").write_bytes(made(raw_toys.jpeg()))
    (tmp_path / "99").write_bytes(b"II but no photo")
    (tmp_path / "a.CR2").write_bytes(raw_toys.cr2(raw_toys.jpeg()))
    assert [path.name for path in list_images(tmp_path)] == [*(f"{n:02}" for n in range(8)), "a.CR2"]
    photo = raw_toys.cr2(raw_toys.jpeg())
    (tmp_path / "b.jpg").write_bytes(photo)
    assert image_header(tmp_path / "b.jpg")[0] == "RAW"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_a_tiff_is_no_raw_file(compression: str) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(file, "TIFF", compression=compression)
    assert find_preview(file) is None and image_header(file.getvalue()) == ("TIFF", (9, 8))


def test_without_a_jpeg() -> None:
    for raw in (
        raw_toys.cr2(raw_toys.lossless()).replace(raw_toys.jpeg(16, 12), bytes(len(raw_toys.jpeg(16, 12)))),
        raw_toys.dng(b"\xff\xd8 no more than that"),
        raw_toys.raf(b"no JPEG"),
        b"IIU\0" + bytes(40),
    ):
        with pytest.raises(ImageError, match="image bytes: a camera's raw file without a JPEG"):
            open_image(raw)


@pytest.mark.parametrize("kind", [*raw_toys.MAKERS, "raf"])
def test_cut_off_it_is_an_error_or_the_same_picture(kind: str) -> None:
    jpeg = raw_toys.jpeg(64, 48)
    raw = (raw_toys.MAKERS | {"raf": raw_toys.raf})[kind](jpeg)
    whole = open_image(raw).tobytes()
    for size in range(16, len(raw), 7):
        try:
            image = open_image(raw[:size])
        except ImageError as error:
            assert "\n" not in str(error) and str(error).startswith("image bytes: ")
        else:  # where its directory is cut, a NEF is the TIFF of a thumbnail
            assert image.tobytes() == whole or (kind == "nef" and image.size == (3, 4))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*raw_toys.MAKERS, "raf"]), st.data())
def test_damage_is_an_error_in_one_line_or_a_picture(kind: str, data: st.DataObject) -> None:
    raw = bytearray((raw_toys.MAKERS | {"raf": raw_toys.raf})[kind](raw_toys.jpeg(32, 24)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        open_image(bytes(raw))
        read_metadata(bytes(raw))
    except ImageError as error:
        assert "\n" not in str(error)


def test_directories_in_a_circle_and_without_end() -> None:
    tiff = raw_toys.Tiff("<", mark=b"CR\x02\0")
    place = len(tiff.data)
    raw = tiff.first(tiff.directory({330: (raw_toys.LONG, (place, place))}, place))
    with pytest.raises(ImageError, match="without a JPEG"):
        open_image(raw)
    many = raw_toys.Tiff("<", mark=b"CR\x02\0")
    following = 0
    for _ in range(2000):
        following = many.directory({259: (raw_toys.SHORT, 1)}, following)
    with pytest.raises(ImageError, match="without a JPEG"):
        open_image(many.first(following))


heif = pytest.importorskip("pillow_heif")


def heic(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = orientation, "Phone"
    exif[ExifTags.IFD.Exif] = {36867: raw_toys.DATE}
    heif.register_heif_opener()
    file = io.BytesIO()
    Image.open(io.BytesIO(raw_toys.jpeg())).save(file, "HEIF", exif=exif.tobytes(), quality=95)
    return file.getvalue()


def test_heic_upright_with_its_metadata(tmp_path: Path) -> None:
    file = tmp_path / "photo.HEIC"
    file.write_bytes(heic())
    assert list_images(tmp_path) == [file]
    image = open_image(file)
    assert image.size == image_size(file) == (64, 96) and image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - upright(raw_toys.jpeg()))
    assert np.median(difference) <= 4
    assert image_header(file)[0] == "HEIF"
    metadata = read_metadata(file)
    assert (metadata.width, metadata.height, metadata.camera) == (64, 96, "Phone")
    assert metadata.taken == datetime(2021, 6, 5, 12, 34, 56)
    nameless = file.rename(tmp_path / "0123")
    assert list_images(tmp_path) == [nameless]
    for size in (40, 200, len(heic()) // 2):
        with pytest.raises(ImageError, match="image bytes: "):
            open_image(heic()[:size])


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(heic())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(image_kinds, "_finds_heif", lambda: False)
    image_kinds._register_heif.cache_clear()
    with pytest.raises(TransientImageError, match=r'is HEIC; to read it: pip install "mmgem\[heif\]"'):
        open_image(file)
    assert not image_kinds.starts_as_image(file.read_bytes()[:64])
    file.rename(tmp_path / "photo.heic")
    assert list_images(tmp_path) == []
    image_kinds._register_heif.cache_clear()


def test_boxes_of_any_brand() -> None:
    def start(brand: bytes, *compatible: bytes) -> bytes:
        data = b"ftyp" + brand + bytes(4) + b"".join(compatible)
        return struct.pack(">I", 4 + len(data)) + data

    assert image_kinds.boxed_kind(start(b"heic", b"mif1")) == "HEIF"
    assert image_kinds.boxed_kind(start(b"mif1", b"heic")) == "HEIF"
    assert image_kinds.boxed_kind(start(b"mif1", b"miaf", b"avif")) == "AVIF"
    assert image_kinds.boxed_kind(start(b"avif")) == "AVIF" and image_kinds.boxed_kind(start(b"isom")) == ""
