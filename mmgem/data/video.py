"""Clips (videos, by PyAV, and animated pictures, by Pillow) -> shots, and pictures at wanted times.

Notable choices. Most of a video is never decoded: key frames, half a second apart or more, are; what lies
between two of them only if they differ, or if a packet there is so large that a new picture may be in it
(:func:`_gap_is_quiet`). One container reads packets in a row, another one seeks and decodes such gaps.
Pictures are made small in the decoder's own colours before they become RGB, and few are held at once, so a
film of any length needs the memory of a short one.

Only the containers in ``_CONTAINERS`` are opened, from an open file and without any other protocol, whatever
the file says of itself: a playlist named ``.mp4`` reads no other file. Times count from the first frame.
Packets that cannot be decoded are passed over, as players do; a file with none that can be is an ImageError.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.data.shots import CHUNK, FRAME_SIDE, KEPT_STEP, SMALL, Sample, change, find_cuts
from mmgem.data.video_headers import made_by
from mmgem.errors import ImageError, MMGEMError, TransientImageError, UsageError, is_transient
from mmgem.utils.files import open_regular

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

NEEDS_AV = "videos need PyAV: pip install 'mmgem[video]'"

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg"
_MAX_PIXELS = 8192 * 4352  # of a frame
_MAX_SECONDS = 24 * 3600.0
_STEP = 0.5  # seconds between key frames, and between frames that are kept in a gap, or more
_BLIND = 2.0  # seconds; a longer gap must be quiet to be passed over
_ALIKE, _DIFFERENT = 0.1, 0.25  # changes between key frames
_LARGE_PACKET = 0.25  # of the key frames' size
_THREADS = 4  # of a decoder, each of which holds frames
_BUFFER = 1 << 18  # bytes read at once
_SEEK_SECONDS = 5.0  # further ahead than this the reader of gaps seeks


def has_av() -> bool:
    """Whether videos can be read here."""
    return find_spec("av") is not None


def video_metadata(path: Path) -> PhotoMetadata:
    """Width and height in pixels of the upright frames, and what the header says of when, where and by what
    the video was made. Raises as :func:`read_samples`."""
    with _open_video(path) as (container, stream):
        frame = next(_decoded(container, stream), None)
        if frame is None:
            raise ImageError(f"{path}: no frame of it can be decoded")
        width, height = (frame.width, frame.height)
        if frame.rotation % 180:
            width, height = height, width
        return made_by(container.metadata, width, height)


def video_seconds(path: Path) -> float | None:
    """How long a video is, if its header says. Raises as :func:`read_samples`."""
    with _open_video(path) as (container, stream):
        return _duration(container, stream)


def read_samples(path: Path) -> Iterator[Sample]:
    """The frames of a video that say where it changes, in the order of time, for
    :func:`mmgem.data.shots.build_shots`.

    What comes after 24 hours is left out. Raises UsageError without PyAV, ImageError for a file that is no
    video, or has no frame that can be decoded, and TransientImageError for what cannot be read now.
    """
    with _open_video(path) as (container, stream), _open_video(path) as (other, other_stream):
        gaps = _GapReader(other, other_stream)
        last: Sample | None = None
        ends = _Ends()
        for frame, quiet in _key_frames(container, stream, ends):
            time = _time(frame, stream)
            small, image = _small(frame), _picture(frame)
            if last is None:
                last = Sample(time, small, image)
                yield last
                continue
            if time <= last.time:
                continue
            difference = float(change(last.small, small))
            alike = difference < _ALIKE and (quiet or time - last.time <= _BLIND)
            if alike or (quiet and difference > _DIFFERENT):
                last = Sample(time, small, image, cut=not alike)
            else:
                cut = False
                for sample in gaps.between(last, time, small):
                    if sample.time >= time:
                        cut = sample.cut
                    else:
                        yield sample
                last = Sample(time, small, image, cut)
            yield last
        if last is None:  # none that is marked as a key frame
            last = gaps.first()
            ends.quiet = False
            yield last
        if ends.time - last.time > _BLIND or not ends.quiet:
            for sample in gaps.between(last, math.inf, None):
                last = sample
                yield sample
        yield Sample(max(ends.time, last.time), last.small)


def read_frames(path: Path, times: Sequence[float], side: int = FRAME_SIDE) -> list[Image.Image]:
    """The frame of a video that is shown at each of ``times`` (seconds), upright RGB, its shorter side at
    most ``side`` pixels; beyond its end, the last one. Raises as :func:`read_samples`."""
    frames: dict[float, Image.Image] = {}
    with _open_video(path) as (container, stream):
        source = _decoded(container, stream)
        shown: VideoFrame | None = None
        ahead: VideoFrame | None = None
        at = -math.inf
        for time in sorted(set(times)):
            if not at <= time <= at + _SEEK_SECONDS:
                _seek(container, stream, time)
                source, shown, ahead = _decoded(container, stream), None, None
            while True:
                ahead = ahead or next(source, None)
                if ahead is None or (shown is not None and _time(ahead, stream) > time + 1e-3):
                    break
                shown, at, ahead = ahead, _time(ahead, stream), None
            shown = shown or _last_frame(container, stream)
            if shown is None:
                raise ImageError(f"{path}: no frame of it can be decoded")
            frames[time] = _picture(shown, side)
    return [frames[time] for time in times]


class _Ends:
    """What is known at the end of a video: ``time`` its end in seconds, ``quiet``: of what comes after the
    last key frame."""

    time = 0.0
    quiet = True


class _GapReader:
    """Decodes what lies between key frames."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container, self._stream = container, stream
        self._frames = _decoded(container, stream)
        self._at = -math.inf

    def first(self) -> Sample:
        """The first frame. Raises ImageError if there is none."""
        frame = next(self._frames, None)
        if frame is None:
            raise ImageError("no frame of it can be decoded")
        self._at = _time(frame, self._stream)
        return Sample(self._at, _small(frame), _picture(frame))

    def between(self, start: Sample, end: float, end_small: np.ndarray | None) -> Iterator[Sample]:
        """The cuts after ``start`` and before ``end`` or at it (its frame is ``end_small``), and a frame
        every now and then."""
        if not self._at <= start.time <= self._at + _STEP:
            _seek(self._container, self._stream, start.time)
            self._frames = _decoded(self._container, self._stream)
        chunk: list[Sample] = [start]
        kept = start.time
        for frame in self._frames:
            self._at = time = _time(frame, self._stream)
            if time >= end - 1e-6:
                break
            if time <= start.time + 1e-6:
                continue
            image = None
            if time - kept >= KEPT_STEP:
                image, kept = _picture(frame), time
            chunk.append(Sample(time, _small(frame), image))
            if len(chunk) == CHUNK:
                yield from _with_cuts(chunk)
                chunk = chunk[-1:]
        if end_small is not None:
            chunk.append(Sample(end, end_small))
        yield from _with_cuts(chunk)


