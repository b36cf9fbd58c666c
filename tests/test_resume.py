"""A run that is stopped, however it is stopped, ends exactly as one that is not."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from forks import Forked, all_end_well

import mmgem.train.loop as loop
import mmgem.train.state as state_file
from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.config import Recipe, from_dict, to_dict
from mmgem.config.compare import difference
from mmgem.errors import CheckpointError, ConfigError
from mmgem.train.log import MetricsLogger
from mmgem.train.loop import train
from mmgem.train.state import Snapshot, load_state, save_state, saved_steps, take_snapshot


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.base_models(tmp_path_factory.mktemp("bases"), "tied llama")


@pytest.fixture
def make(tmp_path: Path, data: Path, bases: tuple[Path, Path]) -> Any:
    def recipe(name: str = "run", **changes: Any) -> Recipe:
        options = {"optim__ema_decay": 0.9, "model__dropout": 0.2, "image_text__caption__sampled_softmax": 16}
        made = toys.recipe(tmp_path, data, *bases, **(options | changes))
        made.train.out = tmp_path / name
        return made

    return recipe


class Killed(BaseException):
    """A kill, as the code it hits sees it."""


def train_until(recipe: Recipe, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until just before step ``stop`` and die there."""
    plain = loop.train_step

    def dying(run: Any, step: int, *more: Any) -> Any:
        if step == stop:
            raise Killed
        return plain(run, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        with pytest.raises(Killed):
            train(recipe)


def log_of(recipe: Recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.train.out / "log.jsonl").read_text().splitlines()]


def without_speed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    speed = {"pairs_per_second", "data_wait", "tflops", "utilisation"}
    return [{k: v for k, v in line.items() if k not in speed} for line in log]


def test_resumed_equals_uninterrupted(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = make("whole", train__evaluate_every=4), make("parts", train__evaluate_every=4)
    train(whole)
    for stop in (2, 7, 7, 11):  # before the first checkpoint; between two; without progress; near the end
        train_until(parts, stop, monkeypatch)
    train(parts)
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, parts))
    assert one.read_bytes() == two.read_bytes()
    for file in ("weights", "optimizer", "average"):
        name = f"checkpoints/step-00000012/{file}.safetensors"
        assert (whole.train.out / name).read_bytes() == (parts.train.out / name).read_bytes()
    assert without_speed(log_of(whole)) == without_speed(log_of(parts))
    assert [line["step"] for line in log_of(parts) if "caption_loss" in line] == list(range(1, 13))
    assert [line["step"] for line in log_of(parts) if "score" in line] == [4, 8, 12]


@pytest.mark.parametrize(
    "options",
    [
        {"optim__lora_rank": 2},
        {"data__cached": False, "optim__lr_encoder": 1e-3},
        {
            "data__mosaics": 9,
            "data__region_share": 0.5,
            "data__joined_caption_prob": 0.5,
            "image_text__contrastive__mask_false_negatives": True,
        },
    ],
)
def test_what_trains_is_what_resumes(
    options: dict[str, Any], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**options, "data__dev_split": "", "train__epochs": 2}
    whole, parts = make("whole", **options), make("parts", **options)
    train(whole)
    train_until(parts, 4, monkeypatch)
    train(parts)
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, parts))
    assert one.read_bytes() == two.read_bytes()


