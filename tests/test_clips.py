"""Films and animated pictures: their cuts, frames and seconds; what is damaged, and what is hostile."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path

import films
import numpy as np
import pytest
from PIL import Image

from mmgem.data import animation, shots, video
from mmgem.data.clips import (
    clip_metadata,
    clip_seconds,
    find_shots,
    frames_of,
    is_clip,
    middle_frame,
    read_frames,
)
from mmgem.data.images import open_image
from mmgem.data.moments import clock, format_moment, parse_moment, to_moment
from mmgem.data.shots import Sample, build_shots, change, find_cuts
from mmgem.data.video_headers import made_by
from mmgem.errors import ImageError, UsageError


def cuts(path: Path) -> list[float]:
    return [shot.start for shot in find_shots(path)][1:]


def small(seed: int, at: float = 0.0) -> np.ndarray:
    return np.asarray(films.scene(seed, at, shots.SMALL))


def near(image: Image.Image, other: Image.Image) -> bool:
    one, two = (np.asarray(i.resize((16, 10)), np.float32) for i in (image, other))
    return float(np.abs(one - two).mean()) < 8


# When ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("12-15", (12, 15)),
        ("12", (12, 12)),
        ("1:02-1:10", (62, 70)),
        ("1:02:03.5", (3723.5, 3723.5)),
        (" 0.25 - 0.5 ", (0.25, 0.5)),
        ("90:00", (5400, 5400)),
    ],
)
def test_moments_as_people_write_them(text: str, moment: tuple[float, float]) -> None:
    assert parse_moment(text) == moment
    assert parse_moment(format_moment(moment)) == moment
    assert to_moment(text) == to_moment(moment) == moment


@pytest.mark.parametrize("text", ["", "-", "x", "15-12", "-3", "1:2:3:4", "1e3", "12-", "nan"])
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError, match="must be seconds or a clock"):
        parse_moment(text)


@pytest.mark.parametrize("time", [(3, 1), (-1, 2), float("nan"), (1, 2, 3), object()])
def test_no_moments_of_numbers(time: object) -> None:
    with pytest.raises(UsageError):
        to_moment(time)  # type: ignore[arg-type]


def test_clocks() -> None:
    assert [clock(t) for t in (0, 62.9, 3607)] == ["0:00", "1:02", "1:00:07"]
    assert format_moment((3661.1234, 3662)) == "3661.123-3662"


# Where a row of frames changes -----------------------------------------------------------------------------


def test_change_is_nothing_for_the_same_and_much_for_another() -> None:
    one, two = small(1), small(2)
    assert change(one, one) == 0
    assert change(one, small(1, 0.1)) < 0.1 < 0.2 < change(one, two) <= 1.5
    row = np.stack([one, two, one])
    assert np.allclose(change(row[:-1], row[1:]), [change(one, two), change(two, one)])
    assert np.allclose(change(row, row[:1]), [0, change(one, two), 0])


def test_cuts_in_a_row_of_frames() -> None:
    row = np.stack([small(seed, at / 10) for seed in (1, 2, 3) for at in range(10)])
    assert find_cuts(row) == [10, 20]
    assert find_cuts(row[:10]) == find_cuts(row[:1]) == []


def test_a_dissolve_changes_in_its_middle() -> None:
    one, two = small(1).astype(float), small(2).astype(float)
    row = np.stack([one + (two - one) * min(1, max(0, (i - 5) / 20)) for i in range(30)]).astype(np.uint8)
    (cut,) = find_cuts(row)
    assert 10 <= cut <= 20


def test_noise_and_fast_motion_are_no_cuts() -> None:
    wide = np.asarray(films.scene(4, 0, (32 * 8, 18)))
    pan = np.stack([wide[:, i * 7 : i * 7 + 32] for i in range(12)])
    assert len(find_cuts(pan)) <= 1  # its end is another picture than its beginning
    rng = np.random.default_rng(0)
    noisy = np.stack([np.clip(small(1) + rng.integers(-20, 20, (18, 32, 3)), 0, 255) for _ in range(30)])
    assert find_cuts(noisy.astype(np.uint8)) == []


def test_a_flash_is_no_shot_and_a_long_one_is_told_in_pieces() -> None:
    image = Image.new("RGB", (8, 8))

    def sample(time: float, cut: bool = False) -> Sample:
        return Sample(time, small(int(time * 10)), image, cut)

    flash = [sample(0), sample(1), sample(2, True), sample(2.1, True), sample(3), sample(4)]
    assert [(s.start, s.end) for s in build_shots(flash)] == [(0, 2), (2, 4)]
    long = list(build_shots(sample(t / 2) for t in range(200)))
    assert [s.start for s in long] == [0, 30, 60, 90] and long[-1].end == 99.5
    assert all(1 <= len(s.frames) <= shots.MAX_FRAMES for s in long)


# Films -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gop", "options"),
    [
        ("scenecut.mp4", None, {}),
        ("fixed.mp4", 12, {"x264-params": "scenecut=0"}),
        ("long.mp4", 600, {"x264-params": "scenecut=0"}),
        ("intra.mkv", 1, {}),
        ("no_b_frames.mov", 24, {"x264-params": "scenecut=0:bframes=0"}),
    ],
)
def test_every_cut_is_found_and_no_other(
    tmp_path: Path, name: str, gop: int | None, options: dict[str, str]
) -> None:
    expected = films.save_film(tmp_path / name, range(6), 1.5, gop=gop, **options)
    assert cuts(tmp_path / name) == pytest.approx(expected, abs=1.01 / 12)


@pytest.mark.parametrize(
    ("name", "codec"), [("old.avi", "mpeg4"), ("older.mpg", "mpeg2video"), ("web.webm", "libvpx")]
)
def test_other_codecs(tmp_path: Path, name: str, codec: str) -> None:
    expected = films.save_film(tmp_path / name, range(4), 2, fps=24, codec=codec)
    found = cuts(tmp_path / name)
    assert found == pytest.approx(expected, abs=2.01 / 24)


def test_shots_follow_each_other_and_show_what_is_there(tmp_path: Path) -> None:
    films.save_film(tmp_path / "a.mp4", (1, 2, 3), 2)
    found = list(find_shots(tmp_path / "a.mp4"))
    assert [round(s.start) for s in found] == [0, 2, 4] and found[-1].end == pytest.approx(6, abs=0.1)
    assert all(one.end == two.start for one, two in pairwise(found))
    for seed, shot in zip((1, 2, 3), found, strict=True):
        assert all(near(frame, films.scene(seed, 0.5)) for frame in shot.frames)
        assert near(middle_frame(tmp_path / "a.mp4", (shot.start, shot.end)), films.scene(seed, 0.5))


def test_frames_at_any_seconds_in_any_order(tmp_path: Path) -> None:
    films.save_film(tmp_path / "a.mp4", range(5), 1, gop=600)
    found = read_frames(tmp_path / "a.mp4", [4.5, 0, 2.5, 2.5, 99])
    for image, (seed, at) in zip(found, [(4, 0.5), (0, 0), (2, 0.5), (2, 0.5), (4, 1)], strict=True):
        assert image.size == films.SIZE and near(image, films.scene(seed, at))
    assert read_frames(tmp_path / "a.mp4", [1.5], side=24)[0].size == (40, 24)


def test_a_moment_has_a_frame_in_two_seconds(tmp_path: Path) -> None:
    films.save_film(tmp_path / "a.mp4", range(3), 2)
    assert clip_seconds(tmp_path / "a.mp4") == pytest.approx(6, abs=0.1)
    assert [len(frames_of(tmp_path / "a.mp4", m)) for m in (None, (2.0, 2.0), (0.0, 4.0))] == [3, 1, 2]
    assert near(frames_of(tmp_path / "a.mp4", (2.0, 4.0))[0], films.scene(1, 0.5))
    with pytest.raises(UsageError, match="has no second 7"):
        frames_of(tmp_path / "a.mp4", (7.0, 8.0))


def test_a_phone_held_upright(tmp_path: Path) -> None:
    films.save_film(tmp_path / "a.mp4", (1,), 1, rotation=90)
    metadata = clip_metadata(tmp_path / "a.mp4")
    assert (metadata.width, metadata.height) == films.SIZE[::-1]
    (image,) = read_frames(tmp_path / "a.mp4", [0])
    assert near(image, films.scene(1).rotate(90, expand=True))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, (None, None, None, None)),
        (
            {
                "com.apple.quicktime.creationdate": "2021-05-17T18:30:00+0200",
                "creation_time": "2021-05-17T16:30:00.000000Z",
                "com.apple.quicktime.make": "Apple",
                "com.apple.quicktime.model": "iPhone 12",
                "com.apple.quicktime.location.ISO6709": "+48.1371+011.5754+519.0/",
            },
            (datetime(2021, 5, 17, 18, 30), "Apple iPhone 12", 48.1371, 11.5754),
        ),
        ({"creation_time": "1904-01-01T00:00:00Z", "location": "+00.0000+000.0000/"}, (None,) * 4),
        (
            {"creation_time": "2020-01-02T03:04:05", "location": "-33.9+18.4/"},
            (datetime(2020, 1, 2, 3, 4, 5), None, -33.9, 18.4),
        ),
        ({"creation_time": "yesterday", "location": "+95+200/"}, (None,) * 4),
    ],
)
def test_headers(header: dict[str, str], expected: tuple[object, ...]) -> None:
    metadata = made_by(header, 4, 3)
    assert (metadata.taken, metadata.camera, metadata.latitude, metadata.longitude) == expected


# Animated pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animated_pictures_are_clips(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    expected = films.save_gif(path, (1, 2, 3), 1)
    assert is_clip(path) and clip_seconds(path) == pytest.approx(3)
    assert cuts(path) == pytest.approx(expected, abs=0.01)
    assert near(read_frames(path, [2.5, 0.5])[1], films.scene(1, 0.5))
    assert near(read_frames(path, [99])[0], films.scene(3, 1))


def test_a_picture_of_one_frame_is_none(tmp_path: Path) -> None:
    films.scene(1).save(tmp_path / "a.gif")
    films.scene(1).save(tmp_path / "a.png")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    assert not any(is_clip(path) for path in tmp_path.iterdir())


def test_a_picture_that_was_cut_ends_early(tmp_path: Path) -> None:
    films.save_gif(tmp_path / "a.gif", range(4), 1)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) // 2])
    found = list(find_shots(tmp_path / "a.gif"))
    assert 1 <= len(found) <= 3


def test_frames_shown_for_no_time_are_shown_for_100_ms(tmp_path: Path) -> None:
    first, *rest = films.frames((1, 2), 1, 5)
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=0)
    assert animation.animation_seconds(tmp_path / "a.gif") == pytest.approx(1)


# What is no film -------------------------------------------------------------------------------------------


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"videos need PyAV: pip install 'mmgem\[video\]'"):
        next(find_shots(tmp_path / "a.mp4"))


@pytest.mark.parametrize("data", [b"", b"x" * 1000, bytes(5000), b"\0\0\0\x20ftypisom" + bytes(2000)])
def test_files_that_are_no_video(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.mp4: "):
        list(find_shots(tmp_path / "a.mp4"))


def test_a_film_of_sound_alone(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match="has no video in it"):
        list(find_shots(tmp_path / "a.mp4"))


def test_a_damaged_packet_is_passed_over(tmp_path: Path) -> None:
    films.save_film(tmp_path / "a.mkv", range(6), 1, gop=12)
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    (tmp_path / "a.mkv").write_bytes(data)
    assert len(list(find_shots(tmp_path / "a.mkv"))) >= 4


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("av")
    films.save_film(tmp_path / "secret.ts", (1,), 1)
    listing = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(listing)
    (tmp_path / "b.mkv").write_text("ffconcat version 1.0\nfile secret.ts\n")
    for name in ("a.mp4", "b.mkv"):
        with pytest.raises(ImageError):
            list(find_shots(tmp_path / name))


def test_too_large_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films.save_film(tmp_path / "a.mp4", (1,), 1)
    monkeypatch.setattr(video, "_MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="160 x 96 pixels are too many"):
        list(find_shots(tmp_path / "a.mp4"))


def test_few_frames_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the film: those that wait are counted as it is read."""
    monkeypatch.setattr(shots, "MAX_SECONDS", 1e9)
    held = []
    add = shots._OpenShot.add
    monkeypatch.setattr(
        shots._OpenShot, "add", lambda self, sample: (add(self, sample), held.append(len(self.samples)))[0]
    )
    films.save_film(tmp_path / "a.mp4", (1,), 60, gop=6)
    (shot,) = find_shots(tmp_path / "a.mp4")
    assert len(held) > 60 and max(held) <= 17 and len(shot.frames) > 1


def test_photos_stay_photos(tmp_path: Path) -> None:
    films.save_gif(tmp_path / "a.gif")
    assert open_image(tmp_path / "a.gif").size == films.SIZE  # where a photo is asked for: its first frame
