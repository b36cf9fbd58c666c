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
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmgem.api import MMGEM
from mmgem.data.clips import clip_metadata
from mmgem.data.images import check_box
from mmgem.data.records import Box
from mmgem.errors import ImageError, UsageError
from mmgem.inference.caption_options import CaptionOptions
from mmgem.inference.captioning import DecodedCaption
from mmgem.inference.images import preprocess_image
from mmgem.inference.texts import unit_rows
from mmgem.search.hits import Hit, with_match
from mmgem.search.query_terms import combined_vector
from mmgem.search.rerank import PAIR_BATCH_SIZE, RerankOptions, rerank_hits
from mmgem.search.spatial_filter import SpatialFilter
from mmgem.serve.batcher import Batcher
from mmgem.serve.errors import APIError
from mmgem.serve.image_input import (
    DecodedPhoto,
    PhotoSource,
    Upload,
    decode_for_boxes,
    is_data_uri,
    load_indexed_photo,
    load_sent_photo,
    photo_gone,
    photo_size,
    thumbnail,
)
from mmgem.serve.index_watcher import Gallery, IndexWatcher
from mmgem.serve.jobs import RERANK_JOB_TOKENS, TEXT_JOB_TOKENS, ModelJobs, SearchQuery
from mmgem.serve.limits import Limits
from mmgem.serve.metrics import Metrics
from mmgem.serve.remote import Fetch
from mmgem.serve.request_cache import RequestCache
from mmgem.serve.request_scope import RequestScope, current_request
from mmgem.serve.schemas import TermField
from mmgem.serve.text_input import check_question, decode_token_ids, encode_texts

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import Answer, SelfRetrieval
    from mmgem.self_retrieval.retriever import ScoredPassage

T = TypeVar("T")
K = TypeVar("K")

_SHORT_TEXT_CHARS = 1000  # characters; such a text is tokenised at once, in a fraction of a millisecond
_FETCHES = 8  # photos fetched from other servers at once, a quarter of them for one request
_DECODED = 16  # photos decoded for their boxes at once, 150 MB each at worst; a quarter for one request
_TEXTS_AT_ONCE = 64  # of a request, waiting for the model; two full batches
_SIZE_CACHE = 65_536  # of photos of the index, remembered


@dataclass(frozen=True)
class ServiceOptions:
    """What is served. ``name``: the model's, to clients. ``remote``: photos may be given by address.
    ``local``: only who uses this machine asks, and may see the paths of photos and have their folders opened
    on it."""

    name: str
    corpus_name: str = ""
    remote: bool = False
    local: bool = False


