"""``mmgem adopt``: what is learned from texts alone, and what the model that comes of it can do by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adopt_toys
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from tiny import save_photos

from mmgem import MMGEM
from mmgem.checkpoints.model_folder import save_model
from mmgem.checkpoints.tensors import load_tensors
from mmgem.cli.main import main
from mmgem.config import to_dict
from mmgem.config.compare import difference
from mmgem.config.recipe import load_recipe
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.errors import ConfigError
from mmgem.models.connectors.unit_mlp import UnitMLPConnector
from mmgem.plan import plan
from mmgem.tasks.text_distillation.task import TextDistillationTask
from mmgem.train.adopt import adoption_recipe
from mmgem.train.checks import check
from mmgem.train.loop import prepare, train, train_step

ROOT = Path(__file__).parents[1]
STEPS = 12


@dataclass
class Adopted:
    """An adoption that is done: its command line, its run, and what the checkpoint, which is not there any
    more, made of photos."""

    command: list[str]
    run: Path
    photos: list[Path]
    images: np.ndarray
    scale: float

    @property
    def model(self) -> Path:
        return self.run / "model"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    adopt_toys.checkpoint(folder / "clip", "clip")
    return {
        "lm": toys.base_models(folder / "llm")[0],
        "clip": folder / "clip",
        "texts": adopt_toys.texts(folder / "texts"),
        "folder": folder,
    }


@pytest.fixture(scope="module")
def adopted(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Adopted:
    folder = tmp_path_factory.mktemp("adopted")
    source = folder / "source"
    model = adopt_toys.checkpoint(source, "siglip")
    photos = save_photos(folder / "photos", 4)
    command = ["adopt", str(source), "--llm", str(bases["lm"]), "--texts", str(bases["texts"])]
    command += ["--out", str(folder / "run"), "--steps", str(STEPS), "text_distillation.batch_size=16"]
    command += ["optim.lr_llm=3e-3", "optim.lr_heads=1e-2", "optim.warmup_steps=1", "optim.ema_decay=0"]
    command += ["train.log_every=1", "train.checkpoint_every=4", "text_distillation.sampled_softmax=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGEM_CACHE", str(folder / "cache"))
        assert main(command) == 0
    pixels = [_pixels(photo) for photo in photos]
    with torch.no_grad():
        told = model.get_image_features(torch.cat(pixels)).pooler_output
    for gone in (source, folder / "cache"):
        shutil.rmtree(gone)
    images = F.normalize(told, dim=-1).numpy()
    return Adopted(command, folder / "run", photos, images, float(model.logit_scale))


def _pixels(photo: Path) -> torch.Tensor:
    """As a processor of transformers makes them."""
    from PIL import Image

    image = Image.open(photo).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    scaled = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    return (scaled - mean) / std


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_every_loss_falls(adopted: Adopted) -> None:
    lines = [line for line in _log(adopted.run) if "text_cosine_loss" in line]
    assert len(lines) == STEPS
    for name in ("text_cosine_loss", "text_relational_loss", "text_caption_loss"):
        values = [line[name] for line in lines]
        assert np.mean(values[-3:]) < np.mean(values[:3]), name
    assert lines[-1]["text_cosine"] > lines[0]["text_cosine"]
    (scores,) = [line for line in _log(adopted.run) if "text_R@1" in line]
    assert {"text_cosine", "text_R@1", "CIDEr", "score"} <= scores.keys()


def test_images_are_the_checkpoints_own_without_it(adopted: Adopted) -> None:
    model = MMGEM.from_pretrained(adopted.model)
    np.testing.assert_allclose(model.embed_images(adopted.photos), adopted.images, atol=1e-5)
    assert model.network.logit_scale.item() == pytest.approx(adopted.scale, abs=1e-6)
    assert adopted.scale > 4.6052  # beyond the floor of temperatures that are trained
    names = load_tensors(adopted.model / "model.safetensors")
    assert not any("text_model" in name or "token_embedding" in name for name in names)


def test_it_embeds_captions_and_finds_regions(adopted: Adopted, tmp_path: Path) -> None:
    model = MMGEM.from_pretrained(adopted.model)
    texts = model.embed_texts(["the dog runs", "two cat"])
    captions = model.caption(adopted.photos[:2], beams=2, max_tokens=6)
    assert texts.shape == (2, 16) and len(captions) == 2 and all(captions)
    box = (4.0, 4.0, 30.0, 30.0)
    boxed = model.embed_images(adopted.photos[:1], [box])
    assert np.abs(boxed - model.embed_images(adopted.photos[:1])).max() > 1e-3
    assert all(model.caption(adopted.photos[:1], [box], beams=1, max_tokens=6))
    ((boxes, vectors),) = model.find_regions(adopted.photos[:1], 3)
    assert len(boxes) == len(vectors) == 3
    assert model.heatmap(adopted.photos[0], ["the dog"], 8).shape == (1, 8, 8)
    model.save_pretrained(tmp_path / "again")
    again = MMGEM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again.embed_images(adopted.photos), model.embed_images(adopted.photos))
    np.testing.assert_array_equal(again.embed_texts(["the dog runs", "two cat"]), texts)


def test_photos_are_indexed_searched_and_the_model_made_small(
    adopted: Adopted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "idx")
    photos = str(adopted.photos[0].parent)
    assert main(["index", photos, "--out", index, "-m", str(adopted.model), "--regions", "2"]) == 0
    capfd.readouterr()
    assert main(["search", index, "the dog", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["hits"]) == 4
    assert main(["check", str(adopted.model)]) == 0
    assert main(["export", str(adopted.model), str(tmp_path / "small")]) == 0
    small = MMGEM.from_pretrained(tmp_path / "small").embed_images(adopted.photos)
    assert (small * adopted.images).sum(1).min() > 0.999


def test_graphs_read_whole_images_and_boxes(adopted: Adopted, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert main(["export", str(adopted.model), str(tmp_path / "graphs"), "--format", "onnx"]) == 0
    model = MMGEM.from_pretrained(adopted.model)
    graphs = MMGEM.from_pretrained(tmp_path / "graphs", backend="onnx")
    box = [(4.0, 4.0, 30.0, 30.0)] * 4
    np.testing.assert_allclose(graphs.embed_images(adopted.photos), adopted.images, atol=1e-4)
    boxed = model.embed_images(adopted.photos, box)
    np.testing.assert_allclose(graphs.embed_images(adopted.photos, box), boxed, atol=1e-4)


def test_a_run_that_was_stopped_goes_on(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"train__steps": 5, "train__checkpoint_every": 3}
    memory = {"kind": "unit_mlp", "config": {"memory": 20}}
    recipe = adopt_toys.recipe(
        tmp_path, bases["clip"], bases["lm"], bases["texts"], model__connector=memory, **options
    )
    whole = load_tensors(train(recipe) / "model.safetensors")
    assert whole["visual_connector.memory"].norm(dim=1).allclose(torch.ones(20))
    shutil.rmtree(recipe.train.out / "model")
    shutil.rmtree(recipe.train.out / "checkpoints" / "step-00000005")
    resumed = load_tensors(train(recipe) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_losses_are_those_of_the_formulas(bases: dict[str, Path], tmp_path: Path) -> None:
    run = prepare(adopt_toys.recipe(tmp_path, bases["clip"], bases["lm"], bases["texts"]))
    (task,) = run.tasks
    assert isinstance(task, TextDistillationTask)
    batch = task.load_batch(0, torch.device("cpu"))
    network = run.network.eval()
    with torch.no_grad():
        terms = task.forward(network, batch, SINGLE_PROCESS)
        own = F.normalize(network.encode_text(batch.texts), dim=-1)
        prefixes = network.visual_connector(batch.noisy[:, None])
        output = network.forward_packed(network.caption_segments(batch.texts, prefixes))
        logits = network.llm.logits(output.prediction_states)
    assert terms["text_cosine_loss"].item() == pytest.approx(
        (1 - (own * batch.teacher).sum(1)).mean().item(), abs=1e-5
    )
    rows = [(own @ own.T / 0.05), (batch.teacher @ batch.teacher.T / 0.05)]
    ours, theirs = (row.fill_diagonal_(-1e4).softmax(1) for row in rows)
    relational = -(theirs * ours.clamp(min=1e-30).log()).sum(1).mean()
    assert terms["text_relational_loss"].item() == pytest.approx(relational.item(), abs=1e-4)
    targets = torch.cat([part for ids in batch.texts for part in (ids, torch.tensor([0]))])
    assert terms["text_caption_loss"].item() == pytest.approx(
        F.cross_entropy(logits, targets).item(), abs=1e-4
    )
    gap = (batch.noisy - batch.teacher).std().item()
    assert gap == pytest.approx(task.config.noise, rel=0.3)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("encoder.", "visual_projection.", "logit_")) for n in trained)
    assert {"emb_token", "cap_token", "text_projection.1.weight", "visual_connector.up.weight"} <= trained


def test_held_out_texts_are_not_learned(bases: dict[str, Path], tmp_path: Path) -> None:
    run = prepare(adopt_toys.recipe(tmp_path, bases["clip"], bases["lm"], bases["texts"]))
    (task,) = run.tasks
    learned = len(task.pool.ids) - task.held_out
    assert task.held_out == len(task.pool.ids) // 10 > 0
    said = [tuple(ids.tolist()) for step in range(3) for ids in task.batches[step].texts]
    assert len(set(said)) == len(said) == 48 <= learned
    assert not set(said) & {tuple(ids.tolist()) for ids in task.pool.ids[: task.held_out]}


def test_a_memory_stands_for_what_is_seen() -> None:
    torch.manual_seed(0)
    connector = UnitMLPConnector(8, 6, 2, memory=5, temperature=0.1)
    memory, visual = F.normalize(torch.randn(5, 8), dim=-1), 7 * torch.randn(3, 1, 8)
    connector.remember(memory)
    weights = (F.normalize(visual, dim=-1) @ memory.T / 0.1).softmax(-1)
    torch.testing.assert_close(connector(visual), connector.from_text(weights @ memory))
    assert connector(visual).shape == (3, 2, 6)
    plain = UnitMLPConnector(8, 6, 2)
    torch.testing.assert_close(plain(visual), plain(3 * visual))
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    before = connector(visual)
    connector.rotate_input(rotation)
    torch.testing.assert_close(connector(visual @ rotation), before, atol=1e-5, rtol=1e-4)
    for config, told in (({"memory": -1}, "memory: -1"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(ConfigError, match=told):
            UnitMLPConnector(8, 6, 2, **config)


def test_pairs_are_learned_after_it_and_images_stay(adopted: Adopted, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    data = toys.photos(tmp_path / "data", train=8, dev=4)
    overrides = [f"data.train={data}", f"init.checkpoint={adopted.model}", "train.batch_size=4"]
    overrides += [f"train.out={tmp_path / 'run'}", f"data.cache={tmp_path / 'features'}", "optim.lora_rank=2"]
    overrides += ["optim.warmup_steps=0", "optim.ema_decay=0"]
    recipe = load_recipe(ROOT / "recipes" / "adopt_pairs.toml", overrides)
    model = MMGEM.from_pretrained(train(recipe))
    before = MMGEM.from_pretrained(adopted.model)
    np.testing.assert_allclose(model.embed_images(adopted.photos), adopted.images, atol=1e-5)
    assert model.temperature == before.temperature
    assert np.abs(model.embed_texts(["the dog"]) - before.embed_texts(["the dog"])).max() > 1e-4


def test_a_model_of_ours_is_adopted(bases: dict[str, Path], tmp_path: Path) -> None:
    two = toys.network("gpt2", kind="dual_encoder", logit_scale=30.0)
    save_model(tmp_path / "two", two, toys.tokenizer(), "")
    source, photos = MMGEM.from_pretrained(tmp_path / "two"), save_photos(tmp_path / "photos", 3)
    overrides = ["text_distillation.batch_size=16", "optim.lr_llm=3e-3", "optim.lr_heads=1e-2"]
    overrides += ["optim.warmup_steps=1", "optim.ema_decay=0", "preprocessing.lowercase=false"]
    asked = str(tmp_path / "two"), str(bases["lm"]), [bases["texts"]], tmp_path / "run", STEPS
    recipe = adoption_recipe(*asked, overrides)
    planned = plan(recipe)
    model = MMGEM.from_pretrained(train(recipe))
    assert planned.parameters["total"] == sum(p.numel() for p in model.network.parameters())
    np.testing.assert_allclose(model.embed_images(photos), source.embed_images(photos), atol=1e-6)
    assert model.temperature == pytest.approx(source.temperature) and model.caption(photos[:1])
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    cosines = [step["text_cosine"] for step in steps if "text_cosine" in step]
    assert cosines[-1] > cosines[0]
    for wrong, told in (
        (["model.dim=16"], r"model\.dim: 16, but init\.encoder has 8"),
        (["model.encoder.kind=siglip"], r"model\.encoder"),
    ):
        with pytest.raises(ConfigError, match=told):
            prepare(adoption_recipe(*asked, [*overrides, *wrong]))


def test_the_verb_is_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "adopt.toml")
    init, texts = recipe.init, recipe.data.texts
    made = adoption_recipe(init.encoder, init.llm, texts, recipe.train.out)
    plain = [to_dict(r) for r in (made, recipe)]
    described = ("model.encoder.config", "model.llm.config")
    assert all(name.startswith(described) for name in difference(*plain))
    changed = adoption_recipe("a", "b", [Path("c.txt")], tmp_path, 7, ["init.layers=2"])
    assert (changed.train.steps, changed.init.layers, changed.data.texts) == (7, 2, [Path("c.txt")])


def test_it_is_planned(bases: dict[str, Path], tmp_path: Path) -> None:
    recipe = adopt_toys.recipe(tmp_path, bases["clip"], bases["lm"], bases["texts"])
    told = plan(recipe)
    run = prepare(recipe)
    assert told.parameters["total"] == sum(p.numel() for p in run.network.parameters())
    assert sum(told.trained.values()) == sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    assert (told.pairs, told.images, told.steps) == (16, 0, 4)
    assert train_step(run, 0)[1] == 16
    recipe.data.texts = [tmp_path / "none.txt"]
    assert "none.txt is not here" in plan(recipe).assumed[0]


def test_what_it_needs(bases: dict[str, Path], tmp_path: Path) -> None:
    args = tmp_path, bases["clip"], bases["lm"], bases["texts"]
    for changes, told in (
        ({"data__texts": []}, r"data\.texts: missing"),
        ({"data__texts": ["none.txt"]}, r"data\.texts: none\.txt: No such file"),
        ({"text_distillation__teacher": str(bases["folder"] / "bert")}, "its embeddings have 24 numbers"),
        ({"init": {"checkpoint": "tiny"}}, r"text_distillation\.teacher: needed with init\.checkpoint"),
        ({"model__connector__config": {"memory": 1000}}, r"memory: 1000, but there are \d+ texts"),
        ({"model__kind": "clipcap"}, "has no embeddings"),
        (
            {f"text_distillation__{name}_weight": 0.0 for name in ("cosine", "relational", "caption")},
            "every loss has the weight 0",
        ),
    ):
        toys.text_teacher(bases["folder"] / "bert", width=24)
        with pytest.raises(ConfigError, match=told):
            prepare(adopt_toys.recipe(*args, **changes))
    with pytest.raises(ConfigError, match=r"grad_cache_chunk_size: the losses of text_distillation"):
        check(adopt_toys.recipe(*args, train__grad_cache_chunk_size=4), SINGLE_PROCESS)
    toys_recipe = toys.recipe(tmp_path, tmp_path / "d", *toys.base_models(tmp_path / "b"), data__train=None)
    toys_recipe.data.texts = [bases["texts"]]
    with pytest.raises(
        ConfigError, match=r"data\.texts: counts for images, and for tasks that learn from texts"
    ):
        check(toys_recipe, SINGLE_PROCESS)
