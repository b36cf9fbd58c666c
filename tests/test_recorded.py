"""Training and the shipped model compute what was recorded before the house was rebuilt
(tests/recorded.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded

WRITTEN: dict[str, Any] = json.loads(recorded.RECORDED.read_text())
SAME_MACHINE = WRITTEN["machine"] == recorded.machine()
CLOSE = {"rtol": 1e-6, "atol": 1e-6} if SAME_MACHINE else {"rtol": 2e-2, "atol": 2e-2}
"""Twenty steps of another processor's rounding add up."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_is_as_recorded(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    for name, outcome in recorded.training(tmp_path, ranks).items():
        expected = WRITTEN[f"{ranks} ranks"][name]
        np.testing.assert_allclose(outcome["steps"], expected["steps"], **CLOSE, err_msg=name)
        np.testing.assert_allclose(outcome["norms"], expected["norms"], **CLOSE, err_msg=name)
        if SAME_MACHINE:
            assert (outcome["scores"], outcome["sha256"]) == (expected["scores"], expected["sha256"]), name


def test_the_shipped_model_is_as_recorded(tmp_path: Path) -> None:
    """Of $RECORDED_PHOTOS pictures: 10, or 100."""
    count = int(os.environ.get("RECORDED_PHOTOS", "10"))
    outcome = recorded.shipped(recorded.pictures(tmp_path / "p", count), tmp_path / "index")
    expected = WRITTEN[f"tiny, {count} photos"]
    close = {"rtol": 0, "atol": 1e-6 if SAME_MACHINE else 1e-3}
    for name in ("images", "boxes", "texts", "scores"):
        np.testing.assert_allclose(outcome[name], expected[name], **close, err_msg=name)
    if SAME_MACHINE:
        assert json.loads(json.dumps(outcome)) == expected
