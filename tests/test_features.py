"""The feature cache: equal to computing directly, computed once, resumed after a stop, bad files skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from damage import flip_bits
from PIL import Image

from mmgem.data import content_hashes
from mmgem.data.content_hashes import ContentHashes
from mmgem.data.features import PixelSource
from mmgem.data.images import open_image
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.encoders import feature_cache
from mmgem.encoders.base import Encoder
from mmgem.encoders.feature_cache import cache_features, encoder_fingerprint
from mmgem.errors import DataError, ImageError


class CountingEncoder(Encoder):
    """A small encoder that counts the pictures it sees and can fail at a given one."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = torch.nn.Conv2d(3, 4, 8, 8)
        self.channels, self.size = 4, 32
        self.seen, self.fail_at = 0, -1

    def frozen_stem(self, pixels: torch.Tensor) -> torch.Tensor:
        if not pixels.any():  # the probe for the shape
            return self.net(pixels).permute(0, 2, 3, 1)
        if 0 <= self.fail_at <= self.seen:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return self.net(pixels).permute(0, 2, 3, 1)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    data = toys.photos(tmp_path / "photos", train=40, dev=0)
    return [data.parent / "images" / f"{i}.png" for i in range(40)]


def direct(encoder: Encoder, images: list[Path], view: int, crop_scale: float = 0.5) -> torch.Tensor:
    pixels = [to_square(open_image(p), toys.prep(), view_geometry(view, p.name, crop_scale)) for p in images]
    with torch.no_grad():
        return encoder.frozen_stem(normalise(np.stack(pixels), toys.prep()))


def test_equals_computing_directly_within_half_precision(images: list[Path], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache", views=4)
    assert (cache.views, cache.valid, cache.problems) == (4, list(range(40)), [])
    assert encoder.seen == 4 * 40
    for view in range(4):
        read = cache.read(range(40), [view] * 40)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, direct(encoder, images, view), atol=1e-3, rtol=1e-3)
    mixed = cache.read([3, 3, 7], [0, 2, 1])
    assert torch.equal(mixed[1], cache.read([3], [2])[0])
    assert not torch.equal(mixed[0], mixed[1])


def test_nothing_is_computed_twice(images: list[Path], tmp_path: Path) -> None:
    cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache", views=2)
    again = CountingEncoder()
    cache_features(again, toys.prep(), images, tmp_path / "cache", views=3)
    assert again.seen == 40  # the third view only


def test_an_image_that_is_listed_twice_is_computed_once(images: list[Path], tmp_path: Path) -> None:
    (copy := tmp_path / "elsewhere" / images[3].name).parent.mkdir()
    shutil.copy(images[3], copy)
    missing = [tmp_path / "a" / "lost.png", tmp_path / "b" / "lost.png"]
    once = cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache", views=3)
    encoder = CountingEncoder()
    listed = [images[5], *images, copy, *missing, images[5]]
    twice = cache_features(encoder, toys.prep(), listed, tmp_path / "twice", views=3)
    assert encoder.seen == 3 * 40
    assert twice.valid == [*range(42), 44] and len(twice.problems) == 2
    at = [5, *range(40), 3, 5]
    assert torch.equal(twice.read(twice.valid, [2] * 43), once.read(at, [2] * 43))
    again = CountingEncoder()
    cache_features(again, toys.prep(), [*images, images[0]], tmp_path / "cache", views=3)
    assert again.seen == 0  # so a longer list of the same images shares what is there


