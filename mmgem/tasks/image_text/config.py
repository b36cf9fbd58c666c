"""The section of a recipe that says which losses images and texts are learned by: a table a term."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmgem.config.fields import setting
from mmgem.config.needs import LOOSE_FILES


@dataclass
class ContrastiveConfig:
    """Image and text embeddings, contrasted over the batch."""

    weight: float = setting(1.0, help="Of the loss; 0: left out.", low=0)
    loss: Literal["softmax", "sigmoid"] = setting(
        "softmax", help="InfoNCE in both directions, or SigLIP's pairwise loss."
    )
    distill_weight: float = setting(
        0.0, help="Share of the target that follows the teacher's text similarity.", low=0, high=1
    )
    teacher: Path | None = setting(
        None,
        help="Sentence encoder (transformers folder or the name of a pulled one) behind `distill_weight`.",
    )
    teacher_temperature: float = setting(0.05, help="Of the teacher's similarities.", above=0)
    mask_false_negatives: bool = setting(
        False, help="Leave out of the negatives what shows the same photo or says the same words."
    )


@dataclass
class CaptionConfig:
    """Captions, predicted token by token from the image."""

    weight: float = setting(1.0, help="Of the loss; 0: left out.", low=0)
    label_smoothing: float = setting(
        0.0, help="Share of the target that is spread over the vocabulary.", low=0, below=1
    )
    sampled_softmax: int = setting(
        0,
        help="Tokens sampled for the softmax beside those in use; 0: the whole vocabulary, exact.",
        low=0,
        needs=LOOSE_FILES,
    )


@dataclass
class ImageTextConfig:
    """Losses over images and texts, added up; both modes run in one pass of the LLM."""

    contrastive: ContrastiveConfig = setting(default_factory=ContrastiveConfig)
    caption: CaptionConfig = setting(default_factory=CaptionConfig)
