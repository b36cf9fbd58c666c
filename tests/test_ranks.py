"""Several processes equal one, chunks equal the whole batch, and a run survives the loss of a rank."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adopt_toys
import numpy as np
import pytest
import spread
import torch
import torch.distributed.run
import toys
from forks import Forked, all_end_well, run_ranks
from safetensors.torch import load_file

from mmgem.config import Recipe, to_dict
from mmgem.data.records import read_jsonl
from mmgem.data.shards import pack
from mmgem.distributed.rendezvous import agree_on_prefix
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.tasks.image_text.grad_cache import chunks
from mmgem.tasks.image_text.items import embed_items
from mmgem.train import loop
from mmgem.train.state import saved_steps

WORKER = Path(spread.__file__)


def regions(path: Path) -> Path:
    """The same data with one to three described boxes on every other picture."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows[::2]):
        boxes = [[2.0 + k, 1.0, 20.0 + 5 * k, 30.0] for k in range(i % 3 + 1)]
        row["regions"] = [{"box": box, "captions": row["captions"][: 1 + k]} for k, box in enumerate(boxes)]
    out = path.with_name("regions.jsonl")
    out.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    data = toys.photos(folder / "data")
    passages, queries = toys.corpus(folder / "corpus", 12, 4)
    pack(read_jsonl(data), folder / "shards", per_shard=5)
    texts = folder / "texts.txt"
    rng = np.random.default_rng(3)
    texts.write_text("".join(f"{toys.sentence(rng)}\n" for _ in range(20)))
    learned = {
        "image_text__label_distillation": {
            "weight": 1.0,
            "labels": str(toys.labels(folder / "labels")),
            "classes_per_step": 5,
            "kinds_per_step": 2,
        },
        "image_text__text_only": {
            "weight": 0.5,
            "batch_size": 5,
            "teacher": str(toys.text_teacher(folder / "teacher")),
        },
        "data__texts": [str(texts)],
    }
    adopt_toys.checkpoint(folder / "tower", "clip")
    return {
        "folder": folder,
        "tower": folder / "tower",
        "learned": learned,
        "clips": str(toys.photos_and_clips(folder / "clips")),
        "shards": folder / "shards",
        "data": data,
        "regions": regions(data),
        "corpus": {"passages": str(passages), "queries": [str(queries)], "dev": ""},
        "bases": toys.base_models(folder / "bases"),
        "dropping": toys.base_models(folder / "bases", "gpt2"),
        "efficient": toys.base_models(folder / "bases", "tied llama", "efficientnet_lite0"),
    }


def made(world: dict[str, Any], encoder: str = "bases", **changes: Any) -> Recipe:
    options = {"model__dropout": 0.0, "train__batch_size": 7, "data__dev_split": "", "train__threads": 1}
    return toys.recipe(world["folder"], world["data"], *world[encoder], **(options | changes))


