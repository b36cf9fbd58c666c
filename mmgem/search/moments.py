"""Clips in a photo index: each shot is a row, a moment of the clip, embedded as the mean of its frames.

Shots are decoded by a thread of its own while the model embeds those before, and both work through the clip
from its beginning to its end, so a long one takes no more memory than a short one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mmgem.data.clips import clip_metadata, find_shots
from mmgem.data.moments import Moment
from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.data.shots import Shot
from mmgem.errors import ImageError

_log = logging.getLogger(__name__)

_AHEAD = 8  # shots decoded before they are embedded
_BATCH_SIZE = 32  # frames
_MAX_SHOTS = 20_000


class VideoEmbedder(Protocol):
    """What embedding moments needs of a model."""

    def embed_videos(self, videos: Sequence[Sequence[Image.Image]], /) -> np.ndarray:
        """Return (n, D) float32 rows of unit length, each of the frames of a moment."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedClip:
    """The moments of a clip in order, their vectors (n, D) float32, and what the clip's header says."""

    moments: list[Moment]
    vectors: np.ndarray
    metadata: PhotoMetadata


def embed_clip(embedder: VideoEmbedder, path: Path) -> EmbeddedClip:
    """Embed the shots of a clip; of more than 20,000, the first. Raises as
    :func:`mmgem.data.clips.find_shots`."""
    moments: list[Moment] = []
    vectors: list[np.ndarray] = []
    for batch in _batches(_ahead(find_shots(path))):
        if len(moments) + len(batch) > _MAX_SHOTS:
            _log.warning("%s: only its first %d shots can be found", path, len(moments))
            break
        vectors.append(np.asarray(embedder.embed_videos([shot.frames for shot in batch]), np.float32))
        moments += [(shot.start, shot.end) for shot in batch]
    if not moments:
        raise ImageError(f"{path}: no frame of it can be decoded")
    return EmbeddedClip(moments, np.concatenate(vectors), clip_metadata(path))


def _batches(shots: Iterator[Shot]) -> Iterator[list[Shot]]:
    batch: list[Shot] = []
    for shot in shots:
        batch.append(shot)
        if sum(len(shot.frames) for shot in batch) >= _BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def _ahead(shots: Iterator[Shot]) -> Iterator[Shot]:
    """``shots``, made by a thread a few ahead."""
    with ThreadPoolExecutor(1, "mmgem-shots") as pool:
        waiting: deque[Future[Shot | None]] = deque()
        waiting.extend(pool.submit(next, shots, None) for _ in range(_AHEAD))
        while (shot := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, shots, None))
            yield shot
