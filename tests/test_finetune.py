"""Fine-tuning: a recipe of one line that learns a person's photos and says what it brought."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from mmgem import MMGEM
from mmgem.checkpoints.model_folder import load_model
from mmgem.cli.main import main
from mmgem.config.recipe import load_recipe
from mmgem.data.held_out import hold_out
from mmgem.data.records import Record
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.errors import DataError
from mmgem.train.checks import check
from mmgem.train.loop import gain, prepare, train
from mmgem.train.optim import ExponentialMovingAverage

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.toml"


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("red_dog", "blue_boat", "small_house"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for n in range(10):
            pixels = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
    return tmp_path / "photos"


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in its folder, of the kind that ships: EfficientNet, whose upper blocks train."""
    folder = tmp_path / "start"
    model = MMGEM(toys.network("tied llama", "efficientnet_lite0", dim=8), toys.tokenizer())
    model.save_pretrained(folder)
    return folder


def run(data: Path, start: Path, out: Path, *changes: str) -> Path:
    settings = [f"data.train={data}", f"init.checkpoint={start}", f"train.out={out}"]
    settings += ["model.encoder.freeze_until=11", f"data.cache={out.parent / 'cache'}", "train.epochs=2"]
    return train(load_recipe(RECIPE, [*settings, *changes]))


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_recipe_pulls_nothing_and_its_fields_are_valid(class_folders: Path) -> None:
    recipe = load_recipe(RECIPE, [f"data.train={class_folders}"])
    check(recipe, SINGLE_PROCESS)
    assert recipe.init.checkpoint == Path("tiny")
    assert recipe.tasks["image_text"].contrastive.teacher is None


