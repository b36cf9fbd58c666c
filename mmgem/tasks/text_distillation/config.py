"""The section of a recipe that says how a text tower is learned from texts alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmgem.config.fields import setting


@dataclass
class TextDistillationConfig:
    """The texts of `data.texts`, embedded as a frozen text tower embeds them and captioned from that."""

    batch_size: int = setting(128, help="Texts in a step.", low=2)
    teacher: Path | None = setting(
        None,
        help="The text tower that is learned: a CLIP or SigLIP checkpoint, a folder or a hub id, or a model "
        "of ours; none: that of `init.encoder`.",
    )
    cosine_weight: float = setting(
        1.0, help="Of the distance of each embedding from the teacher's, 1 - cosine; 0: left out.", low=0
    )
    relational_weight: float = setting(
        1.0,
        help="Of the loss that lets the cosines between the texts of a step follow the teacher's; 0: left "
        "out.",
        low=0,
    )
    temperature: float = setting(0.05, help="Of the cosines of the embeddings.", above=0)
    teacher_temperature: float = setting(0.05, help="Of the teacher's cosines.", above=0)
    caption_weight: float = setting(
        1.0, help="Of the loss of predicting a text from the teacher's embedding of it; 0: left out.", low=0
    )
    noise: float = setting(
        0.126,
        help="Standard deviation of what is added to each number of a unit embedding before it is captioned, "
        "in the place of the gap to an image (CapDec's variance is 0.016).",
        low=0,
    )
    sampled_softmax: int = setting(
        0,
        help="Tokens sampled for the softmax beside those in use; 0: the whole vocabulary, exact.",
        low=0,
    )
    held_out: int = setting(
        500, help="Texts that are kept to measure on, at most a tenth of all; 0: none.", low=0
    )
