"""SIGTERM: a run saves its step and stops, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import toys
from forks import Forked, all_end_well

import mmgem.train.loop as loop
from mmgem.config import Recipe, from_dict, to_dict
from mmgem.errors import StoppedError
from mmgem.train.loop import train, train_step
from mmgem.train.state import saved_steps

LOGGED = {"step", "contrastive_loss", "caption_loss", "gradient_norm", "lr_factor", "score"}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    data = toys.photos(tmp_path / "data")
    bases = toys.base_models(tmp_path / "bases", "tied llama")

    def recipe(name: str, **changes: Any) -> Recipe:
        made = toys.recipe(tmp_path, data, *bases, **({"optim__ema_decay": 0.9} | changes))
        made.train.out = tmp_path / name
        return made

    return recipe


def train_plain(recipe: dict[str, Any]) -> None:
    """What the process that is asked to stop does."""
    train(from_dict(Recipe, recipe))


def logged(recipe: Recipe) -> list[dict[str, Any]]:
    path = recipe.train.out / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{name: line[name] for name in line.keys() & LOGGED} for line in map(json.loads, lines)]


def test_sigterm_saves_the_step_and_equals_uninterrupted(make: Any, tmp_path: Path) -> None:
    options = {"train__epochs": 20, "train__checkpoint_every": 1000, "train__evaluate_every": 0}
    whole, stopped = make("whole", **options), make("stopped", **options)
    stopped.data.cache = tmp_path / "own"
    train(whole)
    process = Forked(tmp_path / "said", train_plain, to_dict(stopped)).process
    while len(logged(stopped)) < 3 and process.is_alive():
        time.sleep(0.002)
    process.terminate()
    process.join(30)
    assert process.exitcode not in (0, -signal.SIGTERM)
    (step,) = saved_steps(stopped.train.out / "checkpoints")
    assert 3 <= step == len(logged(stopped))
    all_end_well([Forked(tmp_path / "said", train_plain, to_dict(stopped))], 60)
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, stopped))
    assert one.read_bytes() == two.read_bytes()
    assert logged(stopped) == logged(whole)


def test_sigterm_is_an_error_with_an_exit_code(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make("stopped", train__epochs=20)
    steps: list[int] = []

    def stepped(*args: Any) -> Any:
        steps.append(args[1])
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", stepped)
    with pytest.raises(StoppedError, match=r"stopped by SIGTERM; step 2 is saved") as told:
        train(recipe)
    assert steps == [0, 1] and told.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
