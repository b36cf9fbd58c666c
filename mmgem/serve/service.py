"""What routes ask for, on the event loop: decoding in threads, computing in batches, nothing twice."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from mmgem.api import MMGEM
from mmgem.data.images import check_box
from mmgem.data.records import Box
from mmgem.errors import ImageError
from mmgem.inference.images import squares
from mmgem.inference.texts import unit_rows
from mmgem.search.places import Place
from mmgem.search.rerank import Rerank, assessed
from mmgem.search.search import Hit
from mmgem.serve.batcher import Batcher
from mmgem.serve.errors import Refused
from mmgem.serve.image_input import (
    Opened,
    Photo,
    Upload,
    gone,
    open_for_boxes,
    size_of,
    take,
    take_indexed,
    thumbnail,
)
from mmgem.serve.index_watcher import Gallery, Watched
from mmgem.serve.jobs import Query, Work
from mmgem.serve.limits import Limits
from mmgem.serve.metrics import Metrics
from mmgem.serve.request_cache import Once

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import Answer, SelfRetrieval
    from mmgem.self_retrieval.retriever import Found

T = TypeVar("T")

_SHORT = 1000  # characters; such a text is tokenised at once, in a fraction of a millisecond
_SIZES = 65_536  # of photos of the index, remembered


@dataclass(frozen=True)
class Options:
    """What is served. ``name``: the model's, to clients. ``remote``: photos may be given by address."""

    name: str
    corpus_name: str = ""
    remote: bool = False