def _with_cuts(chunk: list[Sample]) -> Iterator[Sample]:
    """All but the first of consecutive samples that have a picture or begin a shot, and the last."""
    cuts = set(find_cuts(np.stack([sample.small for sample in chunk])))
    for number, sample in enumerate(chunk[1:], 1):
        if number in cuts:
            yield Sample(sample.time, sample.small, sample.image, True)
        elif sample.image is not None or number == len(chunk) - 1:
            yield sample


def _key_frames(
    container: InputContainer, stream: VideoStream, ends: _Ends
) -> Iterator[tuple[VideoFrame, bool]]:
    """Key frames at least ``_STEP`` apart, and whether what lies between each and the one before is quiet."""
    quiet_before: deque[tuple[int, bool]] = deque()
    key_sizes: deque[int] = deque(maxlen=8)
    largest, taken = 0, -math.inf
    for packet in _packets(container, stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            if packet.size == 0:
                yield from _matched(_decode(packet), quiet_before)
            continue
        time = _seconds(stamp, stream)
        if time > _MAX_SECONDS:
            _log.warning("%s: only its first 24 hours are read", container.name)
            break
        ends.time = max(ends.time, time + _seconds(packet.duration or 0, stream, 0))
        if not packet.is_keyframe or time - taken < _STEP:
            largest = max(largest, packet.size)
            ends.quiet = _gap_is_quiet(largest, key_sizes)
            continue
        quiet_before.append((stamp, _gap_is_quiet(largest, key_sizes)))
        key_sizes.append(packet.size)
        largest, taken, ends.quiet = 0, time, True
        yield from _matched(_decode(packet), quiet_before)
    yield from _matched(_flushed(stream), quiet_before)


def _matched(
    frames: Sequence[VideoFrame], quiet_before: deque[tuple[int, bool]]
) -> Iterator[tuple[VideoFrame, bool]]:
    """Frames, which decoders give late, with what is known of the gap before each."""
    for frame in frames:
        quiet = True
        while quiet_before and (frame.pts is None or quiet_before[0][0] <= frame.pts):
            quiet = quiet_before.popleft()[1] and quiet
            if frame.pts is None:
                break
        yield frame, quiet


def _gap_is_quiet(largest: int, key_sizes: Sequence[int]) -> bool:
    """Whether no packet between key frames is so large that it may hold a new picture."""
    return not key_sizes or largest < _LARGE_PACKET * sum(key_sizes) / len(key_sizes)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video and its stream of pictures; what PyAV complains about within becomes an ImageError."""
    if not has_av():
        raise UsageError(f"{path}: {NEEDS_AV}")
    import av

    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "pipe"}
    try:
        with open_regular(path) as file:
            if not file.peek(1):
                raise ImageError(f"{path}: is empty")
            # From 19 on PyAV takes any bytes in a header by itself.
            lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
            with av.open(file, "r", container_options=options, buffer_size=_BUFFER, **lenient) as container:
                streams = [s for s in container.streams.video if s.codec_context is not None]
                pictures = [s for s in streams if not s.disposition & s.disposition.attached_pic]
                if not pictures:
                    raise ImageError(f"{path}: has no video in it")
                stream = pictures[0]
                if stream.width * stream.height > _MAX_PIXELS:
                    raise ImageError(f"{path}: {stream.width} x {stream.height} pixels are too many")
                stream.thread_type = "AUTO"
                stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
                yield container, stream
    except MMGEMError as error:
        if isinstance(error, ImageError) and not str(error).startswith(f"{path}: "):
            raise type(error)(f"{path}: {error}") from error
        raise
    except (OSError, ValueError, MemoryError, RuntimeError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if is_transient(error):
            raise TransientImageError(f"{path}: could not be read now: {reason}") from error
        raise ImageError(f"{path}: {reason}") from error


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Any]:
    """The packets of the stream; what cannot be read ends it, as it does a file that was cut."""
    import av

    source = container.demux(stream)
    while True:
        try:
            packet = next(source, None)
        except (av.FFmpegError, ValueError) as error:
            if is_transient(error):
                raise
            return
        if packet is None:
            return
        yield packet


def _decode(packet: Any) -> Sequence[VideoFrame]:
    """The frames of a packet, none if it is damaged."""
    import av

    try:
        frames: Sequence[VideoFrame] = packet.decode()
    except (av.FFmpegError, ValueError) as error:
        if is_transient(error):
            raise
        return ()
    return frames


def _flushed(stream: VideoStream) -> Sequence[VideoFrame]:
    """What the decoder still holds."""
    import av

    try:
        return stream.decode(None)
    except (av.FFmpegError, ValueError):  # at its end already
        return ()


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames from where the container is."""
    for packet in _packets(container, stream):
        yield from _decode(packet)


def _last_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The last frame of a video, where seeking has gone beyond it."""
    _seek(container, stream, 0.0)
    return next(iter(deque(_decoded(container, stream), 1)), None)


def _seek(container: InputContainer, stream: VideoStream, time: float) -> None:
    """Go to the key frame before a time; where that cannot be done, stay."""
    import av

    base = stream.time_base
    assert base is not None
    try:
        container.seek(round(max(0.0, time) / base) + (stream.start_time or 0), stream=stream)
    except (av.FFmpegError, ValueError):
        _log.debug("%s: cannot be sought in", container.name)


def _time(frame: VideoFrame, stream: VideoStream) -> float:
    """Seconds from the beginning of the video to a frame."""
    stamp = frame.pts if frame.pts is not None else frame.dts
    return 0.0 if stamp is None else _seconds(stamp, stream)


def _seconds(stamp: int, stream: VideoStream, start: int | None = None) -> float:
    base = stream.time_base
    assert base is not None
    return float((stamp - ((stream.start_time or 0) if start is None else start)) * base)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration:
        return _seconds(stream.duration, stream, 0)
    return container.duration / 1e6 if container.duration else None


def _small(frame: VideoFrame) -> np.ndarray:
    """A frame as shots are found in it: (h, w, 3) uint8."""
    small = frame.reformat(*SMALL, format="rgb24", interpolation="BILINEAR")
    return np.asarray(small.to_ndarray(), np.uint8)


def _picture(frame: VideoFrame, side: int = FRAME_SIDE) -> Image.Image:
    """A frame as an upright picture, its shorter side at most ``side`` pixels."""
    scale = min(1.0, side / min(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    smaller = frame.reformat(width, height, format="rgb24", interpolation="BILINEAR")
    image = Image.fromarray(smaller.to_ndarray())
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image
