"""A recipe that cannot work, or asks for what would not come, is refused before anything is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import toys

from mmgem.checkpoints.initialize import init_network
from mmgem.config import EncoderConfig, InitConfig, Recipe, TrainConfig, from_dict
from mmgem.config.checks import entries, numbers
from mmgem.distributed.world import World
from mmgem.errors import ConfigError, MMGEMError
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.tasks.image_text.config import ImageTextConfig
from mmgem.train import loop
from mmgem.train.checks import check

NOWHERE = Path("nowhere.jsonl")
TEXTS = {"data__train": None, "self_retrieval__passages": "corpus.jsonl"}
SHARDS = {"data__train": "nowhere.tar", "data__cached": False, "data__dev_split": ""}
BOXES = {"data__mosaics": 4, "data__region_share": 0.5}


def made(**changes: Any) -> Recipe:
    """A recipe of files that are not there; ``changes`` are ``section__field=value``."""
    plain: dict[str, dict[str, Any]] = {
        "train": {"out": "run", "batch_size": 8},
        "data": {"train": str(NOWHERE)},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        table: dict[str, Any] = plain
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return from_dict(Recipe, plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TEXTS,
        SHARDS | {"data__workers": 2, "data__window": 3},
        BOXES | {"data__region_size": 64, "data__boxes_per_image": 2},
        {
            "image_text__contrastive__weight": 0.0,
            "image_text__contrastive__distill_weight": 0.5,
            "image_text__contrastive__loss": "sigmoid",
        },
        {"image_text__contrastive__distill_weight": 0.5, "image_text__contrastive__teacher": "minilm"},
        {"optim__max_grad_norm": math.inf, "train__strategy": "fsdp", "train__grad_cache_chunk_size": 3},
        {"init__checkpoint": "tiny", "model__encoder": {"freeze_until": 11}},
    ],
)
def test_what_can_work_is_not_refused(changes: dict[str, Any]) -> None:
    check(made(**changes), World(0, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Numbers.
        ({"data__cached_augmentations": 0}, "data.cached_augmentations: 0 is not 1 or more"),
        ({"data__workers": -1}, "data.workers: -1 is not 0 or more"),
        ({"data__window": 0}, "data.window: 0 is not 1 or more"),
        ({"data__region_share": 1.5}, "data.region_share: 1.5 is not from 0 to 1"),
        ({"data__crop_scale": 0.0}, "data.crop_scale: 0.0 is not above 0, at most 1"),
        ({"train__grad_cache_chunk_size": -1}, "train.grad_cache_chunk_size: -1 is not 0 or more"),
        ({"train__batch_size": 0}, "train.batch_size: 0 is not 1 or more"),
        ({"train__epochs": 0.0}, "train.epochs: 0.0 is not above 0"),
        ({"train__epochs": math.inf}, "train.epochs: inf is not a finite number"),
        ({"train__seed": -1}, "train.seed: -1 is not from 0"),
        ({"optim__lr_heads": math.nan}, "optim.lr_heads: nan is not a finite number"),
        ({"optim__max_grad_norm": 0.0}, "optim.max_grad_norm: 0.0 is not above 0"),
        ({"optim__betas": [0.9, 1.0]}, "optim.betas: 1.0 is not from 0 to below 1"),
        ({"preprocessing__std": [0.5, 0.0, 0.5]}, "preprocessing.std: 0.0 is not above 0"),
        (
            {"preprocessing__scales": [288, 5000]},
            "preprocessing.scales: 5000 is not a side of 1 to 4096 pixels",
        ),
        ({"init__layers": 0}, "init.layers: 0 is not 1 or more"),
        (TEXTS | {"self_retrieval__scoring": {"tau": 0.0}}, "self_retrieval.scoring.tau: 0.0 is not above 0"),
        (BOXES | {"data__region_size": 8}, "data.region_size: 8 is neither 0 nor 32 pixels or more"),
        # What would do nothing.
        ({"data__train": None}, "data.train: missing"),
        (
            TEXTS | {"train__grad_cache_chunk_size": 4},
            "train.grad_cache_chunk_size: the losses of self_retrieval",
        ),
        (TEXTS | {"data__region_share": 0.5}, "data.region_share: counts for images"),
        (TEXTS | {"data__dev": "dev.jsonl"}, "data.dev: counts for images"),
        (TEXTS | {"data__joined_caption_prob": 0.5}, "data.joined_caption_prob: counts for images"),
        (
            TEXTS | {"image_text__contrastive__loss": "sigmoid"},
            "data.train: missing",
        ),
        (TEXTS | {"optim__lr_encoder": 1e-4}, "optim.lr_encoder: counts for images"),
        (TEXTS | {"train__evaluate_every": 5}, "train.evaluate_every: nothing to evaluate on"),
        ({"self_retrieval__queries": ["q.jsonl"]}, "self_retrieval.passages: missing"),
        (
            {"self_retrieval__scoring": {"title_beams": 3}},
            "self_retrieval.passages: missing",
        ),
        ({"data__workers": 2}, "data.workers: counts for shards"),
        ({"data__window": 4}, "data.window: counts for shards"),
        (
            SHARDS | {"image_text__caption__sampled_softmax": 8},
            "image_text.caption.sampled_softmax: needs loose files",
        ),
        (SHARDS | {"data__region_size": 64}, "data.region_size: counts only if data.region_share is above 0"),
        ({"data__mosaics": 4}, "data.mosaics: counts only if data.region_share is above 0"),
        ({"data__dev_split": "", "train__evaluate_every": 5}, "train.evaluate_every: nothing to evaluate on"),
        (
            {"model__encoder": {"kind": "transformers", "freeze_until": 3}},
            "model.encoder.freeze_until: counts for EfficientNet",
        ),
        (
            {"model__logit_bias": -10.0},
            "model.logit_bias: counts for losses with a bias only",
        ),
        ({"init__checkpoint": "tiny", "init__layers": 2}, "init.layers: init.checkpoint excludes it"),
        ({"init__checkpoint": "tiny", "init__llm": "x"}, "init.llm: init.checkpoint excludes it"),
        (
            {"optim__lora_rank": 2, "optim__lr_embeddings": 1e-4},
            "optim.lr_embeddings: optim.lora_rank trains",
        ),
        ({"optim__lora_rank": 2, "optim__lr_llm": 0.0}, "optim.lora_rank: nothing of the LLM trains"),
        ({"optim__lr_heads": 0.0, "optim__lr_llm": 0.0}, "optim.lr_heads: nothing trains"),
        (
            {"image_text__contrastive__weight": 0.0, "image_text__caption__weight": 0.0},
            "image_text: every loss",
        ),
        (
            {"image_text__contrastive__weight": 0.0, "image_text__caption__weight": 0.0},
            "image_text: every loss",
        ),
        # What excludes each other, or needs something.
        ({"model__encoder": {"kind": "none"}}, "data.train: a model with"),
        ({"init__layers": 2, "init__keep_layers": [0]}, "init.keep_layers: excludes init.layers"),
        ({"train__compile": True, "train__checkpoint_activations": True}, "train.compile: excludes"),
        (
            {"image_text__contrastive__distill_weight": 0.5},
            "image_text.contrastive.teacher: distill_weight needs a teacher",
        ),
        (
            {"image_text__contrastive__distill_weight": 0.5, "image_text__contrastive__loss": "sigmoid"},
            "image_text.contrastive.distill_weight: excludes",
        ),
        (
            {"init__quantize_embeddings": True, "optim__lr_embeddings": 1e-4},
            "init.quantize_embeddings: undone by optim.lr_embeddings",
        ),
        ({"data__hard_negatives": 3}, r"data.hard_negatives: needs a teacher of \[image_text.contrastive\]"),
        ({"model__logit_scale": 200.0}, "model.logit_scale: 200 is above 100"),
        ({"train__trackers": ["wandb", "trackio"]}, "train.trackers: .* is not installed"),
        # What a step or a rank would have none of.
        (
            BOXES | {"data__region_share": 0.01},
            "data.region_share: 0.01 leaves no box of train.batch_size = 8",
        ),
        (
            BOXES | {"data__region_share": 0.99},
            "data.region_share: 0.99 leaves no image of train.batch_size = 8",
        ),
        ({"train__batch_size": 1}, "train.batch_size: 1 images a step, fewer than the 2 processes"),
        (
            BOXES | {"train__batch_size": 4},
            "train.batch_size: 1 images to take boxes from a step, fewer than the 2",
        ),
        (
            TEXTS | {"self_retrieval__batch_size": 1},
            "self_retrieval.batch_size: 1 is too small for 2 processes",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        check(made(**changes), World(0, 2))


def test_one_image_has_nothing_to_be_told_from() -> None:
    check(made(train__batch_size=1, image_text__contrastive__weight=0.0), World())
    with pytest.raises(ConfigError, match=r"train.batch_size: 1 image has no other"):
        check(made(train__batch_size=1), World())


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"train.compile: needs a C\+\+ compiler.*no-such-compiler"):
        loop.prepare(made(train__compile=True))


def test_a_run_is_not_written_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"train.out: .*run is a file"):
        check(made(train__out=str(tmp_path / "run")), World())


def test_every_number_of_a_recipe_has_a_range() -> None:
    """Every default is inside, and what has no range of its own has to be finite."""
    recipe = Recipe(
        TrainConfig(Path("run"), steps=1),
        init=InitConfig(layers=1, keep_layers=[0]),
        tasks={"image_text": ImageTextConfig(), "self_retrieval": SelfRetrievalConfig(passages=NOWHERE)},
    )
    recipe.model.encoder = EncoderConfig(freeze_until=0)
    recipe.preprocessing.scales = recipe.preprocessing.region_scales = (224,)
    assert all(value in allowed for _, value, allowed in numbers(recipe))
    assert all(math.inf not in allowed for name, _, allowed in numbers(recipe) if "max_grad_norm" not in name)
    assert all(math.nan not in allowed for _, _, allowed in numbers(recipe))
    ranged = {entry.name for entry in entries(recipe) if entry.fact.range is not None}
    free = {"model.logit_bias", "preprocessing.mean", "optim.max_logit_scale_log"}
    weights = ("title", "passage", "accept", "query_likelihood")
    free |= {f"self_retrieval.scoring.{name}_weight" for name in weights}
    assert {name for name, _, _ in numbers(recipe)} == ranged | free


def test_every_field_says_what_it_means() -> None:
    tasks = {"image_text": ImageTextConfig(), "self_retrieval": SelfRetrievalConfig()}
    for entry in entries(Recipe(TrainConfig(Path("run")), tasks=tasks)):
        assert entry.fact.help, entry.name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("world")
    return folder, toys.photos(folder / "data", train=6, dev=2), toys.base_models(folder / "bases")


@pytest.mark.parametrize(
    ("changes", "ranks", "said"),
    [
        (
            {"data__joined_caption_prob": 0.5, "preprocessing__max_text_tokens": 12},
            World(),
            r"data.joined_caption_prob: the captions of .*png are up to \d+ tokens in one text",
        ),
        (
            {"preprocessing__max_text_tokens": 300},
            World(),
            "preprocessing.max_text_tokens: image and text are up to 302 tokens, more than the 256",
        ),
        (
            {"init__quantize_embeddings": True},
            World(),
            "init.quantize_embeddings: the LLM's width 16 is no multiple of 32",
        ),
        ({}, World(0, 8), "train.batch_size: 6 images a step, fewer than the 8 processes"),
    ],
)
def test_what_only_the_data_and_the_weights_tell(
    world: tuple[Path, Path, tuple[Path, Path]],
    changes: dict[str, Any],
    ranks: World,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, data, bases = world
    recipe = toys.recipe(folder, data, *bases, data__dev_split="", **changes)
    monkeypatch.setattr(World, "barrier", lambda _: None)  # there are no others
    with pytest.raises(MMGEMError, match=f"^{said}"):
        loop.prepare(recipe, ranks)


def test_a_passage_has_to_fit_the_llm(world: tuple[Path, Path, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, data, bases = world
    passages, queries = toys.corpus(tmp_path, 3, 1)
    passages.write_text(passages.read_text().replace('"text": "', f'"text": "{"a dog runs. " * 80}'))
    recipe = toys.recipe(folder, data, *bases, data__dev_split="")
    recipe.tasks["self_retrieval"] = SelfRetrievalConfig(passages, [queries])
    with pytest.raises(ConfigError, match=r"self_retrieval.max_passage_tokens: .* the LLM reads 256"):
        loop.prepare(recipe)


def test_activations_of_an_llm_that_cannot(
    world: tuple[Path, Path, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, bases = world
    recipe = toys.recipe(folder, data, *bases, data__dev_split="", train__checkpoint_activations=True)
    monkeypatch.setattr(type(init_network(recipe)[0].llm.lm), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"train.checkpoint_activations: LlamaForCausalLM cannot"):
        loop.prepare(recipe)
