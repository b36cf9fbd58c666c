"""What every test can ask for, made once a session. No test talks to a network."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from mmgem.api import MMGEM

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MMGEM_CONFIG"] = os.devnull  # not that of who runs the tests
# What OpenVINO would tell its makers, in three processes for each graph.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# Toy matrices are too small to share; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files of tests that take longest; begun first, so that no process is left with one of them in the end.
LONG = (
    *("plan", "docs", "ranks", "export", "recorded", "bulk", "examples", "example_task", "resume"),
    *("cookbook", "page", "serve_schema", "train", "corpus_training", "demo", "faults"),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Imports make a million objects that stay; they are not searched for garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process a core, but no more than memory allows: each takes one to two GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a command leaves in the environment for the processes it starts ends with its test."""
    before = dict(os.environ)
    yield
    if (after := dict(os.environ)) != before:
        for name in after.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


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
    """Where graphs are kept once traced, by all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tracings"
    folder.mkdir(exist_ok=True)
    return folder


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
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(made.folder / repo))
    return made


@pytest.fixture
def run(tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command line that must succeed; returns (standard output, standard error)."""
    from mmgem.cli.main import main

    def command(*argv: object, model: Path | None = tiny_model_folder) -> tuple[str, str]:
        capfd.readouterr()
        code = main([*map(str, argv), *(["--model", str(model)] if model else [])])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out, err

    return command


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> MMGEM:
    """The model of ``tiny_model_folder``, one a file of tests."""
    from mmgem.api import MMGEM

    return MMGEM.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def client(model: MMGEM, index: Path) -> Iterator[httpx.Client]:
    """A client of a server of ``model`` and the file's own ``index``."""
    from serving import serving

    with serving(model, index) as (client, _):
        yield client
