"""Fit what a model's cosines mean (:mod:`mmgem.inference.calibration`) on photos with captions, or labels,
and what log P of the captions it writes does.

Notable choices. Data must be photos that the model was not trained on: those it knows by heart lie nearer to
their captions than any others will, and half of what fits would be called no match. From the index with a
text's photo taken out, photos that its words fit as well are taken out too, by their own captions: else a
large index, which always holds some, would teach that a good hit is none. Labels are searched for as well as
captions, if photos have them: a name is nearer to photos in general than a sentence is, and a fit on
sentences alone says "yes" to names that are not there. The fit is Newton's method on a handful of numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from mmgem.data.images import attempt
from mmgem.data.records import Media, Record
from mmgem.errors import DataError, ImageError
from mmgem.evaluate.classify import class_embeddings
from mmgem.evaluate.match import (
    MatchDraws,
    alike_by_text,
    auroc,
    draw_classes,
    draw_names,
    draw_searches,
)
from mmgem.evaluate.tokenize import caption_words
from mmgem.inference.calibration import (
    Background,
    CaptionWeights,
    MatchCalibration,
    MatchWeights,
    logistic,
    match_features,
)
from mmgem.inference.captioning import DecodedCaption
from mmgem.utils.progress import track

_log = logging.getLogger(__name__)

_BATCH = 32  # photos embedded at once
_RIDGE = 1e-3  # keeps weights finite where a line separates all
_FUNCTION_WORDS = frozenset(
    "a an the is are was were be being and or of in on at to by for from with his her its their as it".split()  # noqa: SIM905
)


class EmbeddingModel(Protocol):
    """What is calibrated: unit vectors ``(n, D)`` float32 of images, texts and searches."""

    def embed_images(self, images: Sequence[Path | Media], /) -> np.ndarray: ...  # noqa: D102
    def embed_texts(self, texts: Sequence[str], /) -> np.ndarray: ...  # noqa: D102
    def embed_queries(self, texts: Sequence[str], /) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How the fit is made."""

    sizes: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Photos of the indexes that are drawn; those beyond the photos there are are left out."""
    class_counts: tuple[int, ...] = (3, 10, 30, 100, 300)
    """Likewise of lists of classes."""
    draws: int = 3000
    """Queries a size, each with its photo and without."""
    max_photos: int = 2000
    """Captioned, and labelled, that are embedded; chosen at random from more."""
    rank: int = 32
    """Directions of the background."""
    lookalike_quantile: float = 0.25
    """See :func:`mmgem.evaluate.match.alike_by_text`."""
    max_written: int = 400
    """Photos that a caption is written of; evenly spaced among the captioned ones."""
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class NamedPhotos:
    """Photos with labels: their unit embeddings ``(n, D)``, those of the labels as searches ``(c, D)``, and
    which each has, ``(n,)`` rows of ``names``."""

    images: np.ndarray
    names: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was used, and AUROC by the size of the index, of captions (``search``) and labels (``names``) that
    are searched for, and by the number of classes: of a fit on half of the photos, measured on the other
    half. Empty where there was no data, or too little to halve. ``captions``:
    AUROC of log P a token, of captions of which people say half of the words or more and of others; None
    where all are one of these."""

    photos: int
    texts: int
    labelled: int
    search: dict[int, float] = field(default_factory=dict)
    names: dict[int, float] = field(default_factory=dict)
    classes: dict[int, float] = field(default_factory=dict)
    captions: float | None = None


