"""Training from a recipe to a model folder, on toy models and flat-coloured pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from mmgem.api import MMGEM
from mmgem.checkpoints.initialize import init_network
from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.tensors import dequantize, load_tensors, quantize
from mmgem.config import Recipe
from mmgem.data.features import FeatureCache
from mmgem.errors import CheckpointError, ConfigError, DataError, ImageError
from mmgem.tasks.image_text.items import embed_items
from mmgem.train.engine import set_precision
from mmgem.train.loop import evaluate_tasks, prepare, train, train_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.base_models(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def make(tmp_path: Path, data: Path, bases: tuple[Path, Path]) -> Any:
    def recipe(**changes: Any) -> Recipe:
        return toys.recipe(tmp_path, data, *bases, **changes)

    return recipe


def lines(recipe: Recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.train.out / "log.jsonl").read_text().splitlines()]


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}


def coloured(folder: Path) -> Path:
    """Noisy pictures of four colours, captioned with them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        name, colour = list(COLOURS.items())[i % 4]
        path = folder / f"{i}.png"
        noise = rng.integers(0, 30, (32, 32, 3))
        Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)
        captions = [f"a {name} {thing}" for thing in ("ball", "boat", "house")]
        rows.append({"image": str(path), "captions": captions, "split": "dev" if i >= 32 else "train"})
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "colours.jsonl"


