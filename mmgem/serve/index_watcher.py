"""The index as it is served: photos by id, and its newer state once another process has made one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mmgem.data.moments import Moment
from mmgem.errors import SearchIndexError
from mmgem.search.filters import NO_FILTERS, Filters
from mmgem.search.hits import Hit
from mmgem.search.index_files import database_file
from mmgem.search.search import PhotoIndex
from mmgem.serve.errors import APIError
from mmgem.serve.metrics import Metrics

_log = logging.getLogger(__name__)

_FILTERS_KEPT = 16
_POLL_SECONDS = 2.0  # seconds between two looks at the files
_MIN_PAUSE_RATIO = 20  # at most this share (1/20) of the time goes into opening the index again


class Gallery:
    """One state of an index. A photo's id is 16 hex digits, a hash of its path in the folder; each moment of
    a clip has one too, and is a photo as any other: its middle frame."""

    def __init__(
        self,
        index: PhotoIndex,
        generation: int,
        filters: Filters = NO_FILTERS,
        whole: Gallery | None = None,
    ) -> None:
        """``index``: what passes ``filters``, of the ``whole``."""
        self.index, self.generation, self.filters = index, generation, filters
        self.photos: dict[str, str] = {} if whole is None else whole.photos
        """Name (path in the folder) of each photo by its id, in the order of names, then of time."""
        self.moments: dict[str, Moment] = {} if whole is None else whole.moments
        """Start and end in seconds of those that are moments, by id."""
        if whole is None:
            order = sorted((index.names[entry], index.moments[entry] or ()) for entry in index.photos)
            for name, moment in order:
                photo = _photo_id(name, moment[0] if moment else None)
                self.photos[photo] = name
                if moment:
                    self.moments[photo] = moment
        self._lock = Lock()
        self._filtered: OrderedDict[Filters, Gallery] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index.photos)

    def filtered(self, filters: Filters) -> Gallery:
        """The part of it that passes ``filters``; the last ones are remembered. From any thread. Raises as
        :meth:`PhotoIndex.filtered`."""
        if not filters:
            return self
        with self._lock:  # also of the one table that all ask
            if filters not in self._filtered:
                index = self.index.filtered(filters)
                self._filtered[filters] = Gallery(index, self.generation, filters, self)
                if len(self._filtered) > _FILTERS_KEPT:
                    self._filtered.popitem(last=False)
            self._filtered.move_to_end(filters)
            return self._filtered[filters]

    @cached_property
    def ids(self) -> list[str]:
        """Ids in the order of names."""
        return list(self.photos)

    def name(self, photo: str) -> str:
        """The name of a photo by its id. Raises ``APIError`` (404)."""
        if photo not in self.photos:
            raise APIError(404, "not_found", f"no photo {photo} in the index", "photo")
        return self.photos[photo]

    def path(self, photo: str) -> Path:
        """Where a photo is. Raises ``APIError`` (404)."""
        return self.index.folder / self.name(photo)

    def vector(self, photo: str) -> np.ndarray:
        """The unit vector ``(D,)`` float32 of a photo. Raises ``APIError`` (404)."""
        moment = self.moments.get(photo)
        return self.index.vector_of(self.path(photo), None if moment is None else moment[0])

    def id_of(self, hit: Hit) -> str:
        """The id of what a search has found."""
        return _photo_id(self.index.name_of(hit.path), hit.start)

    def told(self, photo: str) -> dict[str, Any]:
        """What replies say of a photo: ``id``, ``name``, and ``start`` and ``end`` of a moment."""
        start, end = self.moments.get(photo, (None, None))
        return {"id": photo, "name": self.name(photo), "start": start, "end": end}


def _photo_id(name: str, start: float | None) -> str:
    key = os.fsencode(name) if start is None else b"%s\0%r" % (os.fsencode(name), start)
    return hashlib.blake2b(key, digest_size=8).hexdigest()


class IndexWatcher:
    """An index folder and its newest state, :attr:`gallery`; a request keeps the one it started with."""

    def __init__(self, out: Path, fingerprint: str, metrics: Metrics) -> None:
        """Raises ``SearchIndexError`` if the index is missing, damaged or another model's."""
        self._out, self._fingerprint, self._metrics = out, fingerprint, metrics
        self._opened_stamp = self._stamp()
        self.gallery = self._open(1)

    async def watch(self) -> None:
        """Open the index again whenever its files change, until cancelled."""
        pause = _POLL_SECONDS
        while True:
            await asyncio.sleep(pause)
            stamp = self._stamp()
            if stamp == self._opened_stamp:
                continue
            began = time.perf_counter()
            try:
                self.gallery = await asyncio.to_thread(self._open, self.gallery.generation + 1)
                self._opened_stamp = stamp
            except SearchIndexError as error:  # half written, or gone: the state at hand still serves
                _log.warning("the index could not be opened again: %s", error)
            except Exception:  # a bug must not end the watching
                _log.exception("the index could not be opened again")
            pause = max(_POLL_SECONDS, _MIN_PAUSE_RATIO * (time.perf_counter() - began))

    def _open(self, generation: int) -> Gallery:
        gallery = Gallery(PhotoIndex.open(self._out, fingerprint=self._fingerprint), generation)
        self._metrics.photos.set(len(gallery))
        self._metrics.generation.set(generation)
        return gallery

    def _stamp(self) -> tuple[int, ...]:
        try:
            stat = database_file(self._out).stat()
        except OSError:
            return ()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
