"""Plans against what then happens: parameters, operations, memory at its peak; advice that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from mmgem.cli.main import main
from mmgem.cli.plan import _duration
from mmgem.config import Recipe, to_dict
from mmgem.config.recipe import changed, load_recipe
from mmgem.data.word_tokens import WordTokens
from mmgem.errors import ConfigError, UsageError
from mmgem.plan import Hardware, known_hardware, plan
from mmgem.tasks.image_text.lengths import CaptionStats, read_caption_stats
from mmgem.train.loop import prepare, train_step
from mmgem.utils.flops import FlopCount

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
GPU = Hardware("toy", 1.0, 1.0, 0.5, 10.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Photos whose captions are all of one length, half of them with two boxes, and a corpus."""
    folder = tmp_path_factory.mktemp("world")
    passages, queries = toys.corpus(folder / "corpus", 12, 4)
    data = toys.photos(folder / "data", dev=0)
    rng = np.random.default_rng(0)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["captions"] = [toys.sentence(rng, 5) for _ in range(3)]
        row["captions_de"] = [toys.sentence(rng, 7)]
        boxes = ([2.0, 1.0, 20.0, 30.0], [9.0, 4.0, 40.0, 30.0])
        row["regions"] = [{"box": box, "captions": [toys.sentence(rng, 4)]} for box in boxes]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {
        "folder": folder,
        "data": data,
        "corpus": {
            "self_retrieval__passages": str(passages),
            "self_retrieval__queries": [str(queries)],
            "self_retrieval__dev": "",
        },
        "bases": toys.base_models(folder / "bases"),
        "efficient": toys.base_models(folder / "bases", "tied llama", "efficientnet_lite0"),
    }


def made(world: dict[str, Any], encoder: str = "bases", **changes: Any) -> Recipe:
    options = {
        "data__dev_split": "",
        "data__cached_augmentations": 1,
        "train__device": "cpu",
        "optim__lr_embeddings": 1e-3,
    }
    return toys.recipe(world["folder"], world["data"], *world[encoder], **(options | changes))