def test_a_run_learns_and_leaves_a_model(make: Any, tmp_path: Path) -> None:
    data = coloured(tmp_path / "colours")
    rates = {
        "optim__lr_llm": 1e-2,
        "optim__lr_heads": 2e-2,
        "optim__lr_embeddings": 1e-2,
        "optim__ema_decay": 0.9,
    }
    recipe = make(
        data__train=str(data),
        data__cached_augmentations=2,
        train__epochs=20,
        train__evaluate_every=30,
        **rates,
    )
    folder = train(recipe)
    assert folder == recipe.train.out / "model"
    steps = [line for line in lines(recipe) if "caption_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 81))
    for name in ("caption_loss", "contrastive_loss"):
        assert np.mean([s[name] for s in steps[-5:]]) < 0.8 * np.mean([s[name] for s in steps[:5]])
    assert steps[-1]["lr_factor"] < 0.01
    scores = [line for line in lines(recipe) if "score" in line]
    assert [line["step"] for line in scores] == [30, 60, 80]
    assert {"i2t", "t2i", "BLEU@4", "CIDEr"} <= scores[0].keys()

    model = MMGEM.from_pretrained(folder)
    dev = [json.loads(line) for line in data.read_text().splitlines()[32:]]
    photos = [row["image"] for row in dev]
    texts = model.embed_texts([f"a {name} ball" for name in COLOURS])
    assert (model.embed_images(photos) @ texts.T).argmax(1).tolist() == [0, 1, 2, 3] * 2
    for caption, row in zip(model.caption(photos), dev, strict=True):
        assert caption.lower().rstrip(".") in row["captions"]
    card = (folder / "README.md").read_text()
    best = max(scores, key=lambda s: s["score"])
    assert f"step: {best['step']}\n" in card
    assert str(data) in card


def test_the_best_step_is_kept(make: Any) -> None:
    recipe = make(train__epochs=4, train__evaluate_every=2, optim__lr_heads=0.5)
    folder = train(recipe)
    scores = {line["step"]: line["score"] for line in lines(recipe) if "score" in line}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    best = max(scores, key=lambda step: scores[step])
    assert f"step: {best}\n" in (folder / "README.md").read_text()


@pytest.mark.parametrize("objective", ["contrastive", "captioning"])
def test_one_objective_alone(objective: str, make: Any) -> None:
    recipe = make(**toys.ONLY[objective], train__epochs=1, train__evaluate_every=3)
    folder = train(recipe)
    log = lines(recipe)
    assert ("contrastive_loss" in log[0]) == (objective == "contrastive")
    assert ("caption_loss" in log[0]) == (objective == "captioning")
    assert ("i2t" in log[-1]) == (objective == "contrastive")
    assert ("CIDEr" in log[-1]) == (objective == "captioning")
    load_model(folder)


def test_without_a_dev_split(make: Any) -> None:
    recipe = make(data__dev_split="", train__epochs=1)
    model, _ = load_model(train(recipe))
    assert not any("score" in line for line in lines(recipe))
    final = load_tensors(recipe.train.out / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert torch.equal(model.visual_connector.weight, final["visual_connector.weight"])


def test_training_leaves_the_process_as_it_was(make: Any) -> None:
    train(make(train__epochs=1, data__dev_split=""))
    assert float(torch.tensor([1e-40]) * 1.0) > 0


def test_dev_images_from_another_file(make: Any, tmp_path: Path) -> None:
    other = toys.photos(tmp_path / "other", train=0, dev=5, seed=3)
    recipe = make(data__dev=str(other), train__epochs=1)
    assert len(prepare(recipe).tasks[0].dev[0]) == 5
    run = prepare(make(train__evaluate_images=3))
    assert len(run.tasks[0].dev[0]) == 3


def test_data_that_cannot_train_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.split: .*no split 'tr'.*dev, train"):
        prepare(make(data__split="tr"))
    with pytest.raises(ConfigError, match=r"data\.dev_split: .*no split 'val'.*\"\" for none"):
        prepare(make(data__dev_split="val"))
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"image": "a.png", "split": "train"}\n')
    with pytest.raises(DataError, match=r"bare\.jsonl: no captions"):
        prepare(make(data__train=str(bare)))


def test_all_splits_together(make: Any) -> None:
    run = prepare(make(data__split="", data__dev_split=""))
    assert len(run.tasks[0].batches.usable) == 32


def test_a_loss_that_is_not_finite_stops_the_run(make: Any) -> None:
    recipe = make(train__epochs=1)
    run = prepare(recipe)
    with torch.no_grad():
        run.network.visual_projection[1].weight.fill_(torch.nan)
    with pytest.raises(DataError, match="step 0: the loss is nan; lower the learning rates"):
        train_step(run, 0)


def test_temperature_stays_in_its_bounds(make: Any) -> None:
    run = prepare(make(optim__max_logit_scale_log=2.7, optim__lr_heads=0.1, data__dev_split=""))
    for step in range(12):
        train_step(run, step)
        assert run.network.logit_scale.item() <= 2.7
    # It is not stuck at its bound: the gradient still reaches it there.
    with torch.no_grad():
        run.network.logit_scale.fill_(2.7)
    train_step(run, 0)
    assert float(run.network.logit_scale.grad) != 0


def test_frozen_groups_do_not_move(make: Any) -> None:
    recipe = make(optim__lr_llm=0.0, data__dev_split="", train__epochs=1)
    before, _ = init_network(recipe)
    after, _ = load_model(train(recipe))
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    moved = {n for n in new if not torch.equal(old[n], new[n])}
    assert moved
    assert not any(n.startswith(("llm.", "encoder.")) for n in moved)


def test_the_upper_part_of_the_default_encoder_trains(tmp_path: Path, data: Path) -> None:
    bases = toys.base_models(tmp_path / "bases", encoder="efficientnet_lite0")
    recipe = toys.recipe(tmp_path, data, *bases, optim__lr_encoder=1e-3, data__dev_split="", train__epochs=1)
    before, _ = init_network(recipe)
    after, _ = load_model(train(recipe))
    old, new = before.encoder.net.state_dict(), after.encoder.net.state_dict()
    changed = {n for n in new if not torch.equal(old[n], new[n])}
    assert {n.split(".")[0] for n in changed} == {"blocks", "head"}
    assert min(int(n.split(".")[1]) for n in changed if n.startswith("blocks")) == 11
    with pytest.raises(ConfigError, match=r"optim\.lr_encoder: a cached encoder trains only above"):
        changed_recipe = dataclasses.replace(recipe.model.encoder, freeze_until=None)
        prepare(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, encoder=changed_recipe)))


