"""Typed configuration of a training run, a recipe, with the sections that are its own.

A recipe is TOML; :func:`mmgem.config.convert.from_dict` turns it into dataclasses and refuses unknown keys
and wrong types with the full name of the field. The switches the paper leaves open are fields, the default
first. What
there is to say of a field stands at it (:func:`mmgem.config.fields.setting`), and docs/recipes.md is made of
that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmgem.config.data import DataConfig
from mmgem.config.fields import setting
from mmgem.config.model import ModelConfig, Preprocessing
from mmgem.config.needs import (
    AVERAGED,
    BASE_WEIGHTS,
    FROM_CHECKPOINT,
    FROZEN_EMBEDDINGS,
    HELD_OUT,
    IMAGES,
    NO_LAYERS,
    NO_LORA,
)
from mmgem.config.tasks import TASKS


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
    start_share: float = setting(
        0.0,
        help="Share of the weights of `init.checkpoint` in the averaged weights: what it knew beside is kept "
        "([WiSE-FT](https://arxiv.org/abs/2109.01903)).",
        low=0,
        below=1,
        needs=(FROM_CHECKPOINT, AVERAGED),
    )
    max_logit_scale_log: float = setting(4.6052, help="The temperature's floor: scale <= 100, as in CLIP.")
    lora_rank: int = setting(
        0,
        help="Above 0, the LLM trains through LoRA adapters of this rank, merged on export.",
        low=0,
    )
    trainable: list[str] = setting(
        default_factory=list,
        help="Of the groups that train, parameters whose names begin with one of these alone, such as "
        "`visual_connector`; empty: all.",
    )


@dataclass
class TrainConfig:
    """The loop."""

    out: Path = setting(help="Folder of the run: log, checkpoints, model.")
    epochs: float = setting(
        1.0,
        help="Passes over the images (each with `captions_per_image` of its captions), or over the texts.",
        above=0,
    )
    steps: int | None = setting(None, help="Length of the run in steps; none: `epochs`.", low=1)
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

    def total_steps(self, per_epoch: float) -> int:
        """Steps of the run, of which ``per_epoch`` are an epoch."""
        return self.steps or max(1, round(self.epochs * per_epoch))


@dataclass
class InitConfig:
    """Where the weights come from before step 0."""

    checkpoint: Path | None = setting(
        None, help="A model to continue from: a folder, or the name of a packaged one; excludes the others."
    )
    encoder: str = setting(
        "efficientnet_lite0",
        help="Base weights: a pulled name, a transformers folder or a hub id; or a model of ours, whose "
        "encoder, image projection, temperature and bias are taken: its image side, before another LLM.",
        needs=BASE_WEIGHTS,
    )
    llm: str = setting(
        "smollm2",
        help="As `encoder`; or a model of ours, whose LLM, markers, text projection and connector are taken: "
        "its language side, before another encoder.",
        needs=BASE_WEIGHTS,
    )
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
