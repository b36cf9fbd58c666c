"""What a model is: the part of a recipe that decides its shape and function, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmgem.config.fields import setting
from mmgem.config.needs import BIASED_LOSS, STAGES

_SIDE: dict[str, Any] = {"low": 1, "high": 4096, "range_words": "a side of 1 to 4096 pixels"}


@dataclass
class EncoderConfig:
    """The vision encoder."""

    kind: str = setting(
        "efficientnet_lite0",
        help="`efficientnet_lite0`, `efficientnet_lite1`, `efficientnet_lite2`, `transformers`, `clip` (the "
        "tower of a CLIP or SigLIP checkpoint with its own pooling, docs/adopt.md), `none` (a "
        "model of texts only; it embeds, searches and answers, and sees nothing), or one of your own.",
    )
    freeze_until: int | None = setting(
        None,
        help="Stages (blocks of EfficientNet) in the frozen, cached lower part; none: all of it.",
        low=0,
        needs=STAGES,
        free_on_init=True,
    )
    config: dict[str, Any] = setting(
        default_factory=dict,
        help="What the kind takes; of `transformers` and `clip` the model's own config (`model_type` and its "
        "fields), of `clip` also `patch_map`: boxes see the `last` map, or its `value` path.",
    )


@dataclass
class ConnectorConfig:
    """h3: what puts an image's embedding before the LLM."""

    kind: str = setting(
        "linear",
        help="`linear`, `mlp`, `unit_mlp` (which sees an embedding's direction alone), or one of your own.",
    )
    config: dict[str, Any] = setting(default_factory=dict, help="What the kind takes.")


@dataclass
class LLMConfig:
    """The language model."""

    config: dict[str, Any] = setting(
        default_factory=dict, help="A transformers config, `model_type` and its fields."
    )


@dataclass
class ModelConfig:
    """Everything that decides the shape and the function of a ``MMGEMNetwork``."""

    kind: str = setting(
        "mmgem",
        help="`mmgem`, one of the systems it is compared with (docs/compare.md), or one of your own.",
    )
    config: dict[str, Any] = setting(default_factory=dict, help="What the kind takes.")
    encoder: EncoderConfig = setting(default_factory=EncoderConfig)
    llm: LLMConfig = setting(default_factory=LLMConfig)
    connector: ConnectorConfig = setting(default_factory=ConnectorConfig)
    dim: int = setting(512, help="D, the width of the shared embedding space.", low=1)
    projection: Literal["linear", "mlp"] = setting(
        "linear", help="h1 and h2: one linear map, or a hidden layer of 2 D with GELU."
    )
    dropout: float = setting(
        0.0,
        help="Dropout on the pooled visual feature, in training only.",
        low=0,
        below=1,
        free_on_init=True,
    )
    visual_tokens: int = setting(1, help="k: LLM input vectors made from each visual embedding by h3.", low=1)
    visual_grid: int = setting(
        1,
        help="g: 1 = the whole image or box is one embedding; above, its g x g tiles follow it as more.",
        low=1,
    )
    text_pool: Literal["emb", "mean"] = setting(
        "emb", help="A text's feature: what the LLM says at its [EMB] token, or the mean over its tokens."
    )
    attention: Literal["causal", "bidirectional"] = setting(
        "causal", help="Mask of the embedding mode; captions are always causal."
    )
    logit_scale: float = setting(
        1 / 0.07, help="Initial inverse temperature of the contrastive loss.", above=0
    )
    logit_bias: float = setting(
        0.0, help="Initial bias, used by the sigmoid loss only (SigLIP starts at -10).", needs=BIASED_LOSS
    )


@dataclass
class Preprocessing:
    """How pixels and texts are prepared; travels with the weights as ``preprocessor.json``."""

    size: int = setting(224, help="Input side in pixels.", **_SIDE)
    mean: tuple[float, float, float] = setting(
        (127 / 255, 127 / 255, 127 / 255), help="Of red, green and blue, of pixels scaled to 0..1."
    )
    std: tuple[float, float, float] = setting(
        (128 / 255, 128 / 255, 128 / 255), help="Of pixels scaled to 0..1.", above=0
    )
    resize: Literal["squash", "crop", "shortest"] = setting(
        "squash",
        help="To a square: both sides stretched (`squash`), or the centre cut out of the scaled photo, "
        "(`crop`), at whole pixels (`shortest`, as CLIP does).",
    )
    interpolation: Literal["bilinear", "bicubic"] = setting(
        "bilinear", help="Of the pixels that are resized."
    )
    scales: tuple[int, ...] = setting(
        (),
        help="More input sides: outside training an image or box is read at `size` and at each of these, and "
        "its embedding is the mean. Larger ones see smaller things; each costs another pass of the encoder.",
        free_on_init=True,
        **_SIDE,
    )
    region_scales: tuple[int, ...] = setting(
        (),
        help="Still more input sides, for boxes only: a box is read at the sides that show it about as large "
        "as `size` and `scales` show a photo.",
        free_on_init=True,
        **_SIDE,
    )
    lowercase: bool = setting(
        False, help="Lower-case texts and drop the final full stop, before embedding and captioning alike."
    )
    text_prefix: str = setting(
        "", help="Put before every text; a space makes the first word the token it is inside a sentence."
    )
    query_prefix: str = setting(
        "a picture of ",
        help="Put before what is searched for, if it is up to six words: a name alone finds less than a "
        "phrase like those that were trained on. Nothing of what is indexed or trained has it.",
        free_on_init=True,
    )
    max_text_tokens: int = setting(
        77, help="Longest text the LLM reads in one piece; never cut silently.", low=1, free_on_init=True
    )
    long_text: Literal["mean", "joined"] = setting(
        "mean",
        help="How a text of several sentences is embedded: the mean of its sentences' unit embeddings, "
        "however long it is; or read as a whole, where more than `max_text_tokens` is an error.",
        free_on_init=True,
    )