def fit_calibration(
    model: EmbeddingModel,
    records: Sequence[Record],
    options: CalibrationOptions | None = None,
    write_captions: Callable[[Sequence[Path | Media]], Sequence[DecodedCaption]] | None = None,
) -> tuple[MatchCalibration, CalibrationReport]:
    """Fit the calibration of ``model`` on records with captions (for search) and with labels (for classes,
    and for search if there are captions, too); of the captions that ``write_captions`` makes of photos, if
    given, against their own.

    The photos should be none that the model was trained on. Photos that cannot be read are left out, with a
    warning in the log. Raises ``DataError`` if there are neither four captioned photos nor four labelled ones
    of three classes, ``ImageError`` if none can be read.
    """
    options = options or CalibrationOptions()
    captioned = _sampled([record for record in records if record.captions], options)
    labelled = _sampled([record for record in records if record.label], options)
    captioned_photos, captioned = _embed_photos(model, captioned)
    labelled_photos, labelled = _embed_photos(model, labelled)
    names = sorted({record.label for record in labelled if record.label})
    has_texts, has_classes = len(captioned) >= 4, len(labelled) >= 4 and len(names) >= 3
    if not has_texts and not has_classes:
        raise DataError("calibration needs four photos with captions, or four with labels of three classes")
    photos = [vectors for vectors in (captioned_photos, labelled_photos) if len(vectors)]
    background = Background.of(np.concatenate(photos), options.rank)
    search = classes = None
    search_auroc: dict[int, float] = {}
    name_auroc: dict[int, float] = {}
    class_auroc: dict[int, float] = {}
    named = None
    if has_classes:
        labels = np.array([names.index(record.label or "") for record in labelled])
        named = NamedPhotos(labelled_photos, model.embed_queries(names), labels)
    captions = [caption for record in captioned for caption in record.captions]
    if has_texts:
        owners = np.repeat(np.arange(len(captioned)), [len(record.captions) for record in captioned])
        texts = _embed_texts(model, captions)
        search, search_auroc, name_auroc = fit_search(
            captioned_photos, texts, owners, background, options, named
        )
    if named is not None:
        prototypes = class_embeddings(model.embed_texts, names)
        classes, class_auroc = fit_classes(labelled_photos, prototypes, named.labels, background, options)
    written = caption_auroc = None
    if has_texts and write_captions is not None:
        told = [captioned[i] for i in _evenly_spaced(len(captioned), options.max_written)]
        written, caption_auroc = fit_captions(told, _write(write_captions, [r.source for r in told]))
    counts = len(captioned), len(captions), len(labelled)
    report = CalibrationReport(*counts, search_auroc, name_auroc, class_auroc, caption_auroc)
    return MatchCalibration(background, search, classes, written), report


def fit_captions(
    records: Sequence[Record], written: Sequence[DecodedCaption]
) -> tuple[CaptionWeights, float | None]:
    """Weights for the captions ``written`` of ``records`` that people have captioned, and the AUROC of
    :class:`CalibrationReport`."""
    shares = np.array([shared_words(w.text, r.captions) for r, w in zip(records, written, strict=True)])
    log_prob = np.array([caption.log_prob for caption in written])
    weights, bias = logistic_regression(log_prob[:, None], shares)
    if weights[0] < 0:  # log P says nothing: all are as good as their mean
        weights, bias = logistic_regression(np.zeros((len(shares), 1)), shares)
    right = shares >= 0.5
    separable = right.any() and not right.all()
    return (
        CaptionWeights(float(weights[0]), bias),
        auroc(log_prob[right], log_prob[~right]) if separable else None,
    )


def shared_words(caption: str, references: Sequence[str]) -> float:
    """The share of the words of ``caption`` that are in any of ``references``, but for articles, forms of
    "be" and prepositions, which fit anything; 0 if it has no other words."""
    words = [word for word in caption_words(caption) if word not in _FUNCTION_WORDS]
    known = {word for reference in references for word in caption_words(reference)}
    return sum(word in known for word in words) / max(1, len(words))


def _write(
    write_captions: Callable[[Sequence[Path | Media]], Sequence[DecodedCaption]],
    photos: Sequence[Path | Media],
) -> list[DecodedCaption]:
    chunks = [photos[at : at + _BATCH] for at in range(0, len(photos), _BATCH)]
    progress = track(chunks, "Captioning", [len(chunk) for chunk in chunks], unit=" photos")
    return [caption for chunk in progress for caption in write_captions(chunk)]


def _evenly_spaced(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round()).astype(int).tolist()