class Service:
    """A model, an index and a corpus, ready for many requests at once while :meth:`running`."""

    def __init__(
        self,
        model: MMGEM,
        options: Options,
        limits: Limits,
        metrics: Metrics,
        index: Path | None = None,
        corpus: SelfRetrieval | None = None,
    ) -> None:
        """Raises ``SearchIndexError`` for an index that cannot be served with this model."""
        self.model, self.options, self.limits, self.metrics = model, options, limits, metrics
        self.prep, self.tokenizer = model.tokenizer.prep, model.tokenizer
        self.watched = None if index is None else Watched(index, model.fingerprint, metrics)
        self.corpus = corpus
        self.work = Work(model, corpus, limits)
        self._texts: Once[np.ndarray] = Once("text", limits.recent, metrics)
        self._photos: Once[Tensor] = Once("photo", limits.recent, metrics)
        self._sizes: OrderedDict[tuple[int, str], tuple[int, int] | None] = OrderedDict()
        self._thumbs = _Thumbs(int(limits.thumbs_mb * 1e6))
        self._batchers: list[Batcher] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Threads run, and the index is watched, within this context."""
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "mmgem-decode")
        self._model, self._search = Batcher("model", self.metrics), Batcher("search", self.metrics)
        self._batchers = [self._model, self._search]
        watching = asyncio.create_task(self.watched.watch()) if self.watched is not None else None
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            self.give_up()
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return bool(self._batchers)

    def give_up(self) -> None:
        """Fail what still waits; the batch that is being computed ends by itself."""
        stopping = Refused(503, "shutting_down", "the server is shutting down")
        for batcher in self._batchers:
            batcher.close(stopping)
        self._batchers = []

    @property
    def gallery(self) -> Gallery:
        """The index as it is now. Raises ``Refused`` (404) if none is served."""
        if self.watched is None:
            raise Refused(404, "no_index", "this server has no index: mmgem serve IDX")
        return self.watched.gallery

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run ``work`` in the pool that decodes photos."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def photo(self, image: str | Upload | None, photo: str | None) -> Photo:
        """The photo a request names. Raises ``Refused`` and ``ImageError``."""
        if photo is not None:
            return await self.in_thread(take_indexed, self.gallery.path(photo), photo, self.limits)
        assert image is not None
        return await self.in_thread(take, image, self.limits, self.options.remote)

    async def size(self, photo: Photo) -> tuple[int, int]:
        """Width and height in pixels of the upright photo."""
        return await self.in_thread(size_of, photo)

    async def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Unit vectors ``(n, D)`` float32 of texts, and how many tokens they were. Raises ``DataError`` for
        an empty one."""
        pieces = [await self._pieces(text) for text in texts]
        vectors = await all_of(*(self._text(text, own) for text, own in zip(texts, pieces, strict=True)))
        return np.stack(vectors), sum(len(ids) for own in pieces for ids in own)

    async def vector(self, photo: Photo, box: Box | None = None) -> np.ndarray:
        """The unit vector ``(D,)`` float32 of a photo or a box of it."""
        if box is not None:
            visual = (await self.visual_boxes(photo, [box]))[0]
        elif photo.index_id is not None:
            gallery = self.gallery
            return gallery.index.vector_of(gallery.path(photo.index_id))
        else:
            visual = await self.visual(photo)
        return unit_rows(visual[:1])[0]

    async def visual(self, photo: Photo) -> Tensor:
        """The visual embedding ``(1 + tiles, D)`` of a whole photo, not normalised."""

        async def make() -> Tensor:
            ready = await self._decoded(squares, photo, self.prep, photo.data)
            return await self._model.submit(self.work.photos, ready)

        return await self._photos.get(photo.key, make)

    async def visual_boxes(self, photo: Photo, boxes: list[Box]) -> Tensor:
        """The visual embeddings ``(n, 1 + tiles, D)`` of boxes. Raises ``UsageError`` for a box that cannot
        be."""
        opened = await self._opened(photo)
        for box in boxes:
            check_box(box, opened.size)
        return await self._model.submit(self.work.boxes, (opened, boxes))

    async def captions(self, visuals: Sequence[Tensor], beams: int, tokens: int = 30) -> list[str]:
        """A sentence for each visual embedding ``(1 + tiles, D)``."""
        wanted = [(visual, beams, tokens) for visual in visuals]
        group = (beams, tokens)
        return await all_of(*(self._model.submit(self.work.captions, w, group) for w in wanted))

    async def regions(self, photo: Photo, count: int) -> list[Box]:
        """Up to ``count`` telling boxes: those of the index where it has them, else found now."""
        gallery = self.watched.gallery if self.watched is not None else None
        if photo.index_id is not None and gallery is not None and gallery.index.regions:
            return gallery.index.boxes_of(gallery.path(photo.index_id))[:count]
        return await self._model.submit(self.work.regions, (await self._opened(photo), count))

    async def heat(self, photo: Photo, text: str, cells: int) -> np.ndarray:
        """How well each place fits the text: ``(cells, cells)`` cosines, rows from the top."""
        opened = await self._opened(photo)
        vectors, _ = await self.texts([text])
        return await self._model.submit(self.work.heat, (opened, vectors[0], cells))

    async def search(
        self, gallery: Gallery, vector: np.ndarray, k: int, regions: bool, place: Place | None
    ) -> list[Hit]:
        """The best ``k`` photos, or boxes of so many photos. Raises ``UsageError`` if it has no regions."""
        query = (gallery.index, Query(vector, k, regions, place))
        return await self._search.submit(self.work.searches, query, (gallery.generation, regions))

    async def rerank(self, gallery: Gallery, text: str, k: int) -> list[Hit]:
        """The best ``k`` photos for a text, as :func:`mmgem.search.rerank.rerank` finds and orders them."""
        options = Rerank()
        (ids,) = self.tokenizer.encode_all([text])
        vectors, _ = await self.texts([text])
        hits = await self.search(gallery, vectors[0], max(k, options.candidates), False, None)
        if not hits:
            return []
        pairs = np.stack([gallery.index.vector_of(hit.path) for hit in hits])
        given = await self._model.submit(self.work.assess, (pairs, ids), cost=len(pairs))
        return list(assessed(hits, given, len(ids), self.model.temperature, options)[:k])

    async def passages(self, question: str, k: int) -> list[Found]:
        """The best ``k`` passages of the corpus."""
        self._need_corpus()
        return await self._model.submit(self.work.passages, (question, k), k)

    async def answer(self, question: str, k: int) -> Answer:
        """An answer from the best ``k`` passages."""
        return await self._model.submit(self.work.answers, (question, await self.passages(question, k)))

    async def shown_size(self, gallery: Gallery, photo: str) -> tuple[int, int] | None:
        """Size in pixels of a photo of the index, None if it cannot be read; remembered."""
        key = (gallery.generation, photo)
        if key not in self._sizes:
            size = await self.in_thread(_size_or_none, gallery.path(photo), photo, self.limits)
            self._sizes[key] = size
            if len(self._sizes) > _SIZES:
                self._sizes.popitem(last=False)
            return size
        return self._sizes[key]

    async def thumb(self, photo: Photo, side: int) -> bytes:
        """A small JPEG of a photo."""
        key = (photo.key, side)
        if (found := self._thumbs.get(key)) is None:
            found = await self._decoded(thumbnail, photo, photo, side)
            self._thumbs.put(key, found)
        return found

    async def _pieces(self, text: str) -> list[Tensor]:
        if len(text) <= _SHORT:
            return self.tokenizer.encode_parts([text])[0]
        return (await self.in_thread(self.tokenizer.encode_parts, [text]))[0]

    async def _text(self, text: str, pieces: list[Tensor]) -> np.ndarray:
        cost = sum(map(len, pieces))
        return await self._texts.get(text, lambda: self._model.submit(self.work.texts, pieces, cost=cost))

    async def _opened(self, photo: Photo) -> Opened:
        return await self._decoded(open_for_boxes, photo, photo, self.prep)

    async def _decoded(self, decode: Callable[..., T], photo: Photo, *arguments: Any) -> T:
        try:
            return await self.in_thread(decode, *arguments)
        except ImageError as error:
            if photo.index_id is None:
                raise
            raise gone(photo.index_id) from error

    def _need_corpus(self) -> None:
        if self.corpus is None:
            raise Refused(404, "no_corpus", "this server has no corpus: mmgem serve --corpus MODEL")


async def all_of(*work: Awaitable[T]) -> list[T]:
    """All results; at the first error the rest of the work is given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


class _Thumbs:
    """Small JPEGs, ``most`` bytes of them, the last used ones."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, int]) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[str, int], data: bytes) -> None:
        self._held += len(data) - len(self._kept.get(key, b""))
        self._kept[key] = data
        while self._held > self._most and self._kept:
            self._held -= len(self._kept.popitem(last=False)[1])


def _size_or_none(path: Path, photo: str, limits: Limits) -> tuple[int, int] | None:
    try:
        return size_of(take_indexed(path, photo, limits))
    except (ImageError, Refused):
        return None