def cases(world: dict[str, Any]) -> dict[str, Recipe]:
    """Batches of uneven lengths and counts: 7 items over 2 ranks."""
    boxes = {
        "data__train": str(world["regions"]),
        "data__region_share": 0.5,
        "image_text__contrastive__mask_false_negatives": True,
    }
    boxes["data__boxes_per_image"] = 2
    corpus = {f"self_retrieval__{k}": v for k, v in world["corpus"].items()} | {
        "self_retrieval__batch_size": 30
    }
    return {
        "contrastive": made(world, image_text__caption__weight=0.0, data__captions_per_image=2),
        "sigmoid": made(world, image_text__caption__weight=0.0, image_text__contrastive__loss="sigmoid"),
        "captions": made(world, image_text__contrastive__weight=0.0),
        "joint": made(world, "efficient", optim__lr_embeddings=1e-3, optim__lr_encoder=1e-3),
        "smoothed": made(world, image_text__caption__label_smoothing=0.1, data__joined_caption_prob=0.5),
        "regions": made(world, **boxes),
        "pixels": made(world, data__cached=False, optim__lr_encoder=1e-3, **boxes),
        "lora": made(world, optim__lora_rank=2),
        "corpus": made(world, "efficient", **corpus, optim__lr_embeddings=1e-3),
        # No queries: nothing is asked of what is read, and the last pass has no loss.
        "named": made(world, "efficient", **(corpus | {"self_retrieval__queries": []})),
        "clips": made(world, data__train=world["clips"]),
        "chunks": made(world, train__grad_cache_chunk_size=2, **boxes),
        "streamed": made(
            world, data__train=str(world["shards"]), data__cached=False, data__workers=1, data__split=""
        ),
        "checkpointed": made(world, train__checkpoint_activations=True),
        "distilled": made(world, "efficient", optim__lr_encoder=1e-3, **world["learned"]),
        "adopted": adopt_toys.recipe(
            world["folder"],
            world["tower"],
            world["bases"][0],
            world["learned"]["data__texts"][0],
            text_distillation__batch_size=7,
        ),
        "distilled in chunks": made(world, "efficient", **world["learned"], train__grad_cache_chunk_size=2),
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(world: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    recipes = cases(world)
    plain = {}
    for name, recipe in recipes.items():
        recipe.train.strategy = strategy  # type: ignore[assignment]
        plain[name] = to_dict(recipe)
    run_ranks(tmp_path / "said", 2, spread.all_gradients, tmp_path, plain)
    for name, recipe in recipes.items():
        alone, values = spread.first_gradients(recipe, SINGLE_PROCESS)
        theirs = load_file(str(tmp_path / f"{name}.safetensors"))
        told = json.loads((tmp_path / f"{name}.json").read_text())
        assert told == pytest.approx(values, rel=1e-5, abs=1e-5), name
        assert theirs.keys() >= alone.keys(), name
        for parameter, gradient in theirs.items():
            expected = alone.get(parameter, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=f"{name} {parameter}")


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("objective", ["joint", "contrastive", "captioning"])
def test_chunks_equal_the_whole_batch(world: dict[str, Any], objective: str, chunk: int) -> None:
    options = {
        "data__train": str(world["regions"]),
        "data__region_share": 0.4,
        "data__captions_per_image": 2,
        "image_text__contrastive__mask_false_negatives": True,
        **toys.ONLY[objective],
    }
    whole, values = spread.first_gradients(made(world, **options), SINGLE_PROCESS)
    parts, told = spread.first_gradients(
        made(world, **options, train__grad_cache_chunk_size=chunk), SINGLE_PROCESS
    )
    assert told == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("chunk", [2, 64])
def test_chunks_equal_the_whole_batch_with_texts_drawn_beside(world: dict[str, Any], chunk: int) -> None:
    boxes = {"data__train": str(world["regions"]), "data__region_share": 0.4}
    options = {**world["learned"], **boxes, "optim__lr_encoder": 1e-3}
    whole, values = spread.first_gradients(made(world, "efficient", **options), SINGLE_PROCESS)
    parts, told = spread.first_gradients(
        made(world, "efficient", **options, train__grad_cache_chunk_size=chunk), SINGLE_PROCESS
    )
    assert {"label_loss", "text_loss", "text_caption_loss"} <= told.keys()
    assert told == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("objective", ["joint", "contrastive"])
def test_chunks_replay_dropout(world: dict[str, Any], objective: str) -> None:
    """With dropout in projections and LLM, the gradients are those of one graph over what the chunks drew."""
    options = {"train__grad_cache_chunk_size": 3, "model__dropout": 0.4, **toys.ONLY[objective]}
    recipe = made(world, "dropping", **options)
    cached, _ = spread.first_gradients(recipe, SINGLE_PROCESS)
    run = loop.prepare(recipe)
    network = run.network.train()
    batch = run.tasks[0].batches[0]
    config = run.tasks[0].config
    images, texts, captions = [], [], []
    total = len(batch.caption_targets)
    for n, piece in enumerate(chunks(batch, 3)):
        torch.manual_seed(loop.mixed_seed(recipe.train.seed, 0, 7, n))
        visual = embed_items(network, piece)
        images.append(visual[:, 0])
        texts.append(network.encode_text(piece.texts))
        if objective == "joint":
            prefixes = network.project_visual_prefix(visual[piece.caption_owner])
            states = toys.packed(network, captions=piece.captions, prefixes=prefixes)[1]
            captions.append(caption_loss(network, states, piece, config.caption, total))
    terms = contrastive_terms(
        network, torch.cat(images), torch.cat(texts), batch, config.contrastive, SINGLE_PROCESS
    )
    torch.stack([terms["contrastive_loss"], *captions]).sum().backward()
    for name, p in network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(cached[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)


def checkpoint(recipe: Recipe) -> dict[str, torch.Tensor]:
    newest = sorted((recipe.train.out / "checkpoints").iterdir())[-1]
    return load_file(str(newest / "weights.safetensors"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_ranks(
    world: dict[str, Any], strategy: str, tmp_path: Path
) -> None:
    options = {
        "train__strategy": strategy,
        "train__epochs": 3,
        "train__batch_size": 8,
        "optim__ema_decay": 0.9,
    }
    options |= {"train__checkpoint_every": 2, "train__keep_checkpoints": 9}
    whole = made(world, train__out=str(tmp_path / "whole"), **options)
    loop.train(whole)
    mixed = made(world, train__out=str(tmp_path / "mixed"), **options)
    for size, steps in ((2, 4), (1, 6), (2, 9)):
        if size == 1:
            plain = loop.train_step

            def until(run: Any, step: int, *more: Any, stop: int = steps) -> Any:
                if step == stop:
                    raise KeyboardInterrupt
                return plain(run, step, *more)  # noqa: B023

            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(loop, "train_step", until)
                loop.train(mixed)
        else:
            run_ranks(tmp_path / "said", size, spread.train_until, to_dict(mixed), steps)
    expected = checkpoint(whole)
    for name, value in checkpoint(mixed).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    log = [json.loads(line) for line in (tmp_path / "mixed" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 10))
    assert (tmp_path / "mixed" / "model" / "model.safetensors").is_file()


def curve(recipe: Recipe) -> list[float]:
    """Step and losses of every line of the log, one after the other."""
    lines = [json.loads(line) for line in (recipe.train.out / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("step", "contrastive_loss", "caption_loss")]


def is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(
    world: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"train__epochs": 2, "train__batch_size": 8, "train__checkpoint_every": 2}
    options |= {"data__train": str(world["shards"]), "data__cached": False, "data__split": ""}
    options |= {"data__workers": 2}
    calm, killed = (made(world, train__out=str(tmp_path / n), **options) for n in ("calm", "killed"))
    killed.train.out.mkdir()
    paths = [tmp_path / "calm.json", tmp_path / "killed.json"]
    for path, recipe in zip(paths, (calm, killed), strict=True):
        path.write_text(json.dumps(to_dict(recipe)))
    torchrun = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", str(WORKER), *map(str, paths)]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    all_end_well([Forked(tmp_path / "said", torch.distributed.run.main, torchrun, environment=shared)], 300)
    groups = [int(path.name.removeprefix("group-")) for path in killed.train.out.glob("group-*")]
    assert len(groups) == 4  # two ranks, twice
    end = time.monotonic() + 5
    while (left := [group for group in groups if is_running(group)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    assert len(curve(calm)) == 3 * 8
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-5)


def test_sigterm_to_one_rank_stops_all_where_it_is_saved(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = made(world, train__out=str(tmp_path / "run"), train__epochs=2, train__checkpoint_every=100)
    run_ranks(tmp_path / "said", 2, spread.train_asked_to_stop, to_dict(recipe))
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4]


def test_ranks_of_an_earlier_attempt_are_never_met() -> None:
    """Three times three ranks in one store, each time in another order of coming."""
    store = torch.distributed.HashStore()
    words = []
    for late in range(3):

        def join(rank: int, late: int = late) -> str:
            time.sleep(0.1 * (rank == late))
            return agree_on_prefix(store, rank, 3, 10.0)

        with ThreadPoolExecutor(3) as pool:
            (word,) = set(pool.map(join, range(3)))
        words.append(word)
    assert len(set(words)) == 3
    with pytest.raises(torch.distributed.DistStoreError, match="rank 1 of 2 did not come within 0 s"):
        agree_on_prefix(store, 0, 2, 0.1)


def test_ranks_alone() -> None:
    assert SINGLE_PROCESS.all_reduce_sum(1, 2.5) == [1, 2.5]
    assert SINGLE_PROCESS.all_gather_sizes(3) == [3]
    assert SINGLE_PROCESS.broadcast("x") == "x"
    parts = [range(10)[World(r, 4).part(10)] for r in range(4)]
    assert [i for part in parts for i in part] == list(range(10))
