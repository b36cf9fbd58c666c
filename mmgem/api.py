"""The public model: files, pictures and strings in; embeddings, captions and scores out."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmgem.checkpoints.hub import read_card, upload, with_front_matter
from mmgem.checkpoints.model_folder import load_model, save_model
from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
from mmgem.data.images import ImageSource, other_files
from mmgem.data.moments import to_moment
from mmgem.data.records import Box, Media
from mmgem.data.texts import check_text, check_texts
from mmgem.data.tokens import Tokenizer
from mmgem.errors import ImageError, UsageError
from mmgem.export.compress import quantization_bits
from mmgem.export.run import Backend, use_graphs, wanted_graphs
from mmgem.inference.calibration import MatchCalibration
from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
from mmgem.inference.captioning import DecodedCaption, decode_captions
from mmgem.inference.images import VisualSource, encode_images, find_regions, text_heatmaps
from mmgem.inference.texts import embed_texts, truncate_embeddings, unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.search.hnsw import update_hnsw_index
from mmgem.search.index import update_index
from mmgem.search.index_store import check_fingerprint
from mmgem.search.rerank import RerankedHit, Reranker, RerankOptions, text_log_probs
from mmgem.search.search import PhotoIndex
from mmgem.utils.progress import track

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LISTED = 20  # photos that are skipped, by name

VideoSource = str | os.PathLike[str] | Sequence[ImageSource]
"""A clip: a video or an animated picture by its path, or its frames."""
Time = str | float | tuple[float, float]
"""A moment of a clip: ``"12-15"``, ``"1:02-1:10"``, a start and an end in seconds, or an instant."""


class MMGEM:
    """One model that embeds, captions and scores images and texts.

    Build it with :meth:`from_pretrained`. All methods take any number of inputs and work in batches of
    ``batch``; images may be paths, PIL pictures, ``(H, W, 3)`` uint8 arrays or encoded bytes, mixed. Where
    boxes may be given, what a record of a dataset is of (``record.source``) may be, too: an image or a clip.
    """

    def __init__(
        self,
        network: MMGEMNetwork,
        tokenizer: Tokenizer,
        fingerprint: str = "",
        batch: int = 32,
        card: str = "",
        name: str = "",
        calibration: MatchCalibration | None = None,
    ):
        """``fingerprint`` of the weights and ``name``, what loads them again in any working directory, are
        kept in an index; empty: this model is in no folder. ``calibration``: what its cosines mean."""
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.batch = batch
        self.card = card
        self.name = name
        self.calibration = calibration

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "tiny",
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        backend: Backend = "auto",
    ) -> MMGEM:
        """Load ``"tiny"`` (ships with the package), a model folder, or a hub id.

        ``precision``: of the encoder and the LLM in torch; bfloat16 is for hardware made for it, and moves
        similarities by less than 0.01. ``backend``: what embeds. ``onnx`` and ``openvino`` are graphs that
        ``mmgem export`` put into the folder, in a precision of their own; ``auto`` takes them where there are
        some, on a CPU; ``torch`` never does. Raises ``CheckpointError`` if there is no such model or its
        folder is not whole.
        """
        folder = resolve(name)
        graphs = wanted_graphs(folder, backend, device)
        network, tokenizer = load_model(folder)
        network = network.to(device).to_inference_dtype(precision)
        if graphs is not None:
            use_graphs(network, folder, graphs)
        return cls(
            network,
            tokenizer,
            fingerprint(folder),
            card=read_card(folder),
            name=lasting_name(name),
            calibration=MatchCalibration.load(folder, network.config.dim),
        )

    def save_pretrained(
        self, folder: str | os.PathLike[str], licence: str | None = None, small: bool = False
    ) -> None:
        """Write the model folder that :meth:`from_pretrained` reads, replacing ``folder`` as a whole.

        The card (``README.md``) keeps its text and gets the front matter that the hub reads; ``licence`` goes
        there, as a hub identifier (``apache-2.0``). ``small``: matrices in 4, 8 and 16 bits, as
        ``mmgem export`` writes them; else float32. The calibration is written too, a corpus and graphs are
        not. Raises ``UsageError`` for a model that runs graphs, or in bfloat16.
        """
        if self.network.text_graph is not None or self.network.llm.dtype != torch.float32:
            raise UsageError("to save a model load it with backend='torch' and precision='float32'")
        card = with_front_matter(self.card, self.network, licence)
        bits = quantization_bits(self.network) if small else None
        more = self.calibration.save if self.calibration is not None else None
        save_model(Path(folder), self.network, self.tokenizer, card, bits, more)

    def push_to_hub(
        self,
        repo: str,
        licence: str | None = None,
        small: bool = False,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub as ``repo`` (``owner/name``),
        which is made if it is not there; returns the address of the commit.

        ``token``: None: the one of ``hf auth login``. Raises ``UsageError`` if the hub refuses.
        """
        with tempfile.TemporaryDirectory() as temporary_folder:
            folder = Path(temporary_folder, "model")
            self.save_pretrained(folder, licence, small)
            return upload(folder, repo, private, token)

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.network.config.dim

    @property
    def temperature(self) -> float:
        """The trained temperature: cosines divided by it are the logits of the contrastive objective."""
        return 1 / self.network.logit_scale.detach().exp().item()

    @torch.inference_mode()
    def embed_images(
        self,
        images: Sequence[ImageSource | Media],
        boxes: Sequence[Box | None] | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Embed whole images, or one box of each.

        ``boxes``: ``x0, y0, x1, y1`` in pixels of the upright stored image, one per image (None: the whole).
        ``dimensions``: only the first so many of the D numbers, of unit length again. Returns ``(n, D)``
        float32 of unit length. Raises ``ImageError`` naming the image that cannot be read,
        ``UsageError`` for a box that is empty or outside the image, or a wrong number of boxes.
        """
        parts = [unit_rows(self.network.image_embeddings(v)) for v in self._visual(images, boxes)]
        rows = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)
        return truncate_embeddings(rows, dimensions)

    def embed_texts(self, texts: Sequence[str], dimensions: int | None = None) -> np.ndarray:
        """Embed texts: ``(n, D)`` float32 of unit length; the dot product with an image's embedding is their
        similarity. A text of several sentences, however long, is the mean of their embeddings (see
        ``preprocessing.long_text``). ``dimensions`` as in :meth:`embed_images`. Raises ``DataError`` for an
        empty text and for half a character, ``UsageError`` for anything but a list of strings."""
        rows = embed_texts(self.network, self.tokenizer, check_texts(texts), 4 * self.batch)
        return truncate_embeddings(rows, dimensions)

    def embed_queries(self, texts: Sequence[str], regions: bool = False) -> np.ndarray:
        """Embed searches: as :meth:`embed_texts`, but a text of up to six words, unless for ``regions``, is
        read behind the model's ``preprocessing.query_prefix`` (``"dog"`` as ``"a picture of dog"``)."""
        return self.embed_texts(self.tokenizer.query_texts(texts, regions))

    def caption(
        self,
        images: Sequence[ImageSource | Media],
        boxes: Sequence[Box | None] | None = None,
        beams: int = CAPTION_DEFAULTS.beams,
        max_tokens: int = CAPTION_DEFAULTS.max_tokens,
        clip_rescore_weight: float = CAPTION_DEFAULTS.clip_rescore_weight,
        assess: float | None = None,
    ) -> list[str]:
        """Describe each image, or one box of each, in a sentence. ``beams=1`` is greedy decoding.

        ``max_tokens``: where a caption that goes on is cut. ``clip_rescore_weight``: how much the model's own
        embedding of what beam search found decides which is said, added to log P a token as a multiple of
        cosine over temperature; 0: log P alone. ``assess``: its name of before, deprecated. Raises
        ``UsageError`` for ``beams`` or ``max_tokens`` below 1, and as :meth:`embed_images` does.
        """
        weight = _clip_rescore_weight(clip_rescore_weight, assess)
        options = CaptionOptions(beams, max_tokens, clip_rescore_weight=weight)
        return [caption.text for caption in self._describe(images, boxes, options, embed=False)[1]]

    def caption_with_confidence(
        self,
        images: Sequence[ImageSource | Media],
        boxes: Sequence[Box | None] | None = None,
        beams: int = CAPTION_DEFAULTS.beams,
        max_tokens: int = CAPTION_DEFAULTS.max_tokens,
        clip_rescore_weight: float = CAPTION_DEFAULTS.clip_rescore_weight,
    ) -> list[DecodedCaption]:
        """:meth:`caption`, with how sure of each the model is: its ``log_prob`` a token, and by
        :attr:`calibration` its ``confidence`` (:class:`~mmgem.inference.captioning.DecodedCaption`)."""
        options = CaptionOptions(beams, max_tokens, clip_rescore_weight=clip_rescore_weight)
        return self.rate(self._describe(images, boxes, options, embed=False)[1])

    def rate(self, captions: Sequence[DecodedCaption]) -> list[DecodedCaption]:
        """``captions`` with their ``confidence``, where this model is calibrated for captions."""
        weights = self.calibration.captions if self.calibration is not None else None
        if weights is None or not captions:
            return list(captions)
        shares = weights.confidence(np.array([caption.log_prob for caption in captions]))
        return [replace(c, confidence=share) for c, share in zip(captions, shares.tolist(), strict=True)]

    def describe(
        self,
        images: Sequence[ImageSource | Media],
        boxes: Sequence[Box | None] | None = None,
        beams: int = CAPTION_DEFAULTS.beams,
        max_tokens: int = CAPTION_DEFAULTS.max_tokens,
        clip_rescore_weight: float = CAPTION_DEFAULTS.clip_rescore_weight,
        assess: float | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """:meth:`embed_images` and :meth:`caption` in one pass of the encoder: ``(n, D)`` float32 of unit
        length, and a caption each."""
        weight = _clip_rescore_weight(clip_rescore_weight, assess)
        options = CaptionOptions(beams, max_tokens, clip_rescore_weight=weight)
        vectors, captions = self._describe(images, boxes, options)
        return vectors, [caption.text for caption in captions]

    @torch.inference_mode()
    def _describe(
        self,
        images: Sequence[ImageSource | Media],
        boxes: Sequence[Box | None] | None,
        options: CaptionOptions,
        embed: bool = True,
    ) -> tuple[np.ndarray, list[DecodedCaption]]:
        vectors, captions = [np.empty((0, self.dim), np.float32)], list[DecodedCaption]()
        for visual in (part for chunk in self._visual(images, boxes) for part in chunk.split(self.batch)):
            if embed:
                vectors.append(unit_rows(self.network.image_embeddings(visual)))
            captions += decode_captions(self.network, self.tokenizer, visual, options)
        return np.concatenate(vectors), captions

    @torch.inference_mode()
    def embed_videos(
        self,
        videos: Sequence[VideoSource],
        times: Sequence[Time | None] | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Embed clips, or a moment of each: the mean of their frames, as the pooling of a box in time.

        ``videos``: paths of videos (PyAV) and animated pictures, of which up to eight frames are taken, or
        lists of frames. ``times``: one per clip (None: all of it), :data:`Time`; only for paths. Returns
        ``(n, D)`` float32 of unit length, of ``dimensions`` as in :meth:`embed_images`. Raises ``ImageError``
        for a clip that cannot be read, ``UsageError`` without PyAV, for a time that is none or comes after
        the end.
        """
        parts = [unit_rows(self.network.image_embeddings(v)) for v in self._pooled(videos, times)]
        rows = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)
        return truncate_embeddings(rows, dimensions)

    @torch.inference_mode()
    def caption_videos(
        self,
        videos: Sequence[VideoSource],
        times: Sequence[Time | None] | None = None,
        beams: int = CAPTION_DEFAULTS.beams,
        max_tokens: int = CAPTION_DEFAULTS.max_tokens,
    ) -> list[str]:
        """Describe each clip, or a moment of each, in a sentence: what its frames have in common. Arguments
        as of :meth:`embed_videos` and :meth:`caption`, and raises as they do."""
        return [c.text for c in self.caption_videos_with_confidence(videos, times, beams, max_tokens)]

    @torch.inference_mode()
    def caption_videos_with_confidence(
        self,
        videos: Sequence[VideoSource],
        times: Sequence[Time | None] | None = None,
        beams: int = CAPTION_DEFAULTS.beams,
        max_tokens: int = CAPTION_DEFAULTS.max_tokens,
    ) -> list[DecodedCaption]:
        """:meth:`caption_videos`, with what :meth:`caption_with_confidence` says of each."""
        options, pooled = CaptionOptions(beams, max_tokens), self._pooled(videos, times)
        made = (decode_captions(self.network, self.tokenizer, visual, options) for visual in pooled)
        return self.rate([caption for part in made for caption in part])

    def _pooled(self, videos: Sequence[VideoSource], times: Sequence[Time | None] | None) -> Iterator[Tensor]:
        """Visual embeddings of clips, in chunks."""
        if isinstance(videos, str | os.PathLike):
            raise UsageError("videos must be a list, not one video")
        moments = [None] * len(videos) if times is None else list(times)
        if len(moments) != len(videos):
            raise UsageError(f"{len(videos)} videos but {len(moments)} times")
        clips: list[VisualSource] = []
        for video, time in zip(videos, moments, strict=True):
            if isinstance(video, str | os.PathLike):
                clips.append(Media("video", (Path(video),), None if time is None else to_moment(time)))
                continue
            frames = tuple(_listed(video))
            if time is not None or not frames:
                raise UsageError("a list of frames must have some, and no time")
            clips.append(frames)
        yield from self._visual(clips, None)

    @torch.inference_mode()
    def score(self, images: Sequence[ImageSource], texts: Sequence[str]) -> np.ndarray:
        """log P(text | image) per token (end of text included), in nats, of each image and its text: ``(n,)``
        float32. Raises ``UsageError`` unless there are as many texts as images."""
        images, texts = _listed(images), check_texts(texts)
        if len(images) != len(texts):
            raise UsageError(f"{len(images)} images but {len(texts)} texts")
        ids = self.tokenizer.encode_all(texts)
        scores: list[float] = []
        for visual in self._visual(images, None):
            chunk = ids[len(scores) : len(scores) + len(visual)]
            sums = text_log_probs(
                self.network, self.network.project_visual_prefix(visual), chunk, self.tokenizer.end
            )
            scores += [total / (len(tokens) + 1) for total, tokens in zip(sums.tolist(), chunk, strict=True)]
        return np.asarray(scores, np.float32)

    def index(
        self,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        regions: int | None = None,
        exclude: Sequence[str] | None = None,
    ) -> PhotoIndex:
        """Make the index ``out``, a folder of its own, hold the photos under ``folder`` (one or several) and
        under those that it has already, and open it: as ``mmgem index`` does, only new and changed photos
        being embedded.

        ``exclude``: patterns of files and folders to leave out (None: as the index has it). ``regions``: how
        many boxes of each photo can be found beside the whole (None: as the index has it, 0 if it is new).
        Photos that cannot be read are left out, with a warning in the log. Raises ``UsageError`` if there are
        no photos or this model is in no folder, ``ImageError`` if none can be read, ``SearchIndexError`` if
        the index belongs to another model or number of regions.
        """
        if not self.name:
            raise UsageError("an index needs a model that can be loaded again: save_pretrained, then load it")
        folders = [folder] if isinstance(folder, str | os.PathLike) else folder
        out = Path(out).expanduser()
        progress = partial(track, label="Indexing", unit=" photos")
        report = update_index(
            out,
            [Path(path).expanduser() for path in folders],
            lambda: self,
            self.fingerprint,
            exclude=exclude,
            model=self.name,
            regions=regions,
            batch=self.batch,
            progress=progress,
        )
        first = report.folders[0]
        for bad in report.failed[:_LISTED]:
            _log.warning("skipped %s: %s", first / bad.path, bad.explanation)
        if len(report.failed) > _LISTED:
            _log.warning("skipped %d more", len(report.failed) - _LISTED)
        for path in report.folders:
            if foreign := other_files(path, out)[0]:
                _log.warning("%s: left out photos that cannot be read: %s", path, " ".join(foreign))
        if not report.photos:
            if not report.failed:
                raise UsageError(f"{first}: no photos in this folder")
            raise ImageError(f"{first}: none of the {len(report.failed)} photos could be read")
        try:
            update_hnsw_index(out)
        except UsageError as error:
            _log.warning("%s: its HNSW index stays as it was: %s", out, error)
        return open_index(out, self)

    def rerank(
        self, index: PhotoIndex, text: str, k: int = 10, options: RerankOptions | None = None
    ) -> list[RerankedHit]:
        """The ``k`` best photos of ``index`` for ``text``: found by their embeddings, then ordered by cosine
        and by how likely the text is given each. See :class:`mmgem.search.rerank.Reranker`."""
        return self.reranker(index, text, options)(k)

    def reranker(self, index: PhotoIndex, text: str, options: RerankOptions | None = None) -> Reranker:
        """:meth:`rerank` for a ``k`` and then a larger one: photos are assessed once."""
        return Reranker(self.network, self.tokenizer, index, check_text(text), options, self.calibration)

    @torch.inference_mode()
    def find_regions(
        self, images: Sequence[ImageSource], count: int = 20
    ) -> list[tuple[list[Box], np.ndarray]]:
        """Up to ``count`` boxes of each image that show something of their own, the most telling first.

        Returns (boxes, embeddings ``(k, D)`` float32 of unit length) of each image. Boxes are pixels of the
        upright stored image. No detector: windows of many sizes are compared with what is around them.
        """
        if count < 1:
            raise UsageError(f"count must be at least 1, not {count}")
        regions = find_regions(self.network, self.tokenizer.prep, _listed(images), count)
        return [(boxes, unit_rows(vectors)) for boxes, vectors in regions]

    @torch.inference_mode()
    def heatmap(self, image: ImageSource, texts: Sequence[str], cells: int = 28) -> np.ndarray:
        """How well each place of an image fits each text: ``(len(texts), cells, cells)`` float32 cosines.

        Rows go from the top; cells are equal shares of the image (of its central square if the model crops).
        """
        vectors = torch.from_numpy(self.embed_texts(texts)).to(self.network.emb_token.device)
        return text_heatmaps(self.network, self.tokenizer.prep, image, vectors, cells).float().cpu().numpy()

    def _visual(self, images: Sequence[VisualSource], boxes: Sequence[Box | None] | None) -> Iterator[Tensor]:
        """Visual embeddings in chunks, one row an image or box; neighbours of one path share its maps."""
        images = _listed(images)
        if boxes is None:
            for at in range(0, len(images), self.batch):
                yield encode_images(self.network, self.tokenizer.prep, images[at : at + self.batch])
            return
        if len(boxes) != len(images):
            raise UsageError(f"{len(images)} images but {len(boxes)} boxes")
        groups: list[tuple[VisualSource, list[Box | None]]] = []
        for image, box in zip(images, boxes, strict=True):
            if groups and _same(groups[-1][0], image):
                groups[-1][1].append(box)
            else:
                groups.append((image, [box]))
        for at in range(0, len(groups), self.batch):
            chunk = groups[at : at + self.batch]
            yield encode_images(
                self.network, self.tokenizer.prep, [g[0] for g in chunk], [g[1] for g in chunk]
            )


def open_index(
    path: str | os.PathLike[str],
    model: MMGEM | str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    exact: bool = False,
) -> PhotoIndex:
    """Open an index of :meth:`MMGEM.index` or ``mmgem index``, to be searched by texts, images or vectors.

    ``model``: the one that made the index, or where it is now; None: as the index remembers it, loaded when a
    text or an image is first searched for. ``folder``: where the photos are, if they have moved. ``exact``:
    compare all vectors, even if there is an HNSW index. Raises ``SearchIndexError`` if the index is missing,
    damaged, or made by another model; ``CheckpointError`` if the model is not there.
    """
    path = Path(path).expanduser()
    photos = Path(folder).expanduser() if folder is not None else None
    if isinstance(model, MMGEM):
        index = PhotoIndex.open(path, photos, model.fingerprint, exact)
        index.load_embedder = lambda: model
        return index
    known = fingerprint(resolve(model)) if model is not None else None
    index = PhotoIndex.open(path, photos, known, exact)

    def load() -> MMGEM:
        if model is None and not index.model:
            raise UsageError(f"{path}: does not say which model made it; give model")
        loaded = MMGEM.from_pretrained(model if model is not None else index.model)
        check_fingerprint(path, index.fingerprint, loaded.fingerprint)
        return loaded

    index.load_embedder = load
    return index


def _listed(images: Sequence[T]) -> Sequence[T]:
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        raise UsageError("images must be a list, not one image")
    if not isinstance(images, Sequence | np.ndarray):
        raise UsageError(f"images must be a list, not {type(images).__name__}")
    return images


def _clip_rescore_weight(weight: float, assess: float | None) -> float:
    """The weight by its name of before, ``assess``, if that was used."""
    if assess is None:
        return weight
    warnings.warn("assess is called clip_rescore_weight now", DeprecationWarning, stacklevel=3)
    return assess


def _same(one: VisualSource, other: VisualSource) -> bool:
    """Whether both are one picture for certain: one object, or one path."""
    return one is other or (isinstance(one, str | Path) and isinstance(other, str | Path) and one == other)
