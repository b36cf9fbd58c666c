"""Every system of the comparison goes through the whole house, as far as it says it can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spread
import torch
import toys
from forks import run_ranks
from related_toys import SYSTEMS
from safetensors.torch import load_file

from mmgem import MMGEM
from mmgem.checkpoints.rounded import stored_shapes
from mmgem.config import Recipe, to_dict
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.errors import ConfigError, UsageError
from mmgem.models.networks import network_class
from mmgem.plan import plan
from mmgem.search.search import PhotoIndex
from mmgem.train import loop
from mmgem.train.checks import check
from mmgem.train.loop import train

CACHED = [name for name in SYSTEMS if name != "blip"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("related")
    data = toys.photos(folder / "data", train=8, dev=3)
    return {"folder": folder, "data": data, "bases": toys.base_models(folder / "bases")}


def made(world: dict[str, Any], system: str, out: Path, **changes: Any) -> Recipe:
    options = {
        "model__dropout": 0.0,
        "data__cached_augmentations": 1,
        "train__out": str(out),
        "train__batch_size": 4,
        "train__epochs": 1,
        "train__checkpoint_every": 1,
    }
    system_changes = copy.deepcopy(SYSTEMS[system])
    return toys.recipe(
        world["folder"], world["data"], *world["bases"], **(options | system_changes | changes)
    )


def weights(out: Path) -> bytes:
    return (out / "checkpoints" / "step-00000002" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_a_system_trains_resumes_and_is_used(
    world: dict[str, Any], system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = made(world, system, tmp_path / "whole"), made(world, system, tmp_path / "parts")
    kind = network_class(whole.model)
    folder = train(whole)

    # Stopped after a step and gone on with, it is the same.
    plain = loop.train_step

    def stopped(run: Any, step: int, *more: Any) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return plain(run, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(parts)
    train(parts)
    assert weights(parts.train.out) == weights(whole.train.out)

    # Its plan knows what trains.
    trained = stored_shapes(whole.train.out / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert sum(plan(whole).trained.values()) == sum(int(np.prod(shape)) for shape in trained.values())

    # In chunks it learns the same, or is refused.
    chunked = made(world, system, tmp_path / "chunks", train__grad_cache_chunk_size=3)
    if system in CACHED:
        one, other = (spread.first_gradients(recipe, SINGLE_PROCESS)[0] for recipe in (whole, chunked))
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
        assert plan(chunked).pairs == 4
    else:
        with pytest.raises(ConfigError, match=r"grad_cache_chunk_size: the losses of blip are not"):
            check(chunked, SINGLE_PROCESS)

    # What it says it can do it does, from a folder and from a copy.
    model = MMGEM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    again = MMGEM.from_pretrained(tmp_path / "copy")
    model.save_pretrained(tmp_path / "small", small=True)
    assert type(MMGEM.from_pretrained(tmp_path / "small").network) is kind
    assert type(again.network) is kind
    photos = sorted((world["data"].parent / "images").iterdir())[:3]
    texts = ["a red dog", "the sky"]
    if kind.embeds:
        assert np.array_equal(model.embed_images(photos), again.embed_images(photos))
        assert np.array_equal(model.embed_texts(texts), again.embed_texts(texts))
        index = model.index(world["data"].parent / "images", tmp_path / "index")
        assert len(index.search_text(texts[0], k=3)) == 3
    else:
        for call in (lambda: model.embed_images(photos), lambda: model.embed_texts(texts)):
            with pytest.raises(UsageError, match="this model has no embeddings"):
                call()
    if kind.captions:
        captions = model.caption(photos, beams=2, max_tokens=5)
        assert len(captions) == 3 and captions == again.caption(photos, beams=2, max_tokens=5)
        assert np.isfinite(model.score(photos[:2], texts)).all()
    else:
        with pytest.raises(UsageError, match="this model writes no captions"):
            model.caption(photos)
    if kind.embeds and kind.captions:
        hits = model.rerank(index, texts[0], 2)
        assert len(hits) == 2
        _check_reranked(model, index, texts[0], [hit.path for hit in hits], hits)
    if not kind.regions:
        with pytest.raises(UsageError, match="this model has no regions"):
            model.find_regions(photos[:1], 2)


@torch.inference_mode()
def _check_reranked(model: MMGEM, index: PhotoIndex, text: str, paths: list[Path], hits: list[Any]) -> None:
    """Scores of photos that are read are those of each pair alone."""
    network = model.network
    if network.captions_from_embedding:
        return
    for hit in hits:
        assert hit.log_prob == pytest.approx(float(model.score([hit.path], [text])[0]), abs=1e-4)
        (visual,) = model._visual([hit.path], None)
        (ids,) = model.tokenizer.encode_all([text])
        if (logit := network.match_scores(visual, [ids])) is not None:
            cosine = float((model.embed_queries([text]) @ model.embed_images([hit.path]).T).item())
            assert hit.score == pytest.approx(cosine + float(logit[0]), abs=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(world: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    changes = {"train__batch_size": 6, "train__strategy": strategy}
    recipes = {name: made(world, name, tmp_path / name, **changes) for name in SYSTEMS}
    if strategy == "fsdp":
        recipes = {name: r for name, r in recipes.items() if network_class(r.model).plain_blocks}
    plain = {name: to_dict(recipe) for name, recipe in recipes.items()}
    run_ranks(tmp_path / "said", 2, spread.all_gradients, tmp_path, plain)
    for name in recipes.keys() & set(CACHED):  # BLIP's negatives are of one process's part
        alone, _ = spread.first_gradients(recipes[name], SINGLE_PROCESS)
        for parameter, gradient in load_file(str(tmp_path / f"{name}.safetensors")).items():
            expected = alone.get(parameter, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3, msg=f"{name} {parameter}")


@pytest.mark.parametrize(
    ("system", "changes", "said"),
    [
        ("clip", {"image_text__caption__weight": 1.0}, "image_text.caption.weight: .* writes no captions"),
        ("flamingo", {"image_text__contrastive__weight": 1.0}, "contrastive.weight: .* has no embeddings"),
        ("flamingo", {"optim__lr_llm": 1e-3}, r"optim\.lr_llm: frozen in a network of kind 'flamingo'"),
        ("coca", {"train__compile": True}, r"train\.compile: a network of kind 'coca' has layers of its own"),
        ("coca", {"train__checkpoint_activations": True}, r"train\.checkpoint_activations: a network of"),
        ("blip", {"optim__lora_rank": 2}, r"optim\.lora_rank: a network of kind 'blip'"),
        (
            "grit",
            {"data__region_share": 0.5, "data__boxes_per_image": 1},
            "data.region_share: a network of kind 'grit' has no regions",
        ),
        ("coca", {"train__strategy": "fsdp"}, r"train\.strategy: a network of kind 'coca' has layers"),
        ("grit", {"self_retrieval__passages": "p"}, "self_retrieval: a network of kind 'grit' cannot learn"),
        ("mmgem", {"fromage__say_ret__weight": 1.0}, 'fromage.say_ret: needs model.kind = "fromage"'),
        ("mmgem", {"blip__matching__weight": 1.0}, 'blip.matching: needs model.kind = "blip"'),
    ],
)
def test_what_cannot_train_is_refused(
    world: dict[str, Any], system: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        check(made(world, system, tmp_path / "run", **changes), World(size=2))