def test_a_finished_run_does_nothing_more(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make()
    train(recipe)
    log = log_of(recipe)
    monkeypatch.setattr(loop, "train_step", None)
    assert train(recipe) == recipe.train.out / "model"
    assert log_of(recipe) == log


def test_a_kill_before_the_final_export(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, whole = make(data__dev_split=""), make("whole", data__dev_split="")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "export_model", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train(recipe)
    folder = train(recipe)
    assert (folder / "model.safetensors").read_bytes() == (train(whole) / "model.safetensors").read_bytes()


def test_only_the_newest_checkpoints_are_kept(make: Any) -> None:
    recipe = make(train__checkpoint_every=2, train__keep_checkpoints=3, data__dev_split="")
    train(recipe)
    assert saved_steps(recipe.train.out / "checkpoints") == [8, 10, 12]


def test_other_data_is_refused(
    tmp_path: Path, make: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(data.parent, tmp_path / "moved")) / data.name
    lines = moved.read_text().splitlines(keepends=True)
    train_until(make(data__train=str(moved)), 4, monkeypatch)
    other = json.loads(lines[0]) | {"captions": ["a red boat", "a dog", "the sea"]}
    for changed in (lines[1:], [json.dumps(other) + "\n", *lines[1:]]):
        moved.write_text("".join(changed))
        with pytest.raises(ConfigError, match=r"data\.train: this is not the data the run began with"):
            train(make(data__train=str(moved)))
    moved.write_text("".join(lines))
    train(make(data__train=str(moved)))


def test_a_damaged_checkpoint_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make()
    train_until(recipe, 4, monkeypatch)
    (state,) = (recipe.train.out / "checkpoints").glob("*/state.json")
    state.write_text("{")
    with pytest.raises(CheckpointError, match=r"step-00000003/state\.json: damaged; remove .* to go on from"):
        train(recipe)


def test_another_recipe_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(make(), 4, monkeypatch)
    for change, field in (
        ({"optim__lr_heads": 0.5}, r"optim\.lr_heads"),
        ({"train__batch_size": 4}, r"train\.batch_size"),
        ({"preprocessing__lowercase": False}, r"preprocessing\.lowercase"),
        ({"optim__betas": [0.9, 0.95]}, r"optim\.betas"),
    ):
        with pytest.raises(ConfigError, match=rf"^{field}: changed since .*step-00000003 was written"):
            train(make(**change))
    train(make())


FORMER_KEYS = {
    "init": "start",
    "init.encoder": "start.tower",
    "data.cached_augmentations": "data.views",
    "data.joined_caption_prob": "data.long_texts",
    "data.mosaic_augmentations": "data.mosaic_views",
    "model.encoder": "model.tower",
    "model.encoder.freeze_until": "model.tower.cut",
    "optim.lr_heads": "optim.lr_new",
    "optim.lr_encoder": "optim.lr_tower",
    "optim.warmup_steps": "optim.warmup",
    "optim.final_lr_ratio": "optim.final_lr",
    "optim.max_grad_norm": "optim.clip",
    "optim.ema_decay": "optim.ema",
    "train.batch_size": "train.batch",
    "train.grad_cache_chunk_size": "train.chunk",
    "train.keep_checkpoints": "train.keep",
}
FORMER_TENSORS = {
    "encoder": "tower",
    "visual_projection": "h1",
    "text_projection": "h2",
    "visual_connector": "h3",
    "emb_token": "emb",
    "cap_token": "cap",
}


FORMER_OBJECTIVE = {
    "contrastive_weight": ("contrastive", "weight"),
    "caption_weight": ("caption", "weight"),
    "loss": ("contrastive", "loss"),
    "soft_targets": ("contrastive", "distill_weight"),
    "teacher": ("contrastive", "teacher"),
    "teacher_temperature": ("contrastive", "teacher_temperature"),
    "mask_same": ("contrastive", "mask_false_negatives"),
    "label_smoothing": ("caption", "label_smoothing"),
    "vocabulary_sample": ("caption", "sampled_softmax"),
}
FORMER_WEIGHTS = {f"{name}_weight": 1.0 for name in ("retrieve", "ask", "assess", "embed")}
FORMER_CORPUS = {
    "passages": None,
    "queries": [],
    "questions": 0,
    "dev": None,
    "dev_queries": 100,
    "batch": 64,
    "memorise": True,
    "titles": True,
    "prefix_tokens": 16,
    "negatives": 4,
    "max_passage_tokens": 1024,
    "scoring": {
        "titles": 5,
        "passages": 10,
        "one_token": False,
        "embedded": 50,
        "assess": 16,
        "kind": "judged",
        "title_weight": 0.5,
        "passage_weight": 0.25,
        "accept_weight": 1.0,
        "likelihood_weight": 0.3,
        "tau": 0.4,
        "delta": 0.4,
    },
}


def as_of_before(plain: dict[str, Any], where: str = "") -> dict[str, Any]:
    """A plain recipe of images by the keys of the version before these names."""
    old: dict[str, Any] = {}
    if not where:
        terms, optim = plain["image_text"], dict(plain["optim"])
        objective = {name: terms[term][field] for name, (term, field) in FORMER_OBJECTIVE.items()}
        objective |= {"name": "joint", "max_logit_scale_log": optim.pop("max_logit_scale_log")}
        old = {"objective": objective | FORMER_WEIGHTS, "corpus": FORMER_CORPUS}
        plain = {k: v for k, v in plain.items() if k != "image_text"} | {"optim": optim}
    for name, value in plain.items():
        key = f"{where}.{name}" if where else name
        former = FORMER_KEYS.get(key, key).rpartition(".")[2]
        old[former] = as_of_before(value, key) if isinstance(value, dict) else value
    return old


def rewritten_as_before(folder: Path) -> None:
    """Give a checkpoint's recipe and tensors the names of the version before, which wrote no checksums."""
    (folder / "checksums.json").unlink()
    path = folder / "state.json"
    facts = json.loads(path.read_text())
    facts["recipe"] = as_of_before(facts["recipe"])
    assert {"tower", "llm"} <= facts["recipe"]["start"].keys() and "cut" in facts["recipe"]["model"]["tower"]
    path.write_text(json.dumps(facts))
    for file in ("weights", "optimizer", "average"):
        tensors = load_tensors(folder / f"{file}.safetensors")
        former = {}
        for name, value in tensors.items():
            part = re.match(r"\w+", name)[0]  # type: ignore[index]
            former[FORMER_TENSORS.get(part, part) + name[len(part) :]] = value
        parts = {re.match(r"\w+", name)[0] for name in former}  # type: ignore[index]
        assert parts >= {"emb", "cap", "tower", "h1", "h2", "h3"}
        save_tensors(folder / f"{file}.safetensors", former)


def test_a_run_of_the_version_before_goes_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"data__cached": False, "optim__lr_encoder": 1e-3, "data__dev_split": "", "train__epochs": 2}
    whole, parts = make("whole", **options), make("parts", **options)
    train(whole)
    train_until(parts, 4, monkeypatch)
    (newest,) = (parts.train.out / "checkpoints").iterdir()
    rewritten_as_before(newest)
    with pytest.raises(ConfigError, match=r"^optim\.lr_heads: changed since .*step-00000003 was written"):
        train(make("parts", **options, optim__lr_heads=0.5))
    train(parts)
    assert [line["step"] for line in log_of(parts)] == [line["step"] for line in log_of(whole)]
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, parts))
    assert one.read_bytes() == two.read_bytes()


