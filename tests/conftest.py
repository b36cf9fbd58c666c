"""What every test can ask for, made once a session. No test talks to a network."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# What OpenVINO would tell its makers, in three processes for each graph.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# Toy matrices are too small to share; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with every file a model folder has; do not write into it."""
    from tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture
def model_copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small photos in a folder of their own; do not write into it."""
    from tiny import save_photos

    return save_photos(tmp_path_factory.mktemp("photos"), 6)


@pytest.fixture(scope="session")
def tracings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs are kept once traced."""
    return tmp_path_factory.mktemp("tracings")


@pytest.fixture
def traced_once(tracings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting traces a model that has not been traced in this session, and copies the graphs of others."""
    from tracing import write_once

    from mmgem.export import write

    monkeypatch.setattr(write, "write_onnx", write_once(tracings))


class Hub:
    """Stands in for huggingface_hub's ``HfApi``: repositories are folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.private: dict[str, bool | None] = {}

    def create_repo(self, repo: str, private: bool | None, exist_ok: bool) -> Any:
        from huggingface_hub import RepoUrl

        self.private[repo] = private
        return RepoUrl(f"https://huggingface.co/{repo}")

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The only hub there is while a test runs."""
    import huggingface_hub

    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(made.folder / repo))
    return made