def test_class_folders_are_learned_and_the_gain_is_told(
    class_folders: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mmgem"):
        folder = run(class_folders, start, tmp_path / "run")
    first, *_, last = (line for line in lines_of(tmp_path / "run") if "score" in line)
    assert first["step"] == 0 and set(first["classes"]) == {"top1"} and "i2t" not in first
    assert caplog.messages[-1].startswith(
        f"held out, before -> after: classes top1 {first['score']:.1f} -> {last['score']:.1f}"
    )
    assert all(line["caption_loss"] == 0 for line in lines_of(tmp_path / "run") if "caption_loss" in line)
    assert MMGEM.from_pretrained(folder).embed_texts(["a red dog"]).shape == (1, 8)
    again = len(lines_of(tmp_path / "run"))
    run(class_folders, start, tmp_path / "run")  # it has ended: nothing is trained or measured again
    assert len(lines_of(tmp_path / "run")) == again


@pytest.mark.parametrize("form", ["jsonl", "csv", "text files"])
def test_captions_of_any_form_are_learned(form: str, start: Path, tmp_path: Path) -> None:
    data = toys.photos(tmp_path / "data")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    if form == "jsonl":  # without splits
        data.write_text("".join(json.dumps(row | {"split": None}) + "\n" for row in rows))
    elif form == "csv":
        data.unlink()
        data = tmp_path / "data" / "captions.csv"
        pairs = [f"{Path(row['image']).name},{caption}\n" for row in rows for caption in row["captions"]]
        data.write_text("image,caption\n" + "".join(pairs))
    else:
        for row in rows:
            (data.parent / row["image"]).with_suffix(".txt").write_text("\n".join(row["captions"]))
        data.unlink()
        data = data.parent
    out = tmp_path / "run"
    run(data, start, out, "train.epochs=1")
    first = lines_of(out)[0]
    assert first["step"] == 0 and {"i2t", "t2i", "CIDEr"} <= set(first)
    learned = prepared(data, start, tmp_path).tasks[0]
    assert (len(learned.batches.usable), len(learned.dev[0])) == (26, 6)


def prepared(data: Path, start: Path, tmp_path: Path, *changes: str) -> Any:
    settings = [f"data.train={data}", f"init.checkpoint={start}", "model.encoder.freeze_until=11"]
    return prepare(load_recipe(RECIPE, [*settings, f"data.cache={tmp_path / 'cache'}", *changes]))


def test_a_dev_split_or_file_is_taken_where_there_is_one(start: Path, tmp_path: Path) -> None:
    data = toys.photos(tmp_path / "data", train=24, dev=8)
    learned = prepared(data, start, tmp_path).tasks[0]
    assert (len(learned.batches.usable), len(learned.dev[0])) == (24, 8)
    other = toys.photos(tmp_path / "other", train=0, dev=5, seed=1)
    learned = prepared(data, start, tmp_path, f"data.dev={other}").tasks[0]
    assert (len(learned.batches.usable), len(learned.dev[0])) == (24, 5)
    learned = prepared(data, start, tmp_path, "data.dev_split=").tasks[0]
    assert (len(learned.batches.usable), learned.dev) == (24, None)


def test_photos_without_words_are_refused_in_a_line(class_folders: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"red_dog: no captions in split .*; photos need some"):
        run(class_folders / "red_dog", start, tmp_path / "run")


def test_a_share_of_every_label_is_held_out_and_copies_stay_together() -> None:
    records = [Record(Path(f"/{n}.jpg"), label=f"kind {n % 4}") for n in range(80)]
    contents = [str(n if n < 72 else n - 72) for n in range(80)]  # the last eight are copies of the first
    learned, held = hold_out(records, contents, 0.25)
    assert sorted(map(str, (r.image for r in learned + held))) == sorted(str(r.image) for r in records)
    assert learned == [r for r in records if r in learned]
    content = dict(zip((r.image for r in records), contents, strict=True))
    assert not {content[r.image] for r in learned} & {content[r.image] for r in held}
    assert {sum(r.label == f"kind {k}" for r in held) for k in range(4)} <= {4, 5, 6}
    assert hold_out(records, contents, 0.25) == (learned, held)
    assert hold_out(records, contents, 0.25, seed=1)[1] != held
    assert hold_out(records, contents, 0.0) == (records, [])


def test_the_average_keeps_a_share_of_the_start() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    started = [p.detach().clone() for p in network.parameters()]
    plain, mixed = ExponentialMovingAverage(network, 0.9), ExponentialMovingAverage(network, 0.9, 0.3)
    for step in range(5):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        plain.update(network, step)
        mixed.update(network, step)
    for old, average, value in zip(started, plain.values.values(), mixed.values.values(), strict=True):
        torch.testing.assert_close(value, 0.7 * average + 0.3 * old)


def test_a_resumed_run_keeps_the_same_start(class_folders: Path, start: Path, tmp_path: Path) -> None:
    whole = run(class_folders, start, tmp_path / "whole", "train.checkpoint_every=1")
    part = tmp_path / "part"
    run(class_folders, start, part, "train.checkpoint_every=1")
    states = sorted((part / "checkpoints").iterdir())
    for path in sorted(states[-1].iterdir()):
        path.unlink()
    states[-1].rmdir()  # as if it had been killed a step before its end
    run(class_folders, start, part, "train.checkpoint_every=1")
    one, other = (load_model(folder)[0].state_dict() for folder in (whole, part / "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_without_captions_trains_the_embeddings_alone() -> None:
    network = toys.network().train()
    batch = replace(
        toys.batch(network),
        captions=[],
        caption_owner=torch.empty(0, dtype=torch.int64),
        caption_targets=torch.empty(0, dtype=torch.int64),
    )
    task = toys.image_text("joint", caption__sampled_softmax=4)
    losses = task.forward(network, batch, SINGLE_PROCESS)
    assert losses["caption_loss"].item() == 0
    sum(loss for name, loss in losses.items() if name.endswith("_loss")).backward()
    only = toys.image_text("contrastive").forward(network, batch, SINGLE_PROCESS)
    assert torch.equal(only["contrastive_loss"], losses["contrastive_loss"])
    grads = [p.grad for p in network.visual_connector.parameters()]
    assert grads and all(grad is not None and not grad.any() for grad in grads)


def test_what_is_no_better_is_said() -> None:
    before = {"t2i": {"R@10": 40.0}, "score": 40.0}
    after = {"step": 9, "t2i": {"R@10": 50.0}, "score": 50.0}
    assert gain(before, after) == "held out, before -> after: t2i R@10 40.0 -> 50.0, score 40.0 -> 50.0"
    assert gain(before, before).endswith(
        "no better than init.checkpoint, which goes on being the better choice"
    )


def test_the_command_of_the_readme(
    class_folders: Path, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = [f"data.train={class_folders}", f"init.checkpoint={start}", f"train.out={tmp_path / 'run'}"]
    changes += ["model.encoder.freeze_until=11", f"data.cache={tmp_path / 'cache'}", "train.epochs=1"]
    assert main(["train", str(RECIPE), *changes]) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'run' / 'model'}\n"
    assert err.splitlines()[-1].startswith("held out, before -> after: classes top1 ")
