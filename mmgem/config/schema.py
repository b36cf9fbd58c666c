"""Typed configuration: what a model is (saved with it) and how it is trained (a recipe).

A recipe is TOML; :func:`from_dict` turns it into dataclasses and refuses unknown keys and wrong types with
the field's full name. The switches the paper leaves open are fields here, the default first.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmgem.config.tasks import TASKS
from mmgem.errors import ConfigError

T = TypeVar("T")


@dataclass
class EncoderConfig:
    """The vision encoder."""

    kind: str = "efficientnet_lite0"
    """A name in :data:`mmgem.encoders.ENCODERS`: ``efficientnet_lite0``, ``transformers``, ``none`` (a model
    of texts only; it embeds, searches and answers, and sees nothing), or one of your own."""
    freeze_until: int | None = None
    """Stages (blocks of EfficientNet) in the frozen, cached lower part; None: all of it."""
    config: dict[str, Any] = field(default_factory=dict)
    """What the kind takes; of ``transformers`` the model's own config (``model_type`` and its fields)."""


@dataclass
class ConnectorConfig:
    """h3: what puts an image's embedding before the LLM."""

    kind: str = "linear"
    """A name in :data:`mmgem.models.connectors.CONNECTORS`: ``linear``, ``mlp``, or one of your own."""
    config: dict[str, Any] = field(default_factory=dict)
    """What the kind takes."""


@dataclass
class LLMConfig:
    """The language model: a transformers config, ``model_type`` and its fields."""

    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """Everything that decides the shape and the function of a ``MMGEMNetwork``."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    dim: int = 512
    """D, the width of the shared embedding space."""
    projection: Literal["linear", "mlp"] = "linear"
    """h1 and h2: one linear map, or a hidden layer of 2 D with GELU."""
    dropout: float = 0.0
    """Dropout on the pooled visual feature, in training only."""
    visual_tokens: int = 1
    """k: LLM input vectors made from each visual embedding by h3."""
    visual_grid: int = 1
    """g: 1 = the whole image or box is one embedding; above, its g x g tiles follow it as more."""
    text_pool: Literal["emb", "mean"] = "emb"
    attention: Literal["causal", "bidirectional"] = "causal"
    """Mask of the embedding mode; captions are always causal."""
    logit_scale: float = 1 / 0.07
    """Initial inverse temperature of the contrastive loss."""
    logit_bias: float = 0.0
    """Initial bias, used by the sigmoid loss only (SigLIP starts at -10)."""


@dataclass
class Preprocessing:
    """How pixels and texts are prepared; travels with the weights as ``preprocessor.json``."""

    size: int = 224
    mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    std: tuple[float, float, float] = (128 / 255, 128 / 255, 128 / 255)
    """Of pixels scaled to 0..1."""
    resize: Literal["squash", "crop"] = "squash"
    """To a square: both sides stretched, or short side scaled and the centre cut out."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scales: tuple[int, ...] = ()
    """More input sides: outside training an image or box is read at ``size`` and at each of these, and its
    embedding is the mean. Larger ones see smaller things; each costs another pass of the encoder."""
    region_scales: tuple[int, ...] = ()
    """Still more input sides, for boxes only: a box is read at the sides that show it about as large as
    ``size`` and ``scales`` show a photo (see :mod:`mmgem.inference.pyramid`)."""
    lowercase: bool = False
    """Lower-case texts and drop the final full stop, before embedding and captioning alike."""
    text_prefix: str = ""
    """Put before every text; a space makes the first word the token it is inside a sentence."""
    max_text_tokens: int = 77
    """Longest text the LLM reads in one piece; never cut silently."""
    long_text: Literal["mean", "joined"] = "mean"
    """How a text of several sentences is embedded: the mean of its sentences' unit embeddings, however long
    it is; or read as a whole, where more than ``max_text_tokens`` is an error."""


