"""Typed configuration: what a model is (saved with it) and how it is trained (a recipe).

A recipe is TOML; :func:`from_dict` turns it into dataclasses and refuses unknown keys and wrong types with
the field's full name. The switches the paper leaves open are fields here, the default first. What there is to
say of a field stands at it (:func:`mmgem.config.fields.setting`); docs/recipes.md is made of that.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmgem.config.fields import setting
from mmgem.config.needs import (
    BASE_WEIGHTS,
    BIASED_LOSS,
    FROZEN_EMBEDDINGS,
    HELD_OUT,
    IMAGES,
    LOOSE_FILES,
    NO_LAYERS,
    NO_LORA,
    REGIONS,
    SHARDS,
    STAGES,
)
from mmgem.config.tasks import TASKS
from mmgem.errors import ConfigError

T = TypeVar("T")

_SIDE: dict[str, Any] = {"low": 1, "high": 4096, "range_words": "a side of 1 to 4096 pixels"}


@dataclass
class EncoderConfig:
    """The vision encoder."""

    kind: str = setting(
        "efficientnet_lite0",
        help="`efficientnet_lite0`, `transformers`, `none` (a model of texts only; it embeds, searches and "
        "answers, and sees nothing), or one of your own.",
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
        help="What the kind takes; of `transformers` the model's own config (`model_type` and its fields).",
    )


@dataclass
class ConnectorConfig:
    """h3: what puts an image's embedding before the LLM."""

    kind: str = setting("linear", help="`linear`, `mlp`, or one of your own.")
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
    resize: Literal["squash", "crop"] = setting(
        "squash", help="To a square: both sides stretched, or short side scaled and the centre cut out."
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
    max_text_tokens: int = setting(
        77, help="Longest text the LLM reads in one piece; never cut silently.", low=1, free_on_init=True
    )
    long_text: Literal["mean", "joined"] = setting(
        "mean",
        help="How a text of several sentences is embedded: the mean of its sentences' unit embeddings, "
        "however long it is; or read as a whole, where more than `max_text_tokens` is an error.",
        free_on_init=True,
    )


@dataclass
class DataConfig:
    """What a run reads."""

    train: Path | None = setting(
        None,
        help="Image-text pairs in any form that `mmgem eval` reads, or shards (`.tar`, `.parquet`: a file, "
        "a folder, a pattern); none: only a corpus is learned.",
    )
    split: str | None = setting("train", help='Records of `train` that are learned; "": all.')
    extra_train: list[Path] = setting(
        default_factory=list,
        help="More sets that are learned together with `train`, each in any form that it may have.",
        needs=(IMAGES, LOOSE_FILES),
    )
    extra_share: float = setting(
        0.0,
        help="Share of the whole images of a step that are of `extra_train`; 0: as many as there are.",
        low=0,
        below=1,
        needs=(IMAGES, LOOSE_FILES),
    )
    labels: bool = setting(
        False,
        help="Learn from the `label` of images without captions too, in sentences that name it; of those the "
        "captioner learns the name alone.",
        needs=(IMAGES, LOOSE_FILES),
    )
    translations: list[Path] = setting(
        default_factory=list,
        help='Captions of the same images in other languages, by file name (`{"image": ..., "de": ...}`); '
        "those in the sets themselves (`captions_de`) count as well. They are embedded, not predicted.",
        needs=(IMAGES, LOOSE_FILES),
    )
    translation_prob: float = setting(
        0.0,
        help="Share of whole images that come with one caption in another language beside their own.",
        low=0,
        high=1,
        needs=(IMAGES, LOOSE_FILES),
    )
    texts: list[Path] = setting(
        default_factory=list,
        help="Captions without images, JSON lines or one a line of `.txt`, also `.gz`; "
        "`[image_text.text_only]` learns from them.",
        needs=IMAGES,
    )
    dev: Path | None = setting(
        None, help="Evaluated during training; none: `train`'s own `dev_split`.", needs=IMAGES
    )
    dev_split: str | None = setting(
        "dev", help='Records of `train` that are evaluated during training; "": none.'
    )
    cached_augmentations: int = setting(
        1, help="Cached versions of each image: the plain one, its mirror, then random crops.", low=1
    )
    crop_scale: float = setting(
        0.5, help="Smallest share of the image's area in a random crop.", above=0, high=1
    )
    cached: bool = setting(
        True, help="Compute the encoder's lower part once and keep it; false reads pixels at every step."
    )
    cache: Path | None = setting(
        None, help="Where feature maps are cached; none: under the user's cache folder."
    )
    captions_per_image: int = setting(
        1, help="Texts of an image in one batch; they share the contrastive target.", low=1
    )
    joined_caption_prob: float = setting(
        0.0,
        help="Share of whole images whose text is two or more of their captions, joined in random order.",
        low=0,
        high=1,
        needs=IMAGES,
    )
    region_share: float = setting(
        0.0,
        help="Share of a batch that is boxes with captions instead of whole images (stage 2).",
        low=0,
        high=1,
        needs=IMAGES,
    )
    region_size: int = setting(
        0,
        help="Input side in pixels of the images boxes are taken from, 32 or more; 0: `preprocessing.size`.",
        low=0,
        needs=(IMAGES, REGIONS),
    )
    boxes_per_image: int = setting(
        4, help="Most boxes taken from one image in a batch; they share its feature map.", low=1
    )
    mosaic_share: float = setting(
        0.0,
        help="Share of mosaics among the images boxes are taken from, where there are others too; 0: as many "
        "as there are.",
        low=0,
        below=1,
        needs=(IMAGES, REGIONS),
    )
    mosaics: int = setting(
        0,
        help="Canvases of 2 to 4 training photos each to take boxes from, made once and kept in the cache.",
        low=0,
        needs=(IMAGES, REGIONS),
    )
    mosaic_augmentations: int = setting(
        2, help="Cached versions of each canvas, as `cached_augmentations`.", low=1
    )
    window: int = setting(
        8,
        help="Of shards: how many tars, or row groups of parquet, are shuffled together.",
        low=1,
        needs=SHARDS,
    )
    workers: int = setting(
        0,
        help="Of shards: processes that decode photos ahead; 0: none.",
        low=0,
        needs=(IMAGES, SHARDS),
        free_on_resume=True,
    )


@dataclass
class OptimConfig:
    """AdamW in three groups: new parts (projections, markers), LLM, encoder. A rate of 0 freezes a group."""

    lr_heads: float = setting(1e-3, help="Rate of the projections and markers.", low=0)
    lr_llm: float = setting(3e-4, help="Rate of the LLM's blocks and head.", low=0)
    lr_encoder: float = setting(0.0, help="Rate of the encoder, above what is frozen.", low=0, needs=IMAGES)
    lr_embeddings: float = setting(
        0.0, help="Rate of the LLM's token table (and tied head).", low=0, needs=NO_LORA
    )
    weight_decay: float = setting(0.05, help="Of matrices; vectors and scalars do not decay.", low=0)
    betas: tuple[float, float] = setting((0.9, 0.98), help="AdamW's two decay rates.", low=0, below=1)
    warmup_steps: int = setting(
        100,
        help="Steps of linear warm-up; a cosine to `final_lr_ratio` times the rate follows.",
        low=0,
    )
    final_lr_ratio: float = setting(0.0, help="What is left of the rates at the end, as a share.", low=0)
    max_grad_norm: float = setting(
        1.0, help="Longer gradients are scaled down to this norm; inf: none.", above=0, high=math.inf
    )
    ema_decay: float = setting(
        0.0,
        help="Decay of the averaged weights that are evaluated and exported; 0: none.",
        low=0,
        below=1,
    )
    max_logit_scale_log: float = setting(4.6052, help="The temperature's floor: scale <= 100, as in CLIP.")
    lora_rank: int = setting(
        0,
        help="Above 0, the LLM trains through LoRA adapters of this rank, merged on export.",
        low=0,
    )


@dataclass
class TrainConfig:
    """The loop."""

    out: Path = setting(help="Folder of the run: log, checkpoints, model.")
    epochs: float = setting(
        1.0, help="Passes over the images (each with `captions_per_image` of its captions).", above=0
    )
    batch_size: int = setting(96, help="Images in a step.", low=1)
    seed: int = setting(
        0,
        help="Of everything random.",
        low=0,
        high=2**63 - 1,
        range_words="from 0 to 2^63 - 1",
    )
    evaluate_every: int = setting(0, help="Steps; 0: only at the end.", low=0, needs=HELD_OUT)
    checkpoint_every: int = setting(
        200, help="Steps between checkpoints to resume from.", low=1, free_on_resume=True
    )
    log_every: int = setting(10, help="Steps between lines of the log.", low=1, free_on_resume=True)
    keep_checkpoints: int = setting(2, help="Training checkpoints kept.", low=1, free_on_resume=True)
    evaluate_images: int = setting(1000, help="Most images of an evaluation.", low=1)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = setting(
        default_factory=list,
        help="Where the numbers of `log.jsonl` go as well.",
        free_on_resume=True,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", help="`auto`: a GPU for every process, if there are any.", free_on_resume=True
    )
    threads: int = setting(0, help="CPU threads; 0: torch's choice.", low=0, free_on_resume=True)
    strategy: Literal["ddp", "fsdp"] = setting(
        "ddp",
        help="What several processes hold: all of the network each (DDP), or a shard of every tensor "
        "(FSDP2), which costs traffic and saves memory. Alone: all of it in any case.",
        free_on_resume=True,
    )
    grad_cache_chunk_size: int = setting(
        0,
        help="Gradient caching: items whose activations are kept at once; negatives are still those of the "
        "whole batch. 0: all. Costs a second forward pass of the embeddings.",
        low=0,
        free_on_resume=True,
    )
    checkpoint_activations: bool = setting(
        False,
        help="Compute the activations inside blocks again in the backward pass instead of keeping them.",
        free_on_resume=True,
    )
    compile: bool = setting(
        False,
        help="Compile the LLM's blocks (`torch.compile`); needs a C++ compiler on a CPU, Triton on a GPU.",
        free_on_resume=True,
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        help="Arithmetic of the LLM's blocks and head and, on a GPU, of the encoder; weights, optimiser, "
        "similarities and losses are float32 in any case. bfloat16 needs hardware for it (AVX512-BF16, AMX, "
        "a GPU): elsewhere it is slower. A GPU multiplies what is float32 as TF32.",
    )


@dataclass
class InitConfig:
    """Where the weights come from before step 0."""

    checkpoint: Path | None = setting(
        None, help="A model to continue from: a folder, or the name of a packaged one; excludes the others."
    )
    encoder: str = setting(
        "efficientnet_lite0",
        help="Base weights: a pulled name, a transformers folder or a hub id.",
        needs=BASE_WEIGHTS,
    )
    llm: str = setting("smollm2", help="As `encoder`.", needs=BASE_WEIGHTS)
    layers: int | None = setting(None, help="Keep the LLM's first N blocks.", low=1, needs=BASE_WEIGHTS)
    keep_layers: list[int] = setting(
        default_factory=list,
        help="Keep these blocks instead, counted from 0. A few first and a few last ones recover much sooner "
        "than the first N: the last blocks are the ones that speak the output head's language.",
        low=0,
        needs=(BASE_WEIGHTS, NO_LAYERS),
    )
    quantize_embeddings: bool = setting(
        False,
        help="Round the token table to 4 bits before training, so that shipping it in 4 bits loses nothing.",
        needs=(BASE_WEIGHTS, FROZEN_EMBEDDINGS),
    )


@dataclass
class Recipe:
    """One training run, from one TOML file."""

    train: TrainConfig
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tasks: dict[str, Any] = field(default_factory=dict, metadata={"sections": TASKS})
    """What is learned: the section of each task, ``[image_text]`` where a recipe names none."""

    def __post_init__(self) -> None:
        if not self.tasks:
            self.tasks = {"image_text": TASKS["image_text"].Config()}


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass ``cls`` from plain ``data``; ``where`` prefixes field names in messages.

    Raises :class:`ConfigError` naming the field for an unknown key, a missing one or a wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a table, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    values: dict[str, Any] = {}
    sections = next((f for f in fields.values() if "sections" in f.metadata), None)
    for key, value in data.items():
        if sections is not None and key in sections.metadata["sections"]:
            config = sections.metadata["sections"][key].Config
            values.setdefault(sections.name, {})[key] = from_dict(config, value, f"{prefix}{key}")
            continue
        if key not in fields or fields[key] is sections:
            known = fields.keys() - {sections and sections.name}
            if sections is not None and isinstance(value, dict):
                known |= set(sections.metadata["sections"])
                hint = "; a task of one's own is made known by --plugin"
                raise ConfigError(f"{key}: unknown section (known: {', '.join(sorted(known))}{hint})")
            raise ConfigError(f"{prefix}{key}: unknown field (known: {', '.join(sorted(known))})")
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    for name, f in fields.items():
        missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{prefix}{name}: missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        inner = list(args[:1]) * len(value) if args[-1] is Ellipsis else list(args)
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise ConfigError(f"{where}: expected {len(inner)} values, got {value!r}")
        return tuple(
            _convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return [_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return value
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Plain, JSON-ready form of a config dataclass, a recipe with the sections of its tasks beside the
    others; :func:`from_dict` reads it back equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    whole = plain(dataclasses.asdict(config))
    for f in dataclasses.fields(config):
        if "sections" in f.metadata:
            whole |= whole.pop(f.name)
    return whole
