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
class LabelDistillationConfig:
    """Class names, contrasted with images as a frozen classifier of base weights labels them."""

    weight: float = setting(0.0, help="Of the loss; 0: left out.", low=0)
    classifier: str = setting(
        "",
        help='Base weights with a classifier, read as `init.encoder` is; "": those of `init.encoder` (with '
        "`init.checkpoint` those that have the name of its encoder's kind).",
    )
    labels: Path | None = setting(
        None,
        help="Names of its classes and of kinds above them: a file, or the name of a pulled one, such as "
        "`imagenet_labels`; none: as its weights name them.",
    )
    classes_per_step: int = setting(
        256, help="Classes whose names are embedded in a step: likely ones of its images first.", low=2
    )
    kinds_per_step: int = setting(
        32, help="Kinds above classes (a bird, a vehicle) that are embedded in a step.", low=0
    )
    synonym_prob: float = setting(
        0.4, help="How often another name than the first stands for a class.", low=0, high=1
    )


@dataclass
class TextOnlyConfig:
    """Texts without images (`data.texts`): where they lie among the others, and captions from them alone."""

    weight: float = setting(0.0, help="Of the losses; 0: left out.", low=0)
    batch_size: int = setting(64, help="Texts of `data.texts` in a step.", low=1)
    caption_weight: float = setting(
        1.0, help="Of the loss of predicting a text from its own embedding, within `weight`.", low=0
    )
    noise: float = setting(
        1.0,
        help="How much of the gap between an image and its text is added to an embedding before it is "
        "captioned.",
        low=0,
    )
    teacher: Path | None = setting(
        None,
        help="Sentence encoder that says which texts resemble each other, as `contrastive.teacher`; none: "
        "captions alone are learned from them.",
    )
    teacher_temperature: float = setting(0.05, help="Of the teacher's similarities.", above=0)
    temperature: float = setting(0.05, help="Of the similarities of the embeddings of texts.", above=0)


@dataclass
class ImageTextConfig:
    """Losses over images and texts, added up; both modes run in one pass of the LLM."""

    contrastive: ContrastiveConfig = setting(default_factory=ContrastiveConfig)
    caption: CaptionConfig = setting(default_factory=CaptionConfig)
    label_distillation: LabelDistillationConfig = setting(default_factory=LabelDistillationConfig)
    text_only: TextOnlyConfig = setting(default_factory=TextOnlyConfig)
