"""Recipes compared: alike, in one table, nothing done twice; standard errors; a system of one's own."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from related_toys import SYSTEMS

import mmgem.compare.measure as measure
from mmgem import MMGEM, NETWORKS
from mmgem.cli.main import main
from mmgem.compare.run import compare, load_recipes
from mmgem.compare.variants import Variation
from mmgem.compare.worker import finished, train_here
from mmgem.config import Recipe, to_dict
from mmgem.errors import ConfigError, UsageError
from mmgem.evaluate.retrieval import ranks
from mmgem.evaluate.standard_error import jackknife_error, standard_error
from mmgem.utils.plugins import VARIABLE

ROOT = Path(__file__).parents[1]
RELATED = sorted((ROOT / "recipes" / "related").glob("*.toml"))
EXAMPLE = ROOT / "examples" / "network_siglip_decoder.py"


def lines(plain: dict[str, Any], before: str = "") -> Iterator[str]:
    """A plain recipe as TOML of dotted keys."""
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from lines(value, f"{before}{key}.")
        elif value not in (None, {}):
            yield f"{before}{key} = {json.dumps(value)}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("compare")
    data = toys.photos(folder / "data", train=8, dev=4)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for n, row in enumerate(rows):
        row["regions"] = [{"box": [2, 1, 30, 30], "captions": [f"dog {toys.WORDS[n + 2]}"]}]
    regions = folder / "data" / "regions.jsonl"
    regions.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    for n, name in enumerate(("dog", "cat")):
        (folder / "classes" / name).mkdir(parents=True)
        source = folder / "data" / "images" / f"{n}.png"
        (folder / "classes" / name / "a.png").write_bytes(source.read_bytes())
    return {
        "folder": folder,
        "data": data,
        "regions": regions,
        "classes": folder / "classes",
        "bases": toys.base_models(folder / "bases"),
    }


def recipe_file(world: dict[str, Any], folder: Path, system: str, **changes: Any) -> Path:
    options = {"train__epochs": 1, "train__batch_size": 4, "data__cached_augmentations": 1}
    made = toys.recipe(
        world["folder"],
        world["data"],
        *world["bases"],
        **(options | copy.deepcopy(SYSTEMS[system]) | changes),
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{system}.toml"
    path.write_text("\n".join(lines(to_dict(made))) + "\n")
    return path


def test_a_comparison(world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = ("mmgem", "clip", "minigpt4", "blip")
    recipes = [recipe_file(world, tmp_path / "recipes", system) for system in systems]
    trained: list[str] = []

    def train(recipe: Recipe) -> None:
        trained.append(recipe.train.out.name)
        train_here(recipe)

    arguments = {"classes": world["classes"], "regions": world["regions"], "rerank": 2, "train": train}
    out = tmp_path / "out"
    result = compare(recipes, out, world["data"], **arguments)
    assert trained == list(systems)
    rows = {row["name"]: row for row in result.rows}
    assert {"i2t R@1", "t2i R@10", "CIDEr", "BLEU@4", "zero-shot", "region R@1"} <= rows["mmgem"][
        "scores"
    ].keys()
    assert rows["clip"]["scores"].keys() == {"i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10", "zero-shot"}
    assert rows["minigpt4"]["scores"].keys() == {"CIDEr", "BLEU@4"}
    assert "t2i reranked R@1" in rows["blip"]["scores"] and "region R@1" not in rows["blip"]["scores"]
    for row in rows.values():
        assert {"trained", "tokens", "pairs_per_second", "peak_memory_gb"} <= row["training"].keys()
        assert (row["training"]["steps"], row["training"]["pairs"]) == (2, 8)
    assert rows["minigpt4"]["training"]["trained"] == 16 * 16 + 16

    # The figures are those of the model.
    model = MMGEM.from_pretrained(out / "clip" / "model")
    records = [r for r in map(json.loads, world["data"].read_text().splitlines()) if r["split"] == "dev"]
    images = model.embed_images([world["data"].parent / r["image"] for r in records])
    texts = model.embed_texts([c for r in records for c in r["captions"]])
    owner = np.repeat(np.arange(4), 3)
    of_images, of_texts = ranks(images, texts, owner)
    wanted = (100 * float(np.mean(of_texts <= 1)), standard_error(100.0 * (of_texts <= 1), owner))
    assert rows["clip"]["scores"]["t2i R@1"] == pytest.approx(wanted)
    assert rows["clip"]["scores"]["i2t R@10"][0] == 100 * float(np.mean(of_images <= 10))

    table = result.table
    assert "4 photos; each system 2 steps of 4 images" in table and table.count("\n| ") == 5
    assert "| minigpt4 | – |" in table
    assert json.loads((out / "table.json").read_text())["rows"] == json.loads(json.dumps(result.rows))
    plot = (out / "plot.svg").read_text()
    assert plot.startswith("<svg") and ">blip</text>" in plot and plot.count("<path") > 6

    # Nothing is done twice.
    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", lambda *_: pytest.fail("measured again"))
        again = compare(recipes, out, world["data"], **arguments)
    assert len(trained) == 4 and json.dumps(again.rows) == json.dumps(result.rows)


def test_captions_that_nothing_has_taught_are_not_measured(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_file(world, tmp_path / "recipes", "mmgem", image_text__caption__weight=0.0)
    (row,) = compare([recipe], tmp_path / "out", world["data"], train=train_here).rows
    assert row["scores"].keys() == {"i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10"}

    def never(recipe: Recipe) -> None:
        raise AssertionError(recipe.train.out)

    resumable = ["train.checkpoint_every=1"]  # as a run may be resumed, it need not be done again
    (again,) = compare([recipe], tmp_path / "out", world["data"], resumable, train=never).rows
    assert again["training"] == row["training"]
    with pytest.raises(AssertionError, match="mmgem"):
        compare([recipe], tmp_path / "out", world["data"], ["train.epochs=2"], train=never)


def test_the_command_trains_in_a_process_of_its_own(
    world: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe_file(world, tmp_path / "recipes", "clipcap")
    command = ["compare", str(path), "--data", str(world["data"]), "--out", str(tmp_path / "out")]
    assert main([*command, "train.epochs=0.5"]) == 0, capfd.readouterr().err
    said = capfd.readouterr()
    assert "| clipcap |" in said.out and "training clipcap" in said.err
    done = json.loads((tmp_path / "out" / "clipcap" / "done.json").read_text())
    assert 0.05 < done["peak_memory_gb"] < 20 and done["seconds"] > 0
    # With other fields it is another run.
    assert main([*command, "train.epochs=0.5", "train.seed=1"]) == 1
    assert "train.seed: changed since" in capfd.readouterr().err


def test_what_cannot_be_compared(world: dict[str, Any], tmp_path: Path) -> None:
    one = recipe_file(world, tmp_path / "a", "mmgem")
    for change, said in (
        ({"train__seed": 1}, r"train\.seed: differs between mmgem and clip;"),
        ({"train__batch_size": 2}, r"train\.batch_size: differs"),
        ({"data__captions_per_image": 2}, "data: differs"),
    ):
        other = recipe_file(world, tmp_path / "a", "clip", **change)
        with pytest.raises(UsageError, match=said):
            load_recipes([one, other], tmp_path)
    with pytest.raises(UsageError, match="another recipe is called mmgem too"):
        load_recipes([one, recipe_file(world, tmp_path / "b", "mmgem")], tmp_path)
    wrong = recipe_file(world, tmp_path / "a", "flamingo", optim__lr_llm=1e-3)
    with pytest.raises(ConfigError, match=r"flamingo: optim\.lr_llm: frozen"):
        load_recipes([one, wrong], tmp_path)
    with pytest.raises(UsageError, match="no recipes"):
        load_recipes([], tmp_path)


def test_a_field_is_varied_and_seeds_are_averaged(world: dict[str, Any], tmp_path: Path) -> None:
    path = recipe_file(world, tmp_path / "recipes", "mmgem")
    vary = ["model.visual_tokens=1,4", "data.captions_per_image=1,2"]
    rows = load_recipes([path], tmp_path / "out", vary=vary)
    base = rows["mmgem"]["mmgem"]
    tokens, captions = base.model.visual_tokens, base.data.captions_per_image
    assert list(rows) == [
        "mmgem",
        *(f"mmgem visual_tokens={n}" for n in (1, 4) if n != tokens),
        *(f"mmgem captions_per_image={n}" for n in (1, 2) if n != captions),
    ]
    changed = rows["mmgem captions_per_image=2"]["mmgem captions_per_image=2"]
    assert changed.data.captions_per_image == 2
    assert changed.train.out == tmp_path / "out" / "mmgem-captions_per_image=2"

    result = compare(
        [path],
        tmp_path / "out",
        world["data"],
        vary=["data.captions_per_image=2"],
        seeds=[0, 1],
        train=train_here,
    )
    assert [row["name"] for row in result.rows] == ["mmgem", "mmgem captions_per_image=2"]
    assert "seeds 0, 1" in result.table and "photos and seeds" in result.table
    single = [
        json.loads((tmp_path / "out" / f"mmgem-seed={seed}" / "scores.json").read_text())["scores"]
        for seed in (0, 1)
    ]
    for figure, (mean, error) in result.rows[0]["scores"].items():
        (a, da), (b, db) = single[0][figure], single[1][figure]
        assert mean == pytest.approx((a + b) / 2)
        assert error == pytest.approx(((da**2 + db**2) / 2 + (a - b) ** 2 / 4) ** 0.5)
    assert result.rows[0]["seeds"] == 2


def test_values_of_a_variation() -> None:
    assert Variation.parse("a.b=1,[2, 3],x") == Variation("a.b", ("1", "[2, 3]", "x"))
    for wrong in ("a.b", "=1", "a=1,,2", "a="):
        with pytest.raises(UsageError, match="KEY=VALUE,VALUE"):
            Variation.parse(wrong)


def test_the_related_recipes_are_alike() -> None:
    loaded = {name: runs[name] for name, runs in load_recipes(RELATED, Path("out")).items()}
    assert len(loaded) == 12
    kinds = {recipe.model.kind for recipe in loaded.values()}
    assert kinds == set(NETWORKS)
    for name, recipe in loaded.items():
        assert recipe.optim.lr_heads == 1e-3 and recipe.optim.lr_encoder == 0, name
        assert recipe.train.evaluate_every == 0  # no step is chosen


def test_an_unfinished_run_is_none(world: dict[str, Any], tmp_path: Path) -> None:
    (runs,) = load_recipes([recipe_file(world, tmp_path / "a", "mmgem")], tmp_path / "out").values()
    (recipe,) = runs.values()
    assert finished(recipe) is None
    recipe.train.out.mkdir(parents=True)
    for text in ("", "{}", '{"recipe": {"x": 1}}'):
        (recipe.train.out / "done.json").write_text(text)
        assert finished(recipe) is None


def test_standard_errors() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / 20)
    # Five copies of each value say no more than one.
    assert standard_error(np.repeat(values, 5), np.repeat(np.arange(400), 5)) == pytest.approx(
        standard_error(values)
    )
    assert standard_error([3.0]) == 0.0
    mean = jackknife_error(lambda items: float(values[items].mean()), 400)
    assert mean == pytest.approx(standard_error(values), rel=0.5)
    assert jackknife_error(lambda items: float(values[items].mean()), 400, 400) == pytest.approx(
        standard_error(values)
    )
    assert jackknife_error(lambda items: 1.0, 1) == 0.0
    with pytest.raises(UsageError):
        standard_error([])
    with pytest.raises(UsageError):
        standard_error([1.0, 2.0], [1])


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("mmgem_plugin_")]:
            del sys.modules[name]
        NETWORKS._made.pop("siglip_decoder", None)
        os.environ.pop(VARIABLE, None)

    forget()
    yield
    forget()


def test_a_system_of_ones_own(
    world: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], forgotten: None
) -> None:
    """The example: SigLIP with a captioning decoder."""
    changes = {"model__kind": "siglip_decoder", "model__visual_grid": 2, "image_text__caption__weight": 1.0}
    path = recipe_file(world, tmp_path / "recipes", "siglip", **changes)
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 2
    assert "model.kind: no network is called 'siglip_decoder'" in capfd.readouterr().err
    assert main(["--plugin", str(EXAMPLE), *command]) == 0, capfd.readouterr().err
    (row,) = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    assert {"i2t R@1", "t2i R@10", "CIDEr"} <= row["scores"].keys()
    model = MMGEM.from_pretrained(tmp_path / "out" / "siglip" / "model")
    assert len(model.network.decoder.blocks) == 1 and not model.network.encoder.training
    photo = world["data"].parent / "images" / "1.png"
    assert model.caption([photo]) and model.embed_texts(["a dog"]).shape == (1, 8)