def test_a_recipe_that_means_nothing_now_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make()
    train_until(recipe, 4, monkeypatch)
    (path,) = (recipe.train.out / "checkpoints").glob("*/state.json")
    facts = json.loads(path.read_text())
    facts["recipe"]["optim"]["momentum"] = 0.9
    path.write_text(json.dumps(facts))
    path.with_name("checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json: of another version .* optim\.momentum: unknown"):
        train(recipe)
    # What has come since is at its default.
    del facts["recipe"]["optim"]["momentum"], facts["recipe"]["train"]["threads"]
    del facts["recipe"]["optim"]["weight_decay"]
    path.write_text(json.dumps(facts))
    train(recipe)


def test_what_does_not_change_the_run_may_change(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(make(), 4, monkeypatch)
    train(make(train__log_every=5, train__checkpoint_every=4, train__keep_checkpoints=1))


def test_difference_names_nested_fields(make: Any) -> None:
    one, two = to_dict(make()), to_dict(make(optim__lr_heads=0.5, train__keep_checkpoints=7))
    assert difference(one, two) == ["optim.lr_heads", "train.keep_checkpoints"]
    assert difference(one, one) == []
    assert difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == ["a.c"]


def state(make: Any) -> tuple[Any, ...]:
    run = loop.prepare(make(data__dev_split=""))
    loop.train_step(run, 0)
    return run, run.network, run.optimizer, run.ema


def taken(*parts: Any) -> Snapshot:
    made = take_snapshot(*parts)
    assert made is not None
    return made


def weights(folder: Path) -> torch.Tensor:
    newest = folder / f"step-{saved_steps(folder)[-1]:08d}"
    return load_tensors(newest / "weights.safetensors")["visual_connector.weight"]


@pytest.mark.parametrize("fails_at", ["weights", "optimizer", "average", "state"])
def test_a_kill_while_writing_leaves_the_checkpoint_before(
    fails_at: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network, adam, average = state(make)
    folder, facts = tmp_path / "checkpoints", {"recipe": to_dict(run.recipe), "best": None}
    save_state(folder, 1, taken(network, adam, average), facts, 1)
    before = weights(folder)
    loop.train_step(run, 1)
    plain_save, plain_write = state_file.save_tensors, state_file.write_atomic

    def dying_save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if path.stem == fails_at:
            path.write_bytes(b"half of it")
            raise Killed
        plain_save(path, tensors)

    def dying_write(path: Path, text: str) -> None:
        if path.stem == fails_at:
            raise Killed
        plain_write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(state_file, "save_tensors", dying_save)
        patch.setattr(state_file, "write_atomic", dying_write)
        with pytest.raises(Killed):
            save_state(folder, 2, taken(network, adam, average), facts, 1)
    assert saved_steps(folder) == [1]
    assert torch.equal(weights(folder), before)
    restored = load_state(folder, network, adam, average, run.recipe)
    assert restored is not None
    assert restored["step"] == 1
    assert torch.equal(network.visual_connector.weight, before)
    save_state(folder, 2, taken(network, adam, average), facts, 1)
    assert [p.name for p in folder.iterdir()] == ["step-00000002"]


def test_one_copy_is_in_memory_at_a_time(make: Any, tmp_path: Path) -> None:
    _, network, adam, average = state(make)
    alive: weakref.WeakSet[Snapshot] = weakref.WeakSet()

    def take() -> Snapshot:
        assert not alive
        made = Held(**vars(taken(network, adam, average)))
        alive.add(made)
        return made

    with state_file.CheckpointWriter(tmp_path) as saver:
        for step in (1, 2, 3):
            saver.save(step, take, {}, 2)
    assert saved_steps(tmp_path) == [2, 3]


class Held(Snapshot):
    """One that a weak set can hold."""

    __hash__ = object.__hash__


def test_a_checkpoint_of_another_model_is_refused(make: Any, tmp_path: Path) -> None:
    run, network, adam, average = state(make)
    folder, recipe = tmp_path / "checkpoints", to_dict(run.recipe)
    save_state(folder, 1, taken(network, adam, average), {"recipe": recipe}, 1)
    path = folder / "step-00000001" / "weights.safetensors"
    tensors = load_tensors(path)
    del tensors["visual_connector.weight"]
    save_tensors(path, tensors)
    path.with_name("checksums.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"step-00000001: does not fit the model: visual_connector\.weight"
    ):
        load_state(folder, network, adam, average, run.recipe)
    assert load_state(tmp_path / "none", network, adam, average, run.recipe) is None


def test_log_drops_what_will_be_written_again(tmp_path: Path) -> None:
    log = MetricsLogger(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, {"loss": step / 10})
    with log.path.open("a") as f:
        f.write('{"step": 6, "lo')  # a line cut by a kill
    MetricsLogger(tmp_path, 3).write(4, {"loss": 9.0})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0)]


def train_plain(recipe: dict[str, Any]) -> None:
    """What the processes to be killed do."""
    train(from_dict(Recipe, recipe))


def logged_steps(recipe: Recipe) -> int:
    path = recipe.train.out / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_three_times_equals_uninterrupted(make: Any, tmp_path: Path) -> None:
    options = {"train__epochs": 30, "train__checkpoint_every": 4, "train__evaluate_every": 25}
    whole, killed = make("whole", **options), make("killed", **options)
    killed.data.cache = tmp_path / "own"
    train(whole)
    rng = random.Random(time.time_ns())
    for _ in range(3):
        process = Forked(tmp_path / "said", train_plain, to_dict(killed)).process
        # Somewhere in the next sixth of the run, at whatever it is doing then.
        goal = logged_steps(killed) + rng.randint(1, 15)
        while logged_steps(killed) < goal and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    all_end_well([Forked(tmp_path / "said", train_plain, to_dict(killed))], 60)
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, killed))
    assert one.read_bytes() == two.read_bytes()
    assert without_speed(log_of(killed)) == without_speed(log_of(whole))
