"""Scores of generated captions against human ones: BLEU, ROUGE-L and CIDEr-D in one call.

Sentences are tokenised here, the same way on both sides; the figures are those of the COCO caption
evaluation (checked against it to 1e-3), in percent as papers print them.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmgem.errors import UsageError
from mmgem.evaluate.bleu import bleu
from mmgem.evaluate.cider import cider_d
from mmgem.evaluate.rouge import rouge_l
from mmgem.evaluate.tokenize import caption_words


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """Score one predicted caption an image against that image's reference captions.

    Returns ``BLEU@1`` to ``BLEU@4``, ``ROUGE_L`` and ``CIDEr``, all times 100, and ``images``, their number.
    ``predictions[i]`` may be empty (it scores 0); ``references[i]`` are all captions of the same image. CIDEr
    weighs words by how rare they are in these references, so it is comparable on the same set only.

    Raises UsageError if the lists differ in length or are empty, if an image has no reference but blank
    ones, and if references are a string instead of a list of strings.
    """
    if len(predictions) != len(references):
        raise UsageError(
            f"{len(predictions)} predicted captions for {len(references)} images' references; "
            "give one prediction an image"
        )
    if not predictions:
        raise UsageError("no captions to score")
    for i, captions in enumerate(references):
        if isinstance(captions, str):
            raise UsageError(f"references[{i}] is a string; give a list of captions for each image")
        if not any(map(str.strip, captions)):
            raise UsageError(f"references[{i}] is empty; every image needs a reference caption")
    predicted_words = [caption_words(caption) for caption in predictions]
    reference_words = [[caption_words(caption) for caption in captions] for captions in references]
    scores = {f"BLEU@{n}": 100 * score for n, score in enumerate(bleu(predicted_words, reference_words), 1)}
    scores["ROUGE_L"] = 100 * rouge_l(predicted_words, reference_words)
    scores["CIDEr"] = 100 * sum(cider_d(predicted_words, reference_words)) / len(predicted_words)
    scores["images"] = len(predicted_words)
    return scores


def grouped_caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return :func:`caption_scores` of each group of images, by name in sorted order, and of all as ``all``.

    ``groups[i]`` is the group of image i, such as its NoCaps domain. Each group is a set of its own: CIDEr
    weighs words by the references of that group alone. Raises UsageError as :func:`caption_scores` does, and
    if ``groups`` differs in length or a group is named ``all``.
    """
    if len(groups) != len(predictions):
        raise UsageError(f"{len(groups)} groups for {len(predictions)} predicted captions")
    if "all" in groups:
        raise UsageError('"all" cannot be the name of a group')
    scores = {}
    for group in sorted(set(groups)):
        members = [i for i, name in enumerate(groups) if name == group]
        scores[group] = caption_scores([predictions[i] for i in members], [references[i] for i in members])
    return scores | {"all": caption_scores(predictions, references)}