def test_resumes_where_it_stopped(images: list[Path], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    encoder.fail_at = 32
    with pytest.raises(KeyboardInterrupt):
        cache_features(encoder, toys.prep(), images, tmp_path / "cache")
    encoder.fail_at = -1
    cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache")
    assert encoder.seen == 40
    torch.testing.assert_close(
        cache.read(range(40), [0] * 40), direct(encoder, images, 0), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(
    "change",
    ["weights", "size", "file", "order", "crop"],
)
def test_whatever_it_depends_on_makes_another_cache(change: str, images: list[Path], tmp_path: Path) -> None:
    cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache", views=3)
    encoder, prep, scale = CountingEncoder(), toys.prep(), 0.5
    expected = 3 * 40
    if change == "weights":
        encoder = CountingEncoder(seed=1)
    elif change == "size":
        prep = toys.prep(size=40)
    elif change == "file":
        Image.new("RGB", (40, 40), "red").save(images[0])
    elif change == "order":
        images = images[::-1]
    else:
        scale, expected = 0.9, 40  # plain and mirrored views do not depend on it
    cache_features(encoder, prep, images, tmp_path / "cache", views=3, crop_scale=scale)
    assert encoder.seen == expected


def test_what_it_does_not_depend_on(images: list[Path], tmp_path: Path) -> None:
    cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache")
    (tmp_path / "copies").mkdir()
    copies = [Path(shutil.copy(path, tmp_path / "copies" / path.name)) for path in images]
    again = CountingEncoder()
    cache_features(again, toys.prep(lowercase=True, scales=[48]), copies, tmp_path / "cache")
    assert again.seen == 0


def test_bad_images_are_skipped_and_reported(images: list[Path], tmp_path: Path) -> None:
    images[2].write_bytes(b"not an image")
    images[5].unlink()
    whole = images[9].read_bytes()
    images[9].write_bytes(whole[: len(whole) // 2])
    encoder = CountingEncoder()
    for _ in range(2):  # the second time from disk
        cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache", views=2)
        assert cache.valid == [i for i in range(40) if i not in (2, 5, 9)]
        assert len(cache.problems) == 3
        for i, problem in zip((2, 5, 9), cache.problems, strict=True):
            assert f"{i}.png" in problem
    assert encoder.seen == 2 * 37
    torch.testing.assert_close(
        cache.read([1, 3], [0, 0]), direct(encoder, [images[1], images[3]], 0), atol=1e-3, rtol=1e-3
    )


def test_a_problem_found_before_a_stop_is_not_forgotten(images: list[Path], tmp_path: Path) -> None:
    images[2].write_bytes(b"not an image")
    encoder = CountingEncoder()
    encoder.fail_at = 31
    with pytest.raises(KeyboardInterrupt):
        cache_features(encoder, toys.prep(), images, tmp_path / "cache")
    encoder.fail_at = -1
    cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache")
    assert 2 not in cache.valid
    assert "2.png" in cache.problems[0]


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 2 images can be read; first: .*a\.png"):
        cache_features(
            CountingEncoder(), toys.prep(), [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "c"
        )
    with pytest.raises(DataError, match="no images"):
        cache_features(CountingEncoder(), toys.prep(), [], tmp_path / "c")


def test_a_damaged_cache_is_named(images: list[Path], tmp_path: Path) -> None:
    cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache")
    damaged = next((tmp_path / "cache").rglob("maps.npy"))
    damaged.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"maps\.npy: damaged feature cache"):
        cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache")


def test_the_frozen_part_of_the_default_encoder_decides(images: list[Path], tmp_path: Path) -> None:
    encoder = toys.network(encoder="efficientnet_lite0").encoder
    before = encoder_fingerprint(encoder)
    with torch.no_grad():
        encoder.net.head.weight.add_(1)  # above the cut: trains while the cache stays
        assert encoder_fingerprint(encoder) == before
        encoder.net.blocks[3].project.weight.add_(1)
    assert encoder_fingerprint(encoder) != before
    cache = cache_features(encoder, toys.prep(), images[:3], tmp_path / "cache")
    pixels = PixelSource(images[:3], toys.prep(), 1, 0.5).read([0, 1, 2], [0, 0, 0])
    with torch.no_grad():
        maps = encoder.trainable_head(cache.read([0, 1, 2], [0, 0, 0]))
        torch.testing.assert_close(maps, encoder(pixels), atol=2e-2, rtol=2e-2)


def test_pixels_are_the_same_pictures_as_the_cache_sees(images: list[Path], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache", views=3)
    source = PixelSource(images, toys.prep(), 3, 0.5)
    assert (source.views, source.valid) == (3, cache.valid)
    with torch.no_grad():
        maps = encoder.frozen_stem(source.read([4, 5, 6], [0, 1, 2]))
    torch.testing.assert_close(cache.read([4, 5, 6], [0, 1, 2]), maps, atol=1e-3, rtol=1e-3)


def test_pixels_of_unreadable_files(images: list[Path]) -> None:
    images[2].write_bytes(b"not an image")
    source = PixelSource(images, toys.prep(), 1, 0.5)
    assert 2 not in source.valid
    assert "2.png" in source.problems[0]
    whole = images[3].read_bytes()
    images[3].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"3\.png"):
        source.read([3], [0])


def test_large_photos_are_close_to_their_cheaply_decoded_selves(tmp_path: Path) -> None:
    # Training from pixels and prediction decode JPEG at a fraction of its size; the cache decodes it all.
    y, x = np.mgrid[0:480, 0:640] / 80
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 127
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "large.jpg", quality=95)
    read: Any = PixelSource([tmp_path / "large.jpg"], toys.prep(), 1, 0.5).read([0], [0])
    full = normalise(np.stack([to_square(open_image(tmp_path / "large.jpg"), toys.prep())]), toys.prep())
    assert float((read - full).abs().mean()) < 0.05


def test_another_photo_of_the_same_size_and_beginning_has_its_own_features(tmp_path: Path) -> None:
    beginning = np.random.default_rng(0).integers(0, 256, (300, 160, 3), np.uint8)
    features = []
    for seed, folder in enumerate(("one", "two")):
        pixels = beginning.copy()
        pixels[200:] = np.random.default_rng(seed).integers(0, 256, (100, 160, 3), np.uint8)
        path = tmp_path / folder / "a.bmp"
        path.parent.mkdir()
        Image.fromarray(pixels[::-1].copy()).save(path)  # rows of BMP come from the bottom up
        cache = cache_features(CountingEncoder(), toys.prep(), [path], tmp_path / "cache")
        features.append(cache.read([0], [0]))
        torch.testing.assert_close(features[-1], direct(CountingEncoder(), [path], 0), rtol=0, atol=0.01)
    one, two = (tmp_path / folder / "a.bmp" for folder in ("one", "two"))
    assert one.read_bytes()[: 1 << 16] == two.read_bytes()[: 1 << 16]
    assert one.stat().st_size == two.stat().st_size
    assert not torch.equal(*features)


def test_a_photo_is_read_whole_once_and_again_when_it_changes(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    plain = content_hashes._hash
    monkeypatch.setattr(content_hashes, "_hash", lambda file: hashed.append(Path(file.name)) or plain(file))
    monkeypatch.setattr(content_hashes, "SETTLED_NS", -1)
    identities = ContentHashes(tmp_path / "hashes.json").identities(images)
    assert sorted(hashed) == sorted(images)
    hashed.clear()
    assert ContentHashes(tmp_path / "hashes.json").identities(images) == identities
    assert hashed == []
    stat = images[3].stat()
    images[3].write_bytes(images[3].read_bytes()[:-1] + b"\1")
    os.utime(images[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = ContentHashes(tmp_path / "hashes.json").identities(images)
    assert hashed == [images[3]]
    assert [a == b for a, b in zip(changed, identities, strict=True)] == [n != 3 for n in range(len(images))]
    (tmp_path / "hashes.json").write_text(
        (tmp_path / "hashes.json").read_text().replace(str(changed[5][2]), "0")
    )
    assert ContentHashes(tmp_path / "hashes.json").identities(images) == changed


def test_features_that_are_not_finite_are_never_done(images: list[Path], tmp_path: Path) -> None:
    class Infinite(CountingEncoder):
        def frozen_stem(self, pixels: torch.Tensor) -> torch.Tensor:
            maps = super().frozen_stem(pixels)
            if len(maps) > 1:
                maps[2, 1, 1, 0] = 70_000  # no float16
            return maps

    cache = cache_features(Infinite(), toys.prep(), images[:10], tmp_path / "cache")
    assert cache.valid == [n for n in range(10) if n != 2]
    assert cache.problems == [f"{images[2]}: its features are not finite in float16"]


def test_maps_are_on_the_disk_before_they_count(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    plain = np.memmap.flush

    def flush(array: np.memmap) -> None:
        name = Path(array.filename).name
        if name == "maps.npy":
            states = np.load(Path(array.filename).parent / "state.npy")
            assert not states[len([f for f in flushed if f == "maps.npy"]) * 32 :].any()
        flushed.append(name)
        plain(array)

    monkeypatch.setattr(feature_cache, "_FLUSH_SECONDS", -1.0)
    monkeypatch.setattr(np.memmap, "flush", flush)
    cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache")
    order = [name for name in flushed if not name.endswith(".tmp")]
    assert order.count("maps.npy") == 2
    for at, name in enumerate(order):
        if name == "maps.npy":
            assert order[at : at + 3] == ["maps.npy", "crc32.npy", "state.npy"]


def test_damaged_maps_are_seen(images: list[Path], tmp_path: Path) -> None:
    for seed in range(10):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        cache_features(CountingEncoder(), toys.prep(), images, tmp_path / "cache")
        (maps,) = (tmp_path / "cache").rglob("maps.npy")
        flip_bits(maps, seed, start=128)
        encoder = CountingEncoder()
        cache = cache_features(encoder, toys.prep(), images, tmp_path / "cache")
        assert encoder.seen == 0
        with pytest.raises(DataError, match=r"maps.npy: row \d+ is damaged; delete its folder"):
            cache.read(range(40), [0] * 40)