@dataclass
class DataConfig:
    """What a run reads."""

    train: Path | None = None
    """Anything :func:`mmgem.data.readers.load_dataset` reads, or shards (``.tar``, ``.parquet``: a file, a
    folder, a pattern); None: only a corpus is learned."""
    split: str | None = "train"
    dev: Path | None = None
    """Evaluated during training; None: ``train``'s own ``dev_split``."""
    dev_split: str | None = "dev"
    cached_augmentations: int = 1
    """Cached versions of each image: the plain one, its mirror, then random crops."""
    crop_scale: float = 0.5
    """Smallest share of the image's area in a random crop."""
    cached: bool = True
    """Compute the encoder's lower part once and keep it; false reads pixels at every step."""
    cache: Path | None = None
    """Where feature maps are cached; None: under the user's cache folder."""
    captions_per_image: int = 1
    """Texts of an image in one batch; they share the contrastive target."""
    joined_caption_prob: float = 0.0
    """Share of whole images whose text is two or more of their captions, joined in random order."""
    region_share: float = 0.0
    """Share of a batch that is boxes with captions instead of whole images (stage 2)."""
    region_size: int = 0
    """Input side in pixels of the images boxes are taken from; 0: ``preprocessing.size``."""
    boxes_per_image: int = 4
    """Most boxes taken from one image in a batch; they share its feature map."""
    mosaics: int = 0
    """Canvases of 2 to 4 training photos each to take boxes from, made once and kept in the cache."""
    mosaic_augmentations: int = 2
    """Cached versions of each canvas, as ``views``."""
    window: int = 8
    """Of shards: how many tars, or row groups of parquet, are shuffled together."""
    workers: int = 0
    """Of shards: processes that decode photos ahead; 0: none."""


@dataclass
class OptimConfig:
    """AdamW in three groups: new parts (projections, markers), LLM, encoder. A rate of 0 freezes a group."""

    lr_heads: float = 1e-3
    lr_llm: float = 3e-4
    lr_encoder: float = 0.0
    lr_embeddings: float = 0.0
    """The LLM's token table (and tied head)."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    """Steps of linear warm-up; a cosine to ``final_lr_ratio`` times the rate follows."""
    final_lr_ratio: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and exported; 0: none."""
    max_logit_scale_log: float = 4.6052
    """The temperature's floor: scale <= 100, as in CLIP."""
    lora_rank: int = 0
    """Above 0, the LLM trains through LoRA adapters of this rank, merged on export."""


@dataclass
class TrainConfig:
    """The loop."""

    out: Path
    epochs: float = 1.0
    """Passes over the images (each with ``captions_per_image`` of its captions)."""
    batch_size: int = 96
    """Images in a step."""
    seed: int = 0
    evaluate_every: int = 0
    """Steps; 0: only at the end."""
    checkpoint_every: int = 200
    log_every: int = 10
    keep_checkpoints: int = 2
    """Training checkpoints kept."""
    evaluate_images: int = 1000
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Where the numbers of ``log.jsonl`` go as well."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU for every process, if there are any."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes hold: all of the network each (DDP), or a shard of every tensor (FSDP2), which
    costs traffic and saves memory. Alone: all of it in any case."""
    grad_cache_chunk_size: int = 0
    """Gradient caching: items whose activations are kept at once; negatives are still those of the whole
    batch. 0: all. Costs a second forward pass of the embeddings."""
    checkpoint_activations: bool = False
    """Compute the activations inside blocks again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the LLM's blocks (``torch.compile``); needs a C++ compiler on a CPU, Triton on a GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the LLM's blocks and head and, on a GPU, of the encoder; weights, optimiser, similarities
    and losses are float32 in any case. bfloat16 needs hardware for it (AVX512-BF16, AMX, a GPU): elsewhere it
    is slower. A GPU multiplies what is float32 as TF32."""


@dataclass
class InitConfig:
    """Where the weights come from before step 0."""

    checkpoint: Path | None = None
    """A model to continue from: a folder, or the name of a packaged one; excludes the others."""
    encoder: str = "efficientnet_lite0"
    """Base weights: a pulled name, a transformers folder or a hub id."""
    llm: str = "smollm2"
    layers: int | None = None
    """Keep the LLM's first N blocks."""
    keep_layers: list[int] = field(default_factory=list)
    """Keep these blocks instead, counted from 0. A few first and a few last ones recover much sooner than
    the first N: the last blocks are the ones that speak the output head's language."""
    quantize_embeddings: bool = False
    """Round the token table to 4 bits before training, so that shipping it in 4 bits loses nothing."""


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
            close = ", ".join(sorted(fields.keys() - {sections and sections.name}))
            raise ConfigError(f"{prefix}{key}: unknown field (known: {close})")
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
