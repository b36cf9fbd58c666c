"""The training log and its trackers."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mmgem.train.log import MetricsLogger


def test_trackers_get_the_numbers_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("end")
    )
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=lambda **_: run))
    log = MetricsLogger(tmp_path, 0, ["trackio", "tensorboard"])
    log.write(1, {"loss": 2.5, "i2t": {"R@1": 3.0}})
    log.close()
    assert told == [(1, {"loss": 2.5}), "end"]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 2.5, "i2t": {"R@1": 3.0}}
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