def test_a_cached_transformers_encoder_cannot_train(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr_encoder"):
        prepare(make(optim__lr_encoder=1e-3))
    run = prepare(make(optim__lr_encoder=1e-3, data__cached=False, data__dev_split=""))
    before = run.network.encoder.net.encoder.layers[0].mlp.fc1.weight.detach().clone()
    train_step(run, 0)
    assert not torch.equal(before, run.network.encoder.net.encoder.layers[0].mlp.fc1.weight)


def test_pixels_and_cached_features_give_the_same_steps(make: Any) -> None:
    cached = prepare(make(data__dev_split="", model__dropout=0.0))
    pixels = prepare(make(data__dev_split="", model__dropout=0.0, data__cached=False))
    assert isinstance(cached.tasks[0].batches.source, FeatureCache)
    for step in range(3):
        one, two = train_step(cached, step)[0], train_step(pixels, step)[0]
        for name in ("contrastive_loss", "caption_loss"):
            assert one[name] == pytest.approx(two[name], rel=5e-3)


def test_bad_images_are_reported_and_skipped(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = toys.photos(tmp_path / "broken")
    (data.parent / "images" / "3.png").write_bytes(b"")
    (data.parent / "images" / "7.png").unlink()
    for cached in (True, False):
        run = prepare(make(data__train=str(data), data__cached=cached, train__batch_size=100))
        assert run.tasks[0].batches.size == 22
        assert "2 of 24 images skipped" in caplog.text
        assert "3.png" in caplog.text
        caplog.clear()
    (data.parent / "images" / "20.png").write_bytes((data.parent / "images" / "20.png").read_bytes()[:-2000])
    with pytest.raises(ImageError, match=r"20\.png"):
        train_step(run, 0)


def test_lora_is_merged_on_export(make: Any) -> None:
    recipe = make(optim__lora_rank=2, optim__lr_llm=1e-2, data__dev_split="", train__epochs=2)
    run = prepare(recipe)
    for step in range(run.total):
        train_step(run, step)
    model, _ = load_model(train(recipe))
    texts = toys.sequences([4, 6])
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(texts), run.network.eval().encode_text(texts), atol=1e-5, rtol=1e-5
        )
        assert not torch.allclose(
            model.encode_text(texts), init_network(recipe)[0].eval().encode_text(texts), atol=1e-3
        )


def test_soft_targets_need_and_use_a_teacher(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"image_text\.contrastive\.teacher"):
        prepare(make(image_text__contrastive__distill_weight=0.3))
    with pytest.raises(CheckpointError, match=r"image_text\.contrastive\.teacher"):
        prepare(
            make(
                image_text__contrastive__distill_weight=0.3,
                image_text__contrastive__teacher=str(tmp_path / "none"),
            )
        )
    toys.text_teacher(tmp_path / "teacher")
    recipe = make(
        image_text__contrastive__distill_weight=0.3,
        image_text__contrastive__teacher=str(tmp_path / "teacher"),
    )
    run = prepare(recipe)
    rows = run.tasks[0].batches.teacher
    assert rows.shape == (24 * 3, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(prepare(recipe).tasks[0].batches.teacher, rows)  # the second time from disk
    soft = train_step(run, 0)[0]["contrastive_loss"]
    assert soft != train_step(prepare(make()), 0)[0]["contrastive_loss"]


def test_weights_come_from_the_base_models(make: Any, bases: tuple[Path, Path]) -> None:
    network, tokenizer = init_network(make())
    source = toys.network()
    for name in ("encoder.net", "llm.lm"):
        ours, theirs = network.get_submodule(name).state_dict(), source.get_submodule(name).state_dict()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert tokenizer.prep.size == 32
    again, _ = init_network(make())
    assert torch.equal(again.visual_projection[1].weight, network.visual_projection[1].weight)
    other, _ = init_network(make(train__seed=5))
    assert not torch.equal(other.visual_projection[1].weight, network.visual_projection[1].weight)


def test_a_encoder_inside_a_two_encoder_checkpoint(make: Any, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    vision = {k: v for k, v in toys.ENCODERS["clip"].config.items() if k != "model_type"}
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(vision_config=vision, text_config=text | {"num_attention_heads": 2}, projection_dim=8)
    ).eval()
    clip.save_pretrained(tmp_path / "clip")
    network, _ = init_network(make(init__encoder=str(tmp_path / "clip")))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].unflatten(1, (4, 4))
        assert torch.equal(network.eval().encoder(pixels), expected)


def test_base_weights_that_are_not_whole_are_refused(
    make: Any, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for section, folder in zip(("init__llm", "init__encoder"), bases, strict=True):
        copy = Path(shutil.copytree(folder, tmp_path / section))
        tensors = load_file(str(copy / "model.safetensors"))
        name = next(n for n in tensors if "layers.1" in n)
        del tensors[name]
        save_file(tensors, str(copy / "model.safetensors"), metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"{section.replace('__', '.')}.*1 tensors are missing"):
            init_network(make(**{section: str(copy)}))
        (copy / "config.json").unlink()
        with pytest.raises(CheckpointError, match=section.replace("__", r"\.")):
            init_network(make(**{section: str(copy)}))


def test_fewer_layers_and_rounded_tokens(tmp_path: Path, data: Path, bases: tuple[Path, Path]) -> None:
    recipe = toys.recipe(tmp_path, data, *bases, init__layers=1)
    assert len(init_network(recipe)[0].llm.blocks) == 1
    last, _ = init_network(toys.recipe(tmp_path, data, *bases, init__keep_layers=[1]))
    assert torch.equal(last.llm.blocks[0].mlp.up_proj.weight, toys.network().llm.blocks[1].mlp.up_proj.weight)
    for change in ({"init__layers": 3}, {"init__keep_layers": [1, 0]}, {"init__layers": 0}):
        with pytest.raises(ConfigError, match="init"):
            init_network(toys.recipe(tmp_path, data, *bases, **change))
    toys.LLMS["wide"] = toys.LLMS["llama"] | {"hidden_size": 32}
    try:
        wide = toys.base_models(tmp_path / "wide", "wide")
    finally:
        del toys.LLMS["wide"]
    network, _ = init_network(toys.recipe(tmp_path, data, *wide, init__quantize_embeddings=True))
    table = network.llm.lm.get_input_embeddings().weight
    assert torch.equal(dequantize(quantize(table, 4), 4), table)


def test_settings_the_weights_contradict_are_refused(make: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.llm\.config\.hidden_size: 32, but the base weights have 16"
    ):
        init_network(make(model__llm={"config": {"hidden_size": 32}}))
    encoder = {"kind": "transformers", "config": {"patch_size": 4}}
    with pytest.raises(ConfigError, match=r"model\.encoder\.config\.patch_size: 4"):
        init_network(make(model__encoder=encoder))
    with pytest.raises(ConfigError, match=r"preprocessing\.size: 64, but the encoder reads 32"):
        init_network(make(preprocessing__size=64))
    encoder = {"kind": "transformers", "config": {"size": 64}}
    network, _ = init_network(make(model__encoder=encoder, preprocessing__size=64))
    assert network.encoder.size == 64
    with pytest.raises(ConfigError, match=r"init\.encoder: .*weights of efficientnet_lite0"):
        init_network(make(model__encoder={"kind": "efficientnet_lite0"}))


def test_a_second_stage_starts_from_a_checkpoint(make: Any, tmp_path: Path) -> None:
    first = train(make(train__epochs=1, preprocessing__mean=[0.5, 0.5, 0.4]))
    changes: dict[str, Any] = {"init": {"checkpoint": str(first)}, "preprocessing": {}, "model": {}}
    for dropout in (0.0, 0.3):
        changes["model"] = {"dropout": dropout}
        recipe = make(train__out=str(tmp_path / f"second{dropout}"), train__epochs=1)
        recipe = dataclasses.replace(
            recipe, **{k: toys.from_dict(type(getattr(recipe, k)), v) for k, v in changes.items()}
        )
        network, tokenizer = init_network(recipe)
        old, _ = load_model(first)
        assert torch.equal(network.visual_projection[1].weight, old.visual_projection[1].weight)
        assert network.config.dropout == dropout
        assert tokenizer.prep.mean == (0.5, 0.5, 0.4)
        _, kept = load_model(train(recipe))
        assert kept.prep == tokenizer.prep


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("model", "dim", 9), ("preprocessing", "size", 64), ("model", "attention", "bidirectional")],
)
def test_a_checkpoint_keeps_its_own_settings(
    section: str, field: str, value: Any, make: Any, tiny_model_folder: Path
) -> None:
    recipe = make()
    plain = toys.recipe(recipe.train.out.parent, recipe.data.train, Path("a"), Path("b"))
    for name in ("model", "preprocessing"):
        setattr(plain, name, type(getattr(plain, name))())
    plain.init = type(plain.init)(checkpoint=tiny_model_folder)
    plain.model.encoder.freeze_until = 11
    init_network(plain)
    setattr(getattr(plain, section), field, value)
    with pytest.raises(ConfigError, match=rf"{section}\.{field}: differs from init\.checkpoint"):
        init_network(plain)


