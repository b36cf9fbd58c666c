"""The section of a recipe that says which losses images and texts are learned by: a table a term."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class ContrastiveConfig:
    """Image and text embeddings, contrasted over the batch."""

    weight: float = 1.0
    """Of the loss; 0: left out."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """InfoNCE in both directions, or SigLIP's pairwise loss."""
    distill_weight: float = 0.0
    """Share of the target that follows the teacher's text similarity."""
    teacher: Path | None = None
    """Sentence encoder (transformers folder or the name of a pulled one) behind ``distill_weight``."""
    teacher_temperature: float = 0.05
    mask_false_negatives: bool = False
    """Leave out of the negatives what shows the same photo or says the same words."""


@dataclass
class CaptionConfig:
    """Captions, predicted token by token from the image."""

    weight: float = 1.0
    """Of the loss; 0: left out."""
    label_smoothing: float = 0.0
    sampled_softmax: int = 0
    """Tokens sampled for the softmax beside those in use; 0: the whole vocabulary, exact."""


@dataclass
class ImageTextConfig:
    """Losses over images and texts, added up; both modes run in one pass of the LLM."""

    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