def fit_search(
    images: np.ndarray,
    texts: np.ndarray,
    image_of_text: np.ndarray,
    background: Background,
    options: CalibrationOptions,
    named: NamedPhotos | None = None,
) -> tuple[MatchWeights, dict[int, float], dict[int, float]]:
    """Weights for texts, one fit for captions and ``named`` photos alike, and AUROC by index size of each of
    the two, held out.

    ``images`` ``(n, D)`` and ``texts`` ``(m, D)``: unit embeddings; ``image_of_text`` ``(m,)``: rising rows
    of ``images``. The AUROC is of the photo itself taken out, and no other; with names, of all with that.
    """

    alike = alike_by_text(texts, image_of_text, len(images), options.lookalike_quantile)
    present = np.unique(image_of_text)

    def draws(photos: np.ndarray, is_fit: bool) -> list[MatchDraws]:
        return [
            draw_searches(
                images,
                texts,
                image_of_text,
                size,
                options.draws,
                options.seed,
                pool=present[photos],
                alike=alike if is_fit else None,
            )
            for size in _sizes(options.sizes, len(photos))
        ]

    drawn: list[_Drawn] = [(len(present), draws)]
    queries = texts
    if named is not None:
        drawn.append((len(named.images), partial(_name_draws, named, len(texts), options)))
        queries = np.concatenate([texts, named.names])
    weights, auroc_of = _fit_and_measure(drawn, background.cosines(queries), options)
    return weights, auroc_of[0], auroc_of[1] if named is not None else {}


def _name_draws(
    named: NamedPhotos, first: int, options: CalibrationOptions, photos: np.ndarray, _: bool
) -> list[MatchDraws]:
    """Searches for the labels of ``photos``, the first of which is query number ``first``."""
    images, labels = named.images[photos], named.labels[photos]
    most = len(photos) - int(np.bincount(labels).max())
    if most == 0:
        return []
    drawn = [
        draw_names(images, named.names, labels, size, options.draws, options.seed)
        for size in _sizes(options.sizes, most)
    ]
    return [
        replace(draw, present_query=first + draw.present_query, absent_query=first + draw.absent_query)
        for draw in drawn
    ]


def fit_classes(
    images: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    background: Background,
    options: CalibrationOptions,
) -> tuple[MatchWeights, dict[int, float]]:
    """Weights for classes, and their AUROC by the number of classes, held out.

    ``images`` ``(n, D)`` and ``classes`` ``(c, D)``: unit embeddings; ``labels`` ``(n,)``: rows of
    ``classes``."""

    def draws(photos: np.ndarray, _: bool) -> list[MatchDraws]:
        return [
            draw_classes(images[photos], classes, labels[photos], size, options.draws, options.seed)
            for size in _sizes(options.class_counts, len(classes) - 1)
        ]

    weights, auroc_of = _fit_and_measure([(len(images), draws)], background.cosines(classes), options)
    return weights, auroc_of[0]


def fit_weights(draws: Sequence[MatchDraws], mean: np.ndarray, std: np.ndarray) -> MatchWeights:
    """Weights from draws of several sizes, whose queries have background cosines of ``mean`` and ``std``
    ``(m,)``."""
    present = np.concatenate([_features(draw, mean, std, True) for draw in draws])
    absent = np.concatenate([_features(draw, mean, std, False) for draw in draws])
    features = np.concatenate([present, absent])
    targets = np.repeat([1.0, 0.0], [len(present), len(absent)])
    weights, bias = logistic_regression(features, targets)
    if weights[0] < 0:  # cosines that say nothing: what is left decides, the same for every hit of a query
        features[:, 0] = 0
        weights, bias = logistic_regression(features, targets)
    cosine, mean_weight, std_weight, log_size = weights.tolist()
    return MatchWeights(cosine, mean_weight, std_weight, log_size, bias)


