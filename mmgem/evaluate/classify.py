"""Zero-shot classification: a class is the mean embedding of sentences that name it.

Prompt ensemble of CLIP (Radford et al. 2021, section 3.1.4): every class name goes into every template, the
sentences are embedded, and the mean of their unit vectors, normalised again, stands for the class. The
templates are our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError

PROMPTS = (
    "a photo of a {}.",
    "a {}.",
    "a picture that shows a {}.",
    "a close photo of a {}.",
    "a {} seen from far away.",
    "a small {} in a photo.",
    "a large {} in a photo.",
    "a {} outdoors.",
    "a {} indoors.",
    "a dark photo of a {}.",
    "a bright photo of a {}.",
    "a blurred photo of a {}.",
    "a photo of part of a {}.",
    "somebody took this photo of a {}.",
    "the {} is in the middle of the photo.",
)

Floats = npt.NDArray[np.floating[Any]]

_SPELLED = re.compile(r"[A-Z](?:[A-Z]+\b|\b)")  # X-ray, SUV: the article goes by the letter's name
_VOWEL_LETTERS = "AEFHILMNORSX"
_VOWEL_SOUND = re.compile(
    r"hour|honest|honou?r|heir"
    r"|(?!eu|ewe|uni(?![nm])|us[aeu]|uten|uti|utop|uku|ura[ln]|urin|one\b|once)[aeiou\u00e0-\u00e6\u00e8-\u00ef]",
    re.IGNORECASE,
)


def fill_prompt(template: str, name: str) -> str:
    """Put a class name into a template's ``{}``; underscores become spaces, "a {}" becomes "an" by sound.

    Raises UsageError for a template without exactly one ``{}`` and for an empty name.
    """
    name = " ".join(name.replace("_", " ").split())
    if not name:
        raise UsageError("a class name is empty")
    if template.count("{}") != 1:
        raise UsageError(f"template {template!r} must contain {{}} once, where the class name goes")
    if name[0] in _VOWEL_LETTERS if _SPELLED.match(name) else _VOWEL_SOUND.match(name):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.replace("{}", name)


def class_embeddings(
    embed_texts: Callable[[list[str]], Floats], names: Sequence[str], templates: Sequence[str] = PROMPTS
) -> npt.NDArray[np.float32]:
    """Return one unit vector a class, (c, D) float32, in the order of ``names``.

    ``embed_texts`` turns sentences into rows (number, D), and is called once with all of them. Raises
    UsageError if there are no names or templates, or one of them cannot be used.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise UsageError("class names and templates must be lists of strings, not one string")
    if not names or not templates:
        raise UsageError("no class names" if not names else "no templates")
    rows = _units(embed_texts([fill_prompt(template, name) for name in names for template in templates]))
    return _units(rows.reshape(len(names), len(templates), -1).mean(axis=1))


def classify(images: Floats, classes: Floats, temperature: float = 0.01) -> npt.NDArray[np.float32]:
    """Return the probability of each class for each image, (n, c) float32; rows sum to 1.

    Softmax over classes of the dot products of ``images`` (n, D) and ``classes`` (c, D), unit rows, divided
    by ``temperature``; use the one the model was trained to for probabilities that mean something.
    """
    if not temperature > 0:
        raise UsageError(f"temperature must be above 0, not {temperature}")
    logits = _cosines(images, classes) / np.float32(temperature)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def classification_scores(images: Floats, classes: Floats, labels: npt.ArrayLike) -> dict[str, float | int]:
    """Return ``{"top1", "top5", "mean_per_class", "images"}``, in percent.

    ``images`` (n, D) and ``classes`` (c, D) are unit rows, ``labels`` (n,) integers are rows of ``classes``.
    ``mean_per_class`` is top-1 within each class that has images, averaged over those classes. A tie with a
    wrong class counts as wrong. Raises UsageError for shapes or labels that do not fit.
    """
    targets = np.asarray(labels)
    if targets.shape != (len(images),) or not len(targets) or not np.issubdtype(targets.dtype, np.integer):
        raise UsageError(
            f"labels must be {len(images)} integers, one an image, not {targets.dtype} {targets.shape}"
        )
    if targets.min() < 0 or targets.max() >= len(classes):
        raise UsageError(f"labels must be from 0 to {len(classes) - 1}, the classes' rows")
    cosines = _cosines(images, classes)
    target_cosines = np.take_along_axis(cosines, targets[:, None].astype(np.int64), axis=1)
    ranks = np.count_nonzero(cosines >= target_cosines, axis=1)
    images_per_class = np.bincount(targets, minlength=len(classes))
    correct_per_class = np.bincount(targets, weights=ranks <= 1, minlength=len(classes))
    present = images_per_class > 0
    return {
        "top1": 100 * float(np.mean(ranks <= 1)),
        "top5": 100 * float(np.mean(ranks <= 5)),
        "mean_per_class": 100 * float(np.mean(correct_per_class[present] / images_per_class[present])),
        "images": len(targets),
    }


def _cosines(images: Floats, classes: Floats) -> npt.NDArray[np.float32]:
    if images.ndim != 2 or classes.ndim != 2 or images.shape[1] != classes.shape[1] or not len(classes):
        raise UsageError(f"images {images.shape} and classes {classes.shape} must be (n, D) and (c, D)")
    cosines = np.asarray(images, np.float32) @ np.asarray(classes, np.float32).T
    if not np.isfinite(cosines).all():
        raise UsageError("embeddings must be finite")
    return cosines


def _units(rows: Floats) -> npt.NDArray[np.float32]:
    """Rows divided by their length."""
    lengths = np.linalg.norm(np.asarray(rows, np.float32), axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise UsageError("embeddings must be finite and not zero")
    return np.asarray(rows, np.float32) / lengths
