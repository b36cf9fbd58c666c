"""Recipes: every one we ship loads and can be built; a typo is refused by name; sizes are as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from mmgem.config import ModelConfig, Recipe, from_dict, to_dict
from mmgem.config.recipe import load_recipe
from mmgem.errors import ConfigError
from mmgem.models.llm import LLM
from mmgem.models.parameter_count import meta_model, parameter_table

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


def test_the_recipes_are_there() -> None:
    assert {"tiny", "laptop", "paper"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.train.out == Path("runs") / path.stem
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    changed = load_recipe(path, ["train.batch_size=7", "data.train=elsewhere.jsonl"])
    assert (changed.train.batch_size, changed.data.train) == (7, Path("elsewhere.jsonl"))


def table_of(name: str) -> dict[str, int]:
    """The parameter table of a recipe's network, built without memory; printed for whoever runs with -s."""
    config = load_recipe(next(path for path in RECIPES if path.stem == name)).model
    network = meta_model(config)
    assert all(p.is_meta for p in network.parameters())
    rows = parameter_table(network)
    for part, count in rows:
        print(f"{name} {part:10} {count:>13,}")
    assert [part for part, _ in rows] == [
        "encoder",
        "llm",
        "embeddings",
        "visual_projection",
        "text_projection",
        "visual_connector",
        "markers",
        "total",
    ]
    table = dict(rows)
    assert table["total"] == sum(p.numel() for p in network.parameters())
    return table


def test_paper_is_vit_large_and_tinyllama() -> None:
    table = table_of("paper")
    assert table["encoder"] == 303_179_776  # CLIP ViT-L/14 without its projection
    assert table["llm"] + table["embeddings"] == 1_100_048_384  # TinyLlama 1.1B
    assert table["embeddings"] == 2 * 32_000 * 2048  # head and table are apart
    assert table["visual_projection"] == 1024 * 1024 + 1024
    assert table["text_projection"] == 2048 * 1024 + 1024
    assert table["visual_connector"] == 1024 * 2048 + 2048
    assert table["markers"] == 2 * 2048 + 2


def test_laptop_is_siglip_base_and_smollm2() -> None:
    table = table_of("laptop")
    assert table["llm"] + table["embeddings"] == 134_515_008  # SmolLM2-135M, head and table are one
    assert table["embeddings"] == 49_152 * 576
    assert 92e6 < table["encoder"] < 94e6


def test_table_of_a_real_network() -> None:
    for llm in ("llama", "tied llama", "gpt2"):
        network = toys.network(llm, visual_tokens=3)
        table = dict(parameter_table(network))
        assert table["total"] == sum(p.numel() for p in network.parameters())
        tables = 2 if llm == "llama" else 1
        assert table["embeddings"] == tables * len(toys.WORDS) * 16


def test_a_skeleton_needs_a_config() -> None:
    with pytest.raises(ConfigError, match=r"model\.llm\.config: model_type is missing"):
        meta_model(ModelConfig())


def test_a_model_config_comes_back_from_plain_data() -> None:
    config = toys.network("gemma3", "dinov3").config
    assert from_dict(ModelConfig, to_dict(config)) == config
    again = LLM(from_dict(ModelConfig, to_dict(config)).llm.config)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in toys.network("gemma3").llm.named_parameters()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.bach = 3", r"train\.bach: unknown field \(known: batch_size, "),
        ("trian.batch = 3", r"trian: unknown section"),
        ("train.batch_size = 1.5", r"train\.batch_size: expected int, got 1\.5"),
        ("train.batch_size = true", r"train\.batch_size: expected int"),
        ("optim.lr_heads = '1e-3'", r"optim\.lr_heads: expected float"),
        ("optim.betas = [0.9]", r"optim\.betas: expected 2 values"),
        ("optim.betas = [0.9, 'x']", r"optim\.betas\[1\]: expected float"),
        (
            "image_text.contrastive.loss = 'both'",
            r"image_text\.contrastive\.loss: 'both' is not one of 'softmax'",
        ),
        ("init.keep_layers = 3", r"init\.keep_layers: expected a list"),
        ("init.keep_layers = [1, 'two']", r"init\.keep_layers\[1\]: expected int"),
        ("model.encoder.freeze_until = 'all'", r"model\.encoder\.freeze_until: expected int"),
        ("model.encoder = 'clip'", r"model\.encoder: expected a table"),
        ("train.batch_size = ", r"r\.toml: not TOML"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"data.train = 'd.jsonl'\ntrain.out = 'out'\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_missing_fields_and_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("data.train = 'd.jsonl'\n")
    with pytest.raises(ConfigError, match=r"^train: missing"):
        load_recipe(path)
    with pytest.raises(ConfigError, match=r"train\.out: missing"):
        load_recipe(path, ["train.batch_size=3"])
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_recipe(tmp_path / "none.toml")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("data.train = 'd.jsonl'\ntrain.out = 'out'\nmodel.encoder.freeze_until = 3\n")
    recipe = load_recipe(
        path,
        [
            "model.dim=64",
            "optim.lr_heads=1e-2",
            "init.llm=HuggingFaceTB/SmolLM2-135M",
            "data.cached=false",
            "optim.betas=[0.8, 0.9]",
            "model.encoder.freeze_until=5",
            "data.dev_split=",
        ],
    )
    assert (recipe.model.dim, recipe.optim.lr_heads, recipe.model.encoder.freeze_until) == (64, 1e-2, 5)
    assert recipe.init.llm == "HuggingFaceTB/SmolLM2-135M"
    assert (recipe.data.cached, recipe.data.dev_split, recipe.optim.betas) == (False, "", (0.8, 0.9))
    with pytest.raises(ConfigError, match=r"'train\.batch_size': expected section"):
        load_recipe(path, ["train.batch_size"])
    with pytest.raises(ConfigError, match=r"train\.out\.deep: out is not a table"):
        load_recipe(path, ["train.out.deep=1"])
    with pytest.raises(ConfigError, match=r"train\.batch_size: expected int, got 'many'"):
        load_recipe(path, ["train.batch_size=many"])