def test_boxes_of_mosaics_and_whole_images_train_together(make: Any, tmp_path: Path) -> None:
    options = {"data__mosaics": 10, "data__region_share": 0.5, "data__boxes_per_image": 2}
    recipe = make(**options, image_text__contrastive__mask_false_negatives=True, train__epochs=1)
    run = prepare(recipe)
    batch = run.tasks[0].batches[0]
    assert len(batch.texts) == 8
    assert batch.boxes is not None
    assert batch.box_features is not None
    assert (len(batch.features), len(batch.box_features)) == (4, len(batch.boxes))
    values, pairs = train_step(run, 0)
    assert pairs == 8
    assert np.isfinite(list(values.values())).all()
    (mosaics,) = (tmp_path / "mosaics").iterdir()
    made = mosaics.stat().st_mtime_ns
    prepare(recipe)  # canvases are made once
    assert [p.stat().st_mtime_ns for p in (tmp_path / "mosaics").iterdir()] == [made]


def test_bfloat16_is_the_same_step_less_exactly(make: Any) -> None:
    values = {}
    for precision in ("float32", "bfloat16"):
        run = prepare(make(train__precision=precision, train__epochs=1))
        values[precision], _ = train_step(run, 0)
        assert {p.dtype for p in run.network.parameters()} == {torch.float32}
        seen = evaluate_tasks(run)
        again = prepare(make(train__epochs=1))
        again.network.load_state_dict(run.network.state_dict())
        assert evaluate_tasks(again) == seen  # what is measured is float32 in any case
    one, two = values["float32"], values["bfloat16"]
    for name in ("contrastive_loss", "caption_loss"):
        assert two[name] == pytest.approx(one[name], rel=0.02)
    assert one != two