BOXES = {"data__region_share": 0.5, "data__boxes_per_image": 2}
CASES: dict[str, dict[str, Any]] = {
    "joint": {},
    "pixels": {"data__cached": False, "optim__lr_encoder": 1e-3, "optim__ema_decay": 0.9},
    "upper": {"encoder": "efficient", "optim__lr_encoder": 1e-3},
    "regions": {**BOXES, "image_text__contrastive__mask_false_negatives": True},
    "contrastive": {"image_text__caption__weight": 0.0, "data__captions_per_image": 2},
    "captions": {"image_text__contrastive__weight": 0.0, "image_text__caption__sampled_softmax": 8},
    "lora": {"optim__lora_rank": 2, "optim__lr_embeddings": 0.0},
    "bfloat16": {"train__precision": "bfloat16"},
    "checkpointed": {"train__checkpoint_activations": True, "data__cached": False, "optim__lr_encoder": 1e-3},
    "languages": {"data__translation_prob": 1.0, "data__captions_per_image": 2},
    "chunks": {"train__grad_cache_chunk_size": 2, **BOXES},
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_operations_are_those_of_a_step(world: dict[str, Any], case: str) -> None:
    recipe = made(world, **CASES[case])
    before = to_dict(recipe)
    told = plan(recipe)
    assert to_dict(recipe) == before
    run = prepare(recipe)
    with FlopCount() as counted:
        _, pairs = train_step(run, 0)
    parameters = list(run.network.parameters())
    adapters = sum(p.numel() for n, p in run.network.named_parameters() if "lora_" in n)
    assert told.parameters["total"] == sum(p.numel() for p in parameters) - adapters
    assert sum(told.trained.values()) == sum(p.numel() for p in parameters if p.requires_grad)
    assert told.pairs == pairs
    assert 1e12 * sum(told.operations.values()) == pytest.approx(counted.total, rel=1e-9)
    assert told.steps == run.total
    assert not told.assumed


def test_a_corpus_is_the_mean_of_its_steps(world: dict[str, Any]) -> None:
    recipe = made(
        world,
        **world["corpus"],
        self_retrieval__batch_size=16,
        data__train=None,
        model__encoder={"kind": "none"},
    )
    recipe.preprocessing.size = 224
    told = plan(recipe)
    run = prepare(recipe)
    found = []
    for step in range(run.tasks[0].batches.per_epoch):
        with FlopCount() as counted:
            train_step(run, step)
        found.append(counted.total)
    assert 1e12 * sum(told.operations.values()) == pytest.approx(np.mean(found), rel=0.05)
    assert told.steps == run.total


def test_memory_by_kind(world: dict[str, Any]) -> None:
    """Kinds whose size is known without a plan; the whole is measured by benchmarks/plan.py."""
    recipe = made(world, data__cached=False, optim__lr_encoder=1e-3, optim__ema_decay=0.9)
    told = plan(recipe)
    size = 4e-9 * told.parameters["total"]
    assert told.memory["weights"] == pytest.approx(size, rel=0.05)  # and buffers
    assert told.memory["optimizer"] == pytest.approx(2 * size)
    assert told.memory["average"] == pytest.approx(size)
    assert told.memory["checkpoint"] == pytest.approx(4 * size)
    assert told.memory["batch"] >= 8 * 3 * 32 * 32 * 4e-9
    more = plan(changed(recipe, ["train.batch_size=16"]))
    for kind in ("encoder", "llm"):
        assert more.memory[kind] > 1.5 * told.memory[kind]
    assert (
        plan(changed(recipe, ["train.checkpoint_activations=true"])).memory["encoder"]
        < told.memory["encoder"]
    )
    assert (
        plan(changed(recipe, ["train.grad_cache_chunk_size=2"])).memory["encoder"]
        < 0.5 * told.memory["encoder"]
    )


def test_several_devices(world: dict[str, Any]) -> None:
    recipe = made(world, data__cached=False, optim__lr_encoder=1e-3)
    alone, four = (plan(recipe, Hardware("toy", 1, 1, 1, 10, n)) for n in (1, 4))
    shards = plan(changed(recipe, ["train.strategy=fsdp"]), Hardware("toy", 1, 1, 1, 10, 4))
    size = 4e-9 * four.parameters["total"]
    assert (alone.pairs, four.pairs, shards.pairs) == (8, 8, 8)
    assert alone.communication == 0
    assert four.communication == pytest.approx(0.75 * 2 * size)
    assert shards.communication == pytest.approx(0.75 * 3 * size)
    assert four.memory["gradients"] == pytest.approx(size)
    assert shards.memory["optimizer"] == pytest.approx(four.memory["optimizer"] / 4)
    assert sum(four.operations.values()) < sum(alone.operations.values()) / 4  # and shorter rows


@pytest.mark.parametrize("case", [{"data__captions_per_image": 2}, {**BOXES, "train__batch_size": 14}])
def test_an_uneven_batch_is_planned_as_it_trains(world: dict[str, Any], case: dict[str, Any]) -> None:
    """Ranks share a batch, some with one more than others; together they have no more than one rank alone."""
    recipe = made(world, **case)
    alone, three = plan(recipe), plan(recipe, Hardware("toy", 1, 1, 1, 10, 3), pairs=1000)
    assert (three.pairs, three.images) == (alone.pairs, alone.images)
    assert three.steps == -(-1000 // alone.pairs)


def test_times_and_costs(world: dict[str, Any]) -> None:
    recipe = made(world)
    told = plan(recipe, Hardware("toy", 1, 1, 0.5, 10, price=3.0), pairs=8_000)
    at = told.bounds
    assert at is not None
    assert told.steps == 1000
    assert at.arithmetic == pytest.approx(sum(told.operations.values()) / 0.5)
    assert max(at.arithmetic, at.traffic) <= at.operators <= at.arithmetic + at.traffic
    assert at.step == at.operators  # features are cached
    assert told.days == pytest.approx(1000 * at.step / 86400)
    assert told.cost == pytest.approx(told.days * 24 * 3)
    halved = plan(changed(recipe, ["train.precision=bfloat16"]), Hardware("toy", 1, 1, 0.5, 10))
    assert halved.bounds.arithmetic < 0.7 * at.arithmetic
    assert plan(made(world, data__cached=False), GPU).bounds.data > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned_at_its_full_size(path: Path) -> None:
    """Without data, weights or memory; a small batch keeps it short."""
    sizes = {
        "xquad": "self_retrieval.batch_size=4",
        "adopt": "text_distillation.batch_size=4",
        "world_more": "train.batch_size=8",  # of which a tenth is boxes
    }
    small = [sizes.get(path.stem, "train.batch_size=4")]
    start = []
    if path.stem in ("tiny_regions", "adopt_pairs"):
        start = ["init.checkpoint=tiny"]
    told = plan(load_recipe(path, [*start, *small]))
    expected = {
        "adopt": 224_286_210,
        "adopt_pairs": 56_469_130,
        "audio": 222_574_530,
        "finetune": 56_469_130,
        "paper": 1_408_479_234,
        "laptop": 229_271_490,
        "tiny": 56_469_130,
        "tiny_regions": 56_469_130,
        "world": 56_469_130,
        "world_more": 56_469_130,
        "xquad": 134_811_586,
    }
    assert told.parameters["total"] == expected[path.stem]
    assert sum(told.operations.values()) > 0


def test_advice_makes_it_fit(world: dict[str, Any]) -> None:
    recipe = made(
        world, data__cached=False, optim__lr_encoder=1e-3, optim__ema_decay=0.9, train__batch_size=16
    )
    whole = plan(recipe, Hardware("toy", 1.0, 1e-3, 1e-3, 10))  # too slow to wait for photos
    assert whole.fits
    assert whole.advice == []
    less = Hardware("toy", 0.3 * whole.total_memory / 0.9, 1e-3, 1e-3, 10)
    told = plan(recipe, less)
    assert not told.fits
    assert [a.fits for a in told.advice] == [False] * (len(told.advice) - 1) + [True]
    sizes = [told.total_memory, *(a.memory_gb for a in told.advice)]
    assert sizes == sorted(sizes, reverse=True)
    after = plan(changed(recipe, [s for a in told.advice for s in a.change.split()]), less)
    assert after.fits
    assert after.total_memory == pytest.approx(told.advice[-1].memory_gb)


def test_advice_for_devices_that_wait_for_photos(world: dict[str, Any]) -> None:
    fast = Hardware("toy", 1.0, 1e3, 1e3, 1e5)
    frozen = plan(made(world, data__cached=False), fast)
    assert frozen.bounds.data > frozen.bounds.operators
    assert [a.change for a in frozen.advice] == ["data.cached=true"]
    assert frozen.advice[0].seconds < frozen.bounds.step / frozen.pairs
    loose = made(world, data__cached=False, optim__lr_encoder=1e-3)
    told = plan(loose, fast)
    assert [a.change for a in told.advice] == ["data.train='shards/train*.tar' data.workers=16"]
    assert f"mmgem data pack {world['data']} --out shards" in told.advice[0].cost
    shards = changed(loose, told.advice[0].change.split())
    assert plan(shards, fast).advice == []  # no device is worth more cores
    at = plan(changed(shards, ["data.workers=1"]), fast).bounds
    slower = Hardware("toy", 1.0, 1e3, 1e3, 1e5 * at.operators / at.data * 1.5)
    (advice,) = plan(changed(shards, ["data.workers=1"]), slower).advice
    assert advice.change == "data.workers=2"
    assert plan(changed(loose, ["image_text.caption.sampled_softmax=4"]), fast).advice == []  # not of shards


def test_captions_are_read_or_assumed(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = made(world, data__mosaics=6, data__region_share=0.5)
    told = read_caption_stats(recipe.data, toys.tokenizer())
    assert (told.images, told.boxed, told.each, told.assumed) == (24, 30, 3, "")
    assert set(told.tokens) == {5}
    assert set(told.region_tokens) == {4, 5}
    assert sorted(set(told.regions)) == [2, 3, 4]
    assert set(read_caption_stats(recipe.data, None).tokens) == {6}  # 1.3 tokens a word
    assert read_caption_stats(recipe.data, None, tokens=9).tokens == [9]
    recipe.data.train = tmp_path / "none.jsonl"
    absent = read_caption_stats(recipe.data, WordTokens())  # type: ignore[arg-type]
    assert (absent.images, absent.tokens) == (None, CaptionStats().tokens)
    assert "none.jsonl is not here" in absent.assumed
    recipe.data.train = tmp_path / "train-*.tar"
    assert "train-*.tar is not here" in read_caption_stats(recipe.data, None).assumed


def test_known_hardware() -> None:
    assert known_hardware("RTX 4090", 2).count == 2
    h100 = known_hardware("h100")
    assert h100.rate(torch.bfloat16) == 989.4e12
    assert h100.rate(torch.float32) == 494.7e12
    with pytest.raises(UsageError, match="no hardware 'abacus' is known; there are a100, h100"):
        known_hardware("abacus")
    with pytest.raises(UsageError, match="hardware: memory is 0"):
        Hardware("toy", 0, 1, 1, 1)
    with pytest.raises(UsageError, match="hardware: price is nan"):
        known_hardware("l4", price=float("nan"))


def test_what_would_not_train_is_not_planned(world: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr_encoder: a cached encoder trains only above"):
        plan(made(world, optim__lr_encoder=1e-3))
    with pytest.raises(ConfigError, match=r"train\.batch_size: 2 images a step, fewer than the 4 processes"):
        plan(made(world, train__batch_size=2), known_hardware("l4", 4))
    with pytest.raises(ConfigError, match=r"init\.llm: .*nowhere.*; or describe model\.llm\.config"):
        plan(made(world, init__llm=str(world["folder"] / "nowhere")))


def test_the_command(world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm, encoder = world["bases"]
    path = tmp_path / "r.toml"
    path.write_text(
        f"[data]\ntrain = '{world['data']}'\nsplit = ''\ndev_split = ''\n"
        f"[init]\nllm = '{llm}'\nencoder = '{encoder}'\n"
        "[preprocessing]\nsize = 32\n[model]\ndim = 8\n[model.encoder]\nkind = 'transformers'\n"
        "[train]\nout = 'out'\nbatch_size = 8\n"
    )
    figures = ["--memory", "1", "--flops", "1", "--bandwidth", "10"]
    assert main(["plan", str(path), "--json", "--price", "2", *figures]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {
        *("parameters", "trained", "pairs", "images", "memory_gb", "tflop", "communication_gb", "hardware"),
        *("fits", "seconds", "steps", "days", "cost", "assumed", "advice"),
    }
    assert told["fits"] is True
    assert told["steps"] == 3
    assert told["seconds"].keys() == {"arithmetic", "traffic", "operators", "data", "step"}
    assert told["memory_gb"]["total"] == pytest.approx(sum(told["memory_gb"].values()) / 2)
    assert main(["plan", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["hardware"] is told["seconds"] is told["fits"] is told["days"] is None
    assert main(["plan", str(path), *figures[2:], "--memory", "0.00001"]) == 0
    out = capsys.readouterr().out
    assert "too large" in out
    assert "no change is enough: devices of" in out
    for bad, said in (
        (["--hardware", "abacus"], "no hardware 'abacus' is known; there are a100, "),
        (["--hardware", "l4", "--memory", "3"], "--hardware excludes --memory"),
        (["--memory", "3"], "--memory, --flops and --bandwidth go together"),
        (["--count", "2"], "--count and --price: of what?"),
        (["--hardware", "l4", "--count", "0"], "'--count': Input should be greater than or equal to 1"),
        (["--hardware", "l4", "--price=-1"], "'--price': -1 is not a number above 0"),
        (["--memory", "0"], "'--memory': 0 is not a number above 0"),
        (["--flops", "nan"], "'--flops': nan is not a number above 0"),
        (["--bandwidth=-2.5"], "'--bandwidth': -2.5 is not a number above 0"),
        (["--pairs", "0"], "'--pairs': Input should be greater than or equal to 1"),
        (["--tokens", "-3"], "'--tokens': Input should be greater than or equal to 1"),
        (["train.bach=3"], "train.bach: unknown field"),
    ):
        assert main(["plan", str(path), *bad]) == 2, bad
        error = capsys.readouterr().err
        assert error.startswith("mmgem: error: "), bad
        assert said in error, bad
        assert error.count("\n") == 1, bad


def test_durations_are_in_a_unit_that_can_be_read() -> None:
    told = [_duration(days) for days in (6.01e-07, 0.001, 0.2, 3.14159, 400)]
    assert told == ["0.0519 s", "1.44 min", "4.8 h", "3.14 days", "400 days"]