class Service:
    """A model, an index and a corpus, ready for many requests at once while :meth:`running`."""

    def __init__(
        self,
        model: MMGEM,
        options: ServiceOptions,
        limits: Limits,
        metrics: Metrics,
        index: Path | None = None,
        corpus: SelfRetrieval | None = None,
    ) -> None:
        """Raises ``SearchIndexError`` for an index that cannot be served with this model."""
        self.model, self.options, self.limits, self.metrics = model, options, limits, metrics
        self.prep, self.tokenizer = model.tokenizer.prep, model.tokenizer
        self.index_watcher = None if index is None else IndexWatcher(index, model.fingerprint, metrics)
        self.corpus = corpus
        self.jobs = ModelJobs(model, corpus, limits)
        self._texts: RequestCache[np.ndarray] = RequestCache("text", limits.recent, metrics)
        self._photos: RequestCache[Tensor] = RequestCache("photo", limits.recent, metrics)
        self._sizes: OrderedDict[tuple[int, str], tuple[int, int] | None] = OrderedDict()
        self._thumbs: _JPEGCache[tuple[str, int]] = _JPEGCache(int(limits.thumbs_mb * 1e6))
        self._frames: _JPEGCache[str] = _JPEGCache(int(limits.thumbs_mb * 1e6))
        self._batchers: list[Batcher] = []
        self._slots: dict[str, WeakKeyDictionary[RequestScope, asyncio.Semaphore]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Threads run, and the index is watched, within this context."""
        self._threads = max(2, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, "mmgem-decode")
        self._fetch_pool = ThreadPoolExecutor(_FETCHES, "mmgem-fetch")
        self._decoded = asyncio.Semaphore(_DECODED)
        self._model, self._search = Batcher("model", self.metrics), Batcher("search", self.metrics)
        self._batchers = [self._model, self._search]
        watch_task = (
            asyncio.create_task(self.index_watcher.watch()) if self.index_watcher is not None else None
        )
        try:
            yield
        finally:
            if watch_task is not None:
                watch_task.cancel()
                with suppress(asyncio.CancelledError):
                    await watch_task
            self.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._fetch_pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return bool(self._batchers)

    def stop(self) -> None:
        """Fail what still waits; the batch that is being computed ends by itself."""
        stopping = APIError(503, "shutting_down", "the server is shutting down")
        for batcher in self._batchers:
            batcher.close(stopping)
        self._batchers = []

    @property
    def gallery(self) -> Gallery:
        """The index as it is now. Raises ``APIError`` (404) if none is served."""
        if self.index_watcher is None:
            raise APIError(404, "no_index", "this server has no index: mmgem serve IDX")
        return self.index_watcher.gallery

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run ``function`` in the pool that decodes photos, of whose threads a request gets half."""
        async with self._slot("thread", self._threads // 2):
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _slot(self, name: str, size: int) -> asyncio.Semaphore:
        """To be held while this request does what it may do ``size`` times at once."""
        slots = self._slots.setdefault(name, WeakKeyDictionary())
        return slots.setdefault(current_request(), asyncio.Semaphore(size))

    async def photo(self, image: str | Upload | None, photo: str | None) -> PhotoSource:
        """The photo a request names. Raises ``APIError`` and ``ImageError``."""
        if photo is not None:
            gallery = self.gallery
            moment, frames = gallery.moments.get(photo), self._frames
            return await self.in_thread(
                load_indexed_photo, gallery.path(photo), photo, self.limits, moment, frames
            )
        assert image is not None
        if isinstance(image, str) and self.options.remote and not is_data_uri(image):
            image = Upload(await self._fetch(image))
        return await self.in_thread(load_sent_photo, image, self.limits)

    async def terms_vector(self, terms: Sequence[TermField], regions: bool = False) -> np.ndarray:
        """The unit vector ``(D,)`` float32 of a query of several terms, for photos or for ``regions``. Raises
        as :meth:`vector` and :func:`mmgem.search.query_terms.combined_vector`."""

        async def embed(term: TermField) -> np.ndarray:
            if term.text is not None:
                return await self.query(term.text, regions)
            return await self.vector(await self.photo(term.image, term.photo), term.box)

        vectors = await gather(*map(embed, terms))
        return combined_vector(vectors, [term.weight for term in terms])

    async def size(self, photo: PhotoSource) -> tuple[int, int]:
        """Width and height in pixels of the upright photo."""
        return await self.in_thread(photo_size, photo)

    async def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Unit vectors ``(n, D)`` float32 of texts, and how many tokens they were. Raises ``DataError`` for
        an empty one, ``APIError`` for too many tokens."""
        if not texts:
            return np.empty((0, self.model.dim), np.float32), 0
        pieces = await self._encode_texts(texts)
        vectors: list[np.ndarray] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            some = zip(texts[at : at + _TEXTS_AT_ONCE], pieces[at : at + _TEXTS_AT_ONCE], strict=True)
            vectors += await gather(*(self._text_vector(text, text_pieces) for text, text_pieces in some))
        return np.stack(vectors), sum(len(ids) for text_pieces in pieces for ids in text_pieces)

    async def query(self, text: str, regions: bool = False) -> np.ndarray:
        """The unit vector ``(D,)`` float32 of what is searched for, among photos or ``regions``. Raises as
        :meth:`texts`."""
        vectors, _ = await self.texts(self.tokenizer.query_texts([text], regions))
        return np.asarray(vectors[0])

    async def vector(self, photo: PhotoSource, box: Box | None = None) -> np.ndarray:
        """The unit vector ``(D,)`` float32 of a photo or a box of it."""
        if box is not None:
            visual = (await self.visual_boxes(photo, [box]))[0]
        elif photo.index_id is not None:
            return self.gallery.vector(photo.index_id)
        else:
            visual = await self.visual(photo)
        with torch.inference_mode():
            return unit_rows(self.jobs.network.image_embeddings(visual[None]))[0]

    async def visual(self, photo: PhotoSource) -> Tensor:
        """The visual embedding ``(1 + tiles, D)`` of a whole photo, not normalised."""

        async def make() -> Tensor:
            pixels = await self._in_decode_thread(preprocess_image, photo, self.prep, photo.data)
            return await self._model.submit(self.jobs.photos, pixels)

        return await self._photos.get(photo.key, make)

    async def visual_boxes(self, photo: PhotoSource, boxes: list[Box]) -> Tensor:
        """The visual embeddings ``(n, 1 + tiles, D)`` of boxes. Raises ``UsageError`` for a box that cannot
        be."""
        async with self._decoded_photo(photo) as decoded:
            for box in boxes:
                check_box(box, decoded.size)
            return await self._model.submit(self.jobs.boxes, (decoded, boxes))

    async def captions(self, visuals: Sequence[Tensor], options: CaptionOptions) -> list[DecodedCaption]:
        """A sentence for each visual embedding ``(1 + tiles, D)``."""
        job, submit = self.jobs.captions, self._model.submit
        return await gather(*(submit(job, (visual, options), options, options.beams) for visual in visuals))

    async def regions(self, photo: PhotoSource, count: int) -> list[Box]:
        """Up to ``count`` telling boxes: those of the index where it has them, else found now."""
        gallery = self.index_watcher.gallery if self.index_watcher is not None else None
        of_index = gallery is not None and photo.index_id not in gallery.moments
        if photo.index_id is not None and gallery is not None and of_index and gallery.index.regions:
            return gallery.index.boxes_of(gallery.path(photo.index_id))[:count]
        async with self._decoded_photo(photo) as decoded:
            return await self._model.submit(self.jobs.regions, (decoded, count))

    async def heatmap(self, photo: PhotoSource, text: str, cells: int) -> np.ndarray:
        """How well each place fits the text: ``(cells, cells)`` cosines, rows from the top."""
        vectors, _ = await self.texts([text])
        async with self._decoded_photo(photo) as decoded:
            return await self._model.submit(self.jobs.heatmaps, (decoded, vectors[0], cells))

    async def search(
        self, gallery: Gallery, vector: np.ndarray, k: int, regions: bool, where: SpatialFilter | None
    ) -> list[Hit]:
        """The best ``k`` photos, or boxes of so many photos. Raises ``UsageError`` if it has no regions."""
        query = (gallery.index, SearchQuery(vector, k, regions, where))
        return await self._search.submit(
            self.jobs.searches, query, (gallery.generation, gallery.filters, regions)
        )

    async def rerank(self, gallery: Gallery, text: str, k: int) -> list[Hit]:
        """The best ``k`` photos for a text, as :class:`mmgem.search.rerank.Reranker` orders them."""
        options = RerankOptions()
        vector = await self.query(text)
        (ids,) = await self.in_thread(self.tokenizer.encode_all, [text])
        hits = await self.search(gallery, vector, max(k, options.candidates), False, None)
        if not hits:
            return []
        hits = with_match(hits, self.model.calibration, vector, len(gallery))
        vectors_of_hits = np.stack([gallery.index.vector_of(hit.path, hit.start) for hit in hits])
        at_once = min(PAIR_BATCH_SIZE, max(1, RERANK_JOB_TOKENS // len(ids)))
        parts = [vectors_of_hits[at : at + at_once] for at in range(0, len(hits), at_once)]
        job, submit = self.jobs.rerank, self._model.submit
        log_probs = await gather(*(submit(job, (part, ids), cost=len(part) * len(ids)) for part in parts))
        return list(
            rerank_hits(hits, np.concatenate(log_probs), len(ids), self.model.temperature, options)[:k]
        )

    async def passages(self, question: str, k: int) -> list[ScoredPassage]:
        """The best ``k`` passages of the corpus."""
        self._need_corpus()
        assert self.corpus is not None
        await self.in_thread(check_question, self.corpus.tokenizer, question, self.limits)
        return await self._model.submit(self.jobs.passages, (question, k), k)

    async def answer(self, question: str, k: int) -> Answer:
        """An answer from the best ``k`` passages."""
        return await self._model.submit(self.jobs.answers, (question, await self.passages(question, k)))

    async def indexed_photo_size(self, gallery: Gallery, photo: str) -> tuple[int, int] | None:
        """Size in pixels of a photo of the index, None if it cannot be read; remembered."""
        key = (gallery.generation, photo)
        if key not in self._sizes:
            clip = photo in gallery.moments
            size = await self.in_thread(_size_or_none, gallery.path(photo), photo, self.limits, clip)
            if size is not None:  # what could not be read now may be later
                self._sizes[key] = size
            if len(self._sizes) > _SIZE_CACHE:
                self._sizes.popitem(last=False)
            return size
        return self._sizes[key]

    async def thumb(self, photo: PhotoSource, side: int) -> bytes:
        """A small JPEG of a photo."""
        key = (photo.key, side)
        if (jpeg := self._thumbs.get(key)) is None:
            jpeg = await self._in_decode_thread(thumbnail, photo, photo, side)
            self._thumbs.put(key, jpeg)
        return jpeg

    async def text_of(self, ids: Sequence[int]) -> str:
        """The text of token ids. Raises ``APIError``."""
        return await self.in_thread(decode_token_ids, self.tokenizer, ids)

    async def _fetch(self, url: str) -> bytes:
        """The photo at an address. Raises ``APIError``."""
        fetch = Fetch(url, int(self.limits.body_mb * 1e6), self.limits.fetch_seconds)
        async with self._slot("fetch", _FETCHES // 4):
            try:
                return await asyncio.get_running_loop().run_in_executor(self._fetch_pool, fetch.run)
            finally:
                fetch.close()

    async def _encode_texts(self, texts: Sequence[str]) -> list[list[Tensor]]:
        if sum(map(len, texts)) <= _SHORT_TEXT_CHARS:
            return encode_texts(self.tokenizer, texts, self.limits)
        return await self.in_thread(encode_texts, self.tokenizer, texts, self.limits)

    async def _text_vector(self, text: str, pieces: list[Tensor]) -> np.ndarray:
        job, submit = self.jobs.texts, self._model.submit

        async def make() -> np.ndarray:
            shares = _shares(pieces)
            rows = np.concatenate(
                await gather(*(submit(job, share, cost=sum(map(len, share))) for share in shares))
            )
            return rows[0] if len(rows) == 1 else unit_rows(torch.from_numpy(rows.sum(0, keepdims=True)))[0]

        return await self._texts.get(text, make)

    @asynccontextmanager
    async def _decoded_photo(self, photo: PhotoSource) -> AsyncIterator[DecodedPhoto]:
        """A photo decoded for its boxes; few are held at once, and fewer for one request."""
        async with self._slot("decoded", _DECODED // 4), self._decoded:
            yield await self._decode_for_boxes(photo)

    async def _decode_for_boxes(self, photo: PhotoSource) -> DecodedPhoto:
        return await self._in_decode_thread(decode_for_boxes, photo, photo, self.prep)

    async def _in_decode_thread(self, decode: Callable[..., T], photo: PhotoSource, *arguments: Any) -> T:
        try:
            return await self.in_thread(decode, *arguments)
        except ImageError as error:
            if photo.index_id is None:
                raise
            raise photo_gone(photo.index_id) from error

    def _need_corpus(self) -> None:
        if self.corpus is None:
            raise APIError(404, "no_corpus", "this server has no corpus: mmgem serve --corpus MODEL")


async def gather(*awaitables: Awaitable[T]) -> list[T]:
    """All results; at the first error the rest of the work is given up."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _shares(pieces: list[Tensor]) -> list[list[Tensor]]:
    """The pieces of a text in turn, in items of about ``TEXT_JOB_TOKENS`` tokens."""
    shares: list[list[Tensor]] = []
    room = 0
    for piece in pieces:
        if not shares or len(piece) > room:
            shares.append([])
            room = TEXT_JOB_TOKENS
        shares[-1].append(piece)
        room -= len(piece)
    return shares


class _JPEGCache(Generic[K]):
    """JPEGs, ``max_bytes`` of them, the last used ones. From any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._jpegs: OrderedDict[K, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> bytes | None:
        with self._lock:
            if key in self._jpegs:
                self._jpegs.move_to_end(key)
            return self._jpegs.get(key)

    def put(self, key: K, data: bytes) -> None:
        with self._lock:
            self._bytes += len(data) - len(self._jpegs.get(key, b""))
            self._jpegs[key] = data
            while self._bytes > self._max_bytes and self._jpegs:
                self._bytes -= len(self._jpegs.popitem(last=False)[1])


def _size_or_none(path: Path, photo: str, limits: Limits, clip: bool) -> tuple[int, int] | None:
    try:
        if clip:
            metadata = clip_metadata(path)
            return metadata.width, metadata.height
        return photo_size(load_indexed_photo(path, photo, limits))
    except (ImageError, APIError, UsageError):
        return None