@pytest.mark.parametrize("encoder", ["clip", "efficientnet_lite0"])
def test_the_encoder_trains_in_bfloat16_on_a_gpu(encoder: str) -> None:
    network = toys.network(encoder=encoder).train()
    made = toys.batch(network)
    made.pixels = torch.rand(4, 3, network.encoder.size, network.encoder.size)
    seen: list[torch.dtype] = []
    product = next(m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    product.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    maps = {}
    for device in ("cpu", "cuda"):
        set_precision(network, "bfloat16", device)
        assert network.llm.training_dtype == torch.bfloat16
        maps[device] = embed_items(network, made)
    embed_items(network.eval(), made)  # when it is used, it computes in float32 in any case
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
    assert maps["cuda"].dtype == torch.float32
    assert not torch.equal(maps["cuda"], maps["cpu"])
    torch.testing.assert_close(maps["cuda"], maps["cpu"], rtol=0.05, atol=0.05)


def test_boxes_train_on_larger_maps(make: Any) -> None:
    options = {"data__mosaics": 6, "data__region_share": 0.5, "data__region_size": 64}
    for cached in (True, False):
        rate = {} if cached else {"optim__lr_encoder": 1e-3}
        run = prepare(make(**options, **rate, data__cached=cached, train__epochs=1))
        values, _ = train_step(run, 0)
        assert np.isfinite(list(values.values())).all()
        batch = run.tasks[0].batches[0]
        one, two = (batch.features, batch.box_features) if cached else (batch.pixels, batch.box_pixels)
        assert one is not None
        assert two is not None
        assert two.shape[2] == 2 * one.shape[2]


def test_a_data_set_of_boxes_alone_trains(make: Any, tmp_path: Path, data: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["image"] = str(data.parent / row["image"])
        if row["split"] == "train":
            row["regions"] = [{"box": [4, 4, 30, 30], "captions": row.pop("captions")}]
    path = tmp_path / "regions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make(data__train=str(path), data__region_share=1.0, train__epochs=1)
    assert MMGEM.from_pretrained(train(recipe)).dim == 8
    with pytest.raises(DataError, match="no captions in split 'train'"):
        train(make(data__train=str(path)))
    with pytest.raises(ConfigError, match=r"data\.mosaics: counts only if data\.region_share"):
        train(make(data__mosaics=4))
    with pytest.raises(DataError, match=r"has no region with a caption"):
        train(make(data__region_share=0.5))
