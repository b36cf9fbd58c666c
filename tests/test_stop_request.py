"""SIGTERM: a run saves its step and stops, and goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import toys

import mmgem.train.loop as loop
from mmgem.config import Recipe
from mmgem.errors import StoppedError
from mmgem.train.loop import train
from mmgem.train.state import saved_steps
from mmgem.train.stop_request import StopRequest

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


class AskedAtOnce(StopRequest):
    """One to which SIGTERM came when it was entered."""

    def __enter__(self) -> StopRequest:
        self.asked = True
        return self


def logged(recipe: Recipe) -> list[dict[str, Any]]:
    path = recipe.train.out / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{name: line[name] for name in line.keys() & LOGGED} for line in map(json.loads, lines)]


def test_a_run_that_was_asked_to_stop_saves_and_equals_uninterrupted(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (make(name, train__epochs=3, train__checkpoint_every=1000) for name in ("a", "b"))
    train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", AskedAtOnce)
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM; step 1 is saved") as told:
            train(stopped)
    assert told.value.exit_code == 143 and saved_steps(stopped.train.out / "checkpoints") == [1]
    train(stopped)
    one, two = (r.train.out / "model" / "model.safetensors" for r in (whole, stopped))
    assert one.read_bytes() == two.read_bytes()
    assert logged(stopped) == logged(whole)


def test_a_handler_of_somebody_else_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGTERM)
        assert not request.asked
    finally:
        signal.signal(signal.SIGTERM, before)