def logistic_regression(
    features: np.ndarray, targets: np.ndarray, ridge: float = _RIDGE, steps: int = 50
) -> tuple[np.ndarray, float]:
    """Weights ``(f,)`` and bias of the most likely logistic model of ``targets`` ``(n,)``, from 0 to 1, by
    ``features`` ``(n, f)``; ``ridge`` holds the weights of standardised features down."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    inputs = np.column_stack([(features - centre) / scale, np.ones(len(features))])
    penalty = np.append(np.full(features.shape[1], ridge), 0)
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        probabilities = logistic(inputs @ weights)
        gradient = inputs.T @ (probabilities - targets) / len(inputs) + penalty * weights
        curvature = probabilities * (1 - probabilities) / len(inputs)
        hessian = inputs.T @ (inputs * curvature[:, None]) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    slopes = weights[:-1] / scale
    return slopes, float(weights[-1] - slopes @ centre)


_Drawn = tuple[int, Callable[[np.ndarray, bool], list[MatchDraws]]]
"""How many photos there are, and what makes the draws of some of them, to be fitted to or not."""


def _fit_and_measure(
    drawn: Sequence[_Drawn], background_cosines: tuple[np.ndarray, np.ndarray], options: CalibrationOptions
) -> tuple[MatchWeights, list[dict[int, float]]]:
    """Weights fitted on all photos of ``drawn`` together, and for each the AUROC on one half of its photos
    of those fitted on the other halves."""

    def fit(photos: Sequence[np.ndarray]) -> MatchWeights:
        draws = [draw for (_, make), rows in zip(drawn, photos, strict=True) for draw in make(rows, True)]
        return fit_weights(draws, *background_cosines)

    weights = fit([np.arange(count) for count, _ in drawn])
    if any(count < 8 for count, _ in drawn):
        return weights, [{} for _ in drawn]
    rng = np.random.default_rng(options.seed)
    halves = [np.array_split(rng.permutation(count), 2) for count, _ in drawn]
    half = fit([np.sort(first) for first, _ in halves])
    held_out: list[dict[int, float]] = []
    for (_, make), (_, second) in zip(drawn, halves, strict=True):
        held_out.append({})
        for draw in make(np.sort(second), False):
            present, absent = (
                half.probability(_features(draw, *background_cosines, p)) for p in (True, False)
            )
            held_out[-1][draw.size] = auroc(present, absent)
    return weights, held_out


def _features(draw: MatchDraws, mean: np.ndarray, std: np.ndarray, present: bool) -> np.ndarray:
    """:func:`match_features` of one side of a draw."""
    queries = draw.present_query if present else draw.absent_query
    cosines = draw.present if present else draw.absent
    return match_features(cosines, mean[queries], std[queries], draw.size)


def _sizes(sizes: Sequence[int], most: int) -> list[int]:
    """Those that can be drawn; all there is, if none can."""
    return [size for size in sizes if size <= most] or [most]


def _sampled(records: list[Record], options: CalibrationOptions) -> list[Record]:
    """At most ``max_photos`` records, in order."""
    order = np.random.default_rng(options.seed).permutation(len(records))[: options.max_photos]
    return [records[i] for i in np.sort(order)]


def _embed_photos(model: EmbeddingModel, records: list[Record]) -> tuple[np.ndarray, list[Record]]:
    """Embeddings ``(n, D)`` of those photos that can be read, and their records."""
    vectors, readable = [], []
    chunks = [records[at : at + _BATCH] for at in range(0, len(records), _BATCH)]
    for chunk in track(chunks, "Embedding photos", [len(chunk) for chunk in chunks], unit=" photos"):
        images = [record.source for record in chunk]
        results = attempt(lambda batch: list(model.embed_images(batch)), images)
        for record, result in zip(chunk, results, strict=True):
            if isinstance(result, ImageError):
                _log.warning("left out %s", result)
                continue
            vectors.append(result)
            readable.append(record)
    if records and not readable:
        raise ImageError(f"none of the {len(records)} photos could be read")
    return np.array(vectors, np.float32), readable


def _embed_texts(model: EmbeddingModel, texts: list[str]) -> np.ndarray:
    """Embeddings ``(n, D)`` of texts."""
    chunks = [texts[at : at + 8 * _BATCH] for at in range(0, len(texts), 8 * _BATCH)]
    progress = track(chunks, "Embedding captions", [len(chunk) for chunk in chunks], unit=" captions")
    return np.concatenate([model.embed_queries(chunk) for chunk in progress])
