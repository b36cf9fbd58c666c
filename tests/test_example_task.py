"""The task of one's own in examples/ trains through the ordinary commands, in every way a task may."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toys
from forks import command, run_ranks
from safetensors.torch import load_file
from torch import Tensor

from mmgem import MMGEM
from mmgem.cli.main import main
from mmgem.config.tasks import TASKS
from mmgem.train import loop
from mmgem.utils.plugins import VARIABLE

EXAMPLE = Path(__file__).parents[1] / "examples" / "task_siglip_margin.py"
PLUGIN = ["--plugin", str(EXAMPLE)]


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("mmgem_plugin_")]:
        del sys.modules[name]
    TASKS._made.pop("siglip_margin", None)
    os.environ.pop(VARIABLE, None)


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    lm, encoder = toys.base_models(folder / "bases")
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[data]
train = "{toys.photos(folder / "data")}"
cache = "{folder / "features"}"
dev_split = "dev"
captions_per_image = 2
[siglip_margin.margin]
margin = 0.1
[siglip_margin.caption]
weight = 0.5
[preprocessing]
size = 32
[init]
llm = "{lm}"
encoder = "{encoder}"
[model]
dim = 8
logit_bias = -2.0
[model.encoder]
kind = "transformers"
[optim]
warmup_steps = 2
[train]
out = "{folder / "run"}"
epochs = 2
batch_size = 7
checkpoint_every = 2
keep_checkpoints = 9
log_every = 1
threads = 1
"""
    )
    return path


def weights(out: Path) -> dict[str, Tensor]:
    newest = sorted((out / "checkpoints").iterdir())[-1]
    return load_file(str(newest / "weights.safetensors"))


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.numpy() == pytest.approx(b[name].numpy(), rel=1e-4, abs=1e-5), name


def test_a_task_of_ones_own(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", str(recipe)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "siglip_margin: unknown" in error and "--plugin" in error

    # Planned, and trained whole; in chunks it comes to the same.
    assert main([*PLUGIN, "plan", str(recipe), "train.grad_cache_chunk_size=3", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    outs = {name: tmp_path / name for name in ("whole", "chunks", "spread")}
    for name, size in (("whole", 0), ("chunks", 3)):
        changes = [f"train.out={outs[name]}", f"train.grad_cache_chunk_size={size}"]
        assert main([*PLUGIN, "train", str(recipe), *changes]) == 0, capfd.readouterr().err
    close(weights(outs["chunks"]), weights(outs["whole"]))
    log = [json.loads(line) for line in (outs["whole"] / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "margin_loss" in line]
    assert len(steps) == plan["steps"] and "caption_loss" in steps[0]
    assert plan["pairs"] == 14 and {"i2t", "CIDEr", "score"} <= log[-1].keys()

    # Stopped, and gone on with by two processes.
    plain = loop.train_step

    def stopped(run: Any, step: int, *more: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return plain(run, step, *more)

    spread = [str(recipe), f"train.out={outs['spread']}", "train.grad_cache_chunk_size=2"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert main([*PLUGIN, "train", *spread]) == 130
    os.environ.pop(VARIABLE, None)  # the command line alone names the plugin
    run_ranks(tmp_path / "said", 2, command, [*PLUGIN, "train", *spread])
    close(weights(outs["spread"]), weights(outs["whole"]))

    # The model needs nothing of the task: it is exported, and loads without the plugin.
    assert main([*PLUGIN, "export", str(outs["whole"] / "model"), str(tmp_path / "small")]) == 0
    forget()
    assert MMGEM.from_pretrained(tmp_path / "small").embed_texts(["a dog"]).shape == (1, 8)


def test_margins_are_checked_like_any_field(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for change, said in (
        ("siglip_margin.margin.margn=1", "siglip_margin.margin.margn: unknown field (known: margin, weight)"),
        ("siglip_margin.margin.margin=nan", "siglip_margin.margin.margin: nan is not a finite number"),
        ("siglip_margin.margin.margin=0", ""),
    ):
        code = main([*PLUGIN, "plan", str(recipe), change])
        assert said in capfd.readouterr().err and code == (2 if said else 0), change
    both = ["siglip_margin.margin.weight=0", "siglip_margin.caption.weight=0", "model.logit_bias=0"]
    assert main([*PLUGIN, "train", str(recipe), *both]) == 2
    assert "siglip_margin: every loss has the weight 0" in capfd.readouterr().err


TERM = "class T(EmbeddingTerm):\n    def loss(self, network, images, *_):\n        return "


@pytest.mark.parametrize(
    ("term", "name", "said"),
    [
        (TERM + "1 / 0", "x", "task.py:8: ZeroDivisionError: division by zero"),
        (TERM + "None", "x", "mine.x: T.loss has to return a dict of scalar tensors"),
        (TERM + "{'x': images.sum()}", "x", "with a name that ends in _loss"),
        (TERM + "{'x_loss': images}", "x", "mine.x: T.loss has to return a dict of scalar tensors"),
        ("T = CaptionTerm", "y", "mine: its Config has to have a field 'y'"),
    ],
)
def test_mistakes_of_a_task_are_named(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], term: str, name: str, said: str
) -> None:
    plugin = tmp_path / "task.py"
    plugin.write_text(
        "from dataclasses import dataclass, field\nfrom mmgem import *\n"
        "@dataclass\nclass C:\n    x: CaptionConfig = field(default_factory=CaptionConfig)\n"
        f"{term}\n@TASKS.register('mine')\nclass M(ImageTextTask):\n    Config, terms = C, {{'{name}': T}}\n"
    )
    changed = tmp_path / "r.toml"
    before, _, after = recipe.read_text().partition("[siglip_margin.margin]")
    rest = after.partition("[preprocessing]")
    changed.write_text(f"{before}[mine.x]\n{rest[1]}{rest[2]}")
    try:
        assert main(["--plugin", str(plugin), "plan", str(changed), "model.logit_bias=0"]) == 2
    finally:
        TASKS._made.pop("mine", None)
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1, error
