"""Checkpoints of two towers: their embeddings, logits and preprocessing are those of their own libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import adopt_toys
import numpy as np
import open_clip_towers
import pytest
import torch
import torch.nn.functional as F
import toys
from PIL import Image
from safetensors.torch import load_file

from mmgem.checkpoints.initialize import init_network
from mmgem.data.transforms import normalise, place_box, to_square
from mmgem.encoders import EncoderConfig, encoder_class
from mmgem.encoders.dual_checkpoint import load_dual
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import pool_boxes
from mmgem.models.text_tower import text_tower

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["the dog runs", "a big red ball on the beach", "two cat", "snow"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.base_models(tmp_path_factory.mktemp("lm"))[0]


def adopted(folder: Path, source: Path, lm: Path, **changes: Any) -> MMGEMNetwork:
    network, _ = init_network(adopt_toys.recipe(folder, source, lm, folder / "none.txt", **changes))
    return network.eval()


@pytest.mark.parametrize("family", adopt_toys.FAMILIES)
@torch.no_grad()
def test_embeddings_and_logits_are_those_of_transformers(family: str, tmp_path: Path, lm: Path) -> None:
    model = adopt_toys.checkpoint(tmp_path / "made", family)
    network = adopted(tmp_path, tmp_path / "made", lm)
    hf = adopt_toys.tower_tokenizer(family == "clip")
    ids = hf(TEXTS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    told = model(input_ids=ids, pixel_values=PIXELS)
    images = F.normalize(network.image_embeddings(network.encode_image(network.encoder(PIXELS))), dim=-1)
    texts = torch.from_numpy(text_tower(tmp_path / "made", batch=3)(TEXTS))
    assert network.config.dim == adopt_toys.DIM[family]
    torch.testing.assert_close(images, told.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, told.text_embeds, atol=1e-5, rtol=0)
    logits = network.logit_scale.exp() * images @ texts.T + network.logit_bias
    torch.testing.assert_close(logits, told.logits_per_image, atol=2e-5, rtol=1e-5)
    assert (images[0] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", open_clip_towers.VARIANTS)
@torch.no_grad()
def test_embeddings_and_logits_are_those_of_open_clip(variant: str, tmp_path: Path, lm: Path) -> None:
    folder = open_clip_towers.RECORDED / variant
    told = load_file(folder / "recorded.safetensors")
    network = adopted(tmp_path, folder, lm)
    visual = network.encode_image(network.encoder(told["pixels"]))
    torch.testing.assert_close(visual[:, 0], told["images"], atol=1e-5, rtol=1e-5)
    texts = load_dual(folder).embed_texts(told["ids"])
    torch.testing.assert_close(texts, told["texts"], atol=1e-5, rtol=1e-5)
    cosines = F.normalize(visual[:, 0], dim=-1) @ F.normalize(texts, dim=-1).T
    logits = network.logit_scale.exp() * cosines + network.logit_bias
    torch.testing.assert_close(logits, told["logits"], atol=2e-5, rtol=1e-5)


def test_open_clips_texts_are_read_by_the_tokenizer_of_the_folder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(open_clip_towers.RECORDED / "gelu", tmp_path / "made"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    hf = adopt_toys.tower_tokenizer(True)
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        text_tower(folder)
    hf.save_pretrained(folder)
    rows = text_tower(folder)(TEXTS)
    ids = hf(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        told = F.normalize(load_dual(folder).embed_texts(ids), dim=-1)
    assert rows.shape == (4, config["model_cfg"]["embed_dim"])
    np.testing.assert_allclose(rows, told.numpy(), atol=1e-6)
    hf.add_tokens([f"word{n}" for n in range(64)])
    hf.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="ids beyond the model's table of 64 rows"):
        text_tower(folder)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@torch.no_grad()
def test_a_text_beyond_the_context_is_the_mean_of_its_sentences(family: str, tmp_path: Path) -> None:
    adopt_toys.checkpoint(tmp_path, family)
    encode = text_tower(tmp_path)
    sentences = ["the dog runs on the grass near the house.", "a cat sits in the tree of the house."]
    whole = encode([" ".join(sentences), sentences[0]])
    mean = encode(sentences).sum(0)
    np.testing.assert_allclose(whole[0], mean / np.linalg.norm(mean), atol=1e-6)
    long = " ".join(["dog"] * 12 + ["cat"] * 12)  # no sentence ends in it
    halves = encode([" ".join(["dog"] * 6), " ".join(["cat"] * 6)]).sum(0)
    np.testing.assert_allclose(encode([long])[0], halves / np.linalg.norm(halves), atol=1e-5)


def _layers(tower: Any, states: torch.Tensor, value: bool) -> torch.Tensor:
    """The blocks of a vision tower written out; ``value``: the last by its value path."""
    for n, block in enumerate(tower.encoder.layers):
        x = block.layer_norm1(states)
        attention = block.self_attn
        q, k, v = (getattr(attention, f"{name}_proj")(x) for name in "qkv")
        if value and n == len(tower.encoder.layers) - 1:
            seen = v
        else:
            split = [y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (q, k, v)]
            weights = (split[0] @ split[1].transpose(2, 3) / split[0].shape[-1] ** 0.5).softmax(-1)
            seen = (weights @ split[2]).transpose(1, 2).flatten(2)
        states = states + attention.out_proj(seen)
        states = states + block.mlp(block.layer_norm2(states))
    return tower.post_layernorm(states)


@pytest.mark.parametrize("patch_map", ["last", "value"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@torch.no_grad()
def test_a_box_is_pooled_from_the_map_of_patches(
    family: str, patch_map: str, tmp_path: Path, lm: Path
) -> None:
    model = adopt_toys.checkpoint(tmp_path / "made", family)
    network = adopted(tmp_path, tmp_path / "made", lm, model__encoder__config={"patch_map": patch_map})
    tower = model.vision_model
    states = tower.embeddings(PIXELS)
    if family == "clip":
        patches = _layers(tower, tower.pre_layrnorm(states), patch_map == "value")[:, 1:]
        patches = model.visual_projection(patches)
    else:
        states = _layers(tower, states, patch_map == "value")
        head = tower.head
        alone = [head(states[:, n : n + 1]) for n in range(states.shape[1])]  # sets of one
        patches = torch.stack(alone, 1)
    boxes = torch.tensor([[[0.0, 0, 16, 8], [3, 5, 30, 31]]]).expand(3, 2, 4)
    expected = pool_boxes(patches.unflatten(1, (4, 4)), boxes, (32, 32))[:, :, 0]
    maps = network.encoder(PIXELS)
    torch.testing.assert_close(network.encode_image(maps, boxes)[:, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_map_is_a_choice(tmp_path: Path, lm: Path) -> None:
    for family, usual in (("clip", True), ("siglip", False)):
        adopt_toys.checkpoint(tmp_path / family, family)
        network = adopted(tmp_path, tmp_path / family, lm)
        assert network.encoder.reads_values is usual
        with pytest.raises(ConfigError, match=r"patch_map: 'first' is not one of last, value"):
            adopted(tmp_path, tmp_path / family, lm, model__encoder__config={"patch_map": "first"})


@torch.no_grad()
def test_maps_of_other_sides_hold_the_whole_image_too(tmp_path: Path, lm: Path) -> None:
    model = adopt_toys.checkpoint(tmp_path / "made", "clip")
    network = adopted(tmp_path, tmp_path / "made", lm)
    for side in (8, 16, 48):
        pixels = torch.randn(2, 3, side, side)
        told = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        visual = network.encode_image(network.encoder(pixels))
        torch.testing.assert_close(visual[:, 0], told, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(57, 40), (40, 57), (33, 32), (32, 32), (301, 100)])
def test_pictures_are_scaled_and_cut_as_clip_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    prep = toys.prep(32, resize="shortest", interpolation="bicubic")
    long = int(32 * max(size) / min(size))
    scaled = image.resize((long, 32) if size[0] > size[1] else (32, long), Image.Resampling.BICUBIC)
    left, top = (scaled.width - 32) // 2, (scaled.height - 32) // 2
    expected = np.asarray(scaled.crop((left, top, left + 32, top + 32)))
    np.testing.assert_array_equal(to_square(image, prep), expected)
    (x0, y0, x1, y1), seen = place_box((0, 0, *size), size, prep)
    assert (x1 - x0, y1 - y0) == pytest.approx(scaled.size) and 0 < seen <= 1
    assert (-x0, -y0) == pytest.approx((left, top))


@pytest.mark.parametrize("family", adopt_toys.FAMILIES)
def test_pixels_are_those_of_the_checkpoints_processor(family: str, tmp_path: Path, lm: Path) -> None:
    adopt_toys.checkpoint(tmp_path / "made", family)
    _, tokenizer = init_network(adopt_toys.recipe(tmp_path, tmp_path / "made", lm, tmp_path / "none.txt"))
    prep = tokenizer.prep
    assert (prep.size, prep.mean, prep.std) == (32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert prep.resize == ("shortest" if family == "clip" else "squash")
    assert prep.interpolation == ("bilinear" if family == "siglip2" else "bicubic")
    grey = normalise(np.full((1, 32, 32, 3), 51, np.uint8), prep)[0, :, 0, 0]
    torch.testing.assert_close(grey, torch.tensor([-1.5, -2 / 3, -0.25]))


def test_what_a_recipe_says_otherwise_is_refused(tmp_path: Path, lm: Path) -> None:
    adopt_toys.checkpoint(tmp_path / "made", "clip")
    for changes, told in (
        ({"model__dim": 64}, r"model\.dim: 64, but init\.encoder has 8"),
        ({"preprocessing__size": 64}, r"preprocessing\.size: 64, but init\.encoder has 32"),
        ({"preprocessing__resize": "crop"}, r"preprocessing\.resize: 'crop'"),
        ({"model__logit_scale": 50.0}, r"model\.logit_scale: init\.encoder brings its own"),
        ({"model__projection": "mlp"}, r"model\.projection: an encoder that is aligned"),
        ({"model__encoder__config": {"patch_size": 4}}, r"patch_size: 4, but the base weights have 8"),
        ({"model__encoder__freeze_until": 3}, "has no stages to cut at"),
    ):
        with pytest.raises(ConfigError, match=told):
            adopted(tmp_path, tmp_path / "made", lm, **changes)


def _vision(folder: Path, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"] |= changes
    path.write_text(json.dumps(config))


def test_what_cannot_be_adopted_is_refused_in_a_line(tmp_path: Path, lm: Path) -> None:
    import transformers

    adopt_toys.checkpoint(tmp_path / "clip", "clip")
    plain = json.loads((tmp_path / "clip" / "config.json").read_text())
    cases: list[tuple[str, str]] = []
    for name, config in (("naflex", {"model_type": "siglip2"}), ("blip", {"model_type": "blip"})):
        shutil.copytree(tmp_path / "clip", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(plain | config))
    cases += [("naflex", r"siglip2 reads images of any shape \(NaFlex\)"), ("blip", "is no CLIP or SigLIP")]
    toys.base_models(tmp_path / "vit", encoder="vit")
    cases.append(("vit/vit-0", "vit is no CLIP or SigLIP"))
    for name, changes in (
        ("timm", {"timm_model_name": "vit_base_patch16_siglip_224"}),
        ("resnet", {"layers": [3, 4, 6, 3]}),
        ("pooled", {"attentional_pool": True}),
        ("average", {"pool_type": "avg"}),
    ):
        shutil.copytree(open_clip_towers.RECORDED / "gelu", tmp_path / name)
        _vision(tmp_path / name, **changes)
        cases.append((name, rf"vision_cfg\.{next(iter(changes))}: a tower with .* cannot be adopted"))
    shutil.copytree(open_clip_towers.RECORDED / "gelu", tmp_path / "wide")
    _vision(tmp_path / "wide", width=32)
    cases.append(("wide", "tensors do not fit the model"))
    shutil.copytree(tmp_path / "clip", tmp_path / "unprepared")
    (tmp_path / "unprepared" / "preprocessor_config.json").unlink()
    cases.append(("unprepared", r"preprocessor_config\.json: missing"))
    headless = adopt_toys.checkpoint(tmp_path / "headless", "siglip").config
    headless.vision_config.vision_use_head = False
    transformers.SiglipModel(headless).save_pretrained(tmp_path / "headless")
    cases += [("headless", "no pooling head"), ("nothing", "no such folder|not on the hub")]
    for name, told in cases:
        with pytest.raises((CheckpointError, ConfigError), match=told) as error:
            adopted(tmp_path, tmp_path / name, lm)
        assert "\n" not in str(error.value), name


def test_the_encoder_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"model_type: 'vit' is none of clip_vision_model"):
        encoder_class(EncoderConfig("clip")).build(EncoderConfig("clip", config={"model_type": "vit"}))
