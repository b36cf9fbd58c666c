"""Every command and every Python example of the README and the docs runs, in a folder with what they name.

The names are the docs', what is behind them is small: toy models, recipes of the same file names, pictures of
noise. ``make`` targets, extras and benchmarks are checked to be there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adopt_toys
import films
import pytest
import test_sound
import torch.distributed.run
import toys
from forks import Forked, all_end_well
from tiny import save_photo, save_photos, save_tiny_model

from mmgem.checkpoints import download as pull
from mmgem.checkpoints import resolve as registry
from mmgem.cli.main import main
from mmgem.self_retrieval import baselines
from mmgem.serve import server

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]

_ENCODER = """[model.encoder]
kind = "efficientnet_lite0"
freeze_until = 11
config = { size = 32, stem = 8, head = 16 }
"""
_DATA = '[data]\ntrain = "my/captions.jsonl"\ncached_augmentations = 1\n'
_BASES = '[init]\nllm = "smollm2"\n'
_IMAGES = f'{_DATA}{_BASES}encoder = "efficientnet_lite0"\n{_ENCODER}'
RECIPES = {
    "tiny": _IMAGES,
    "paper": _IMAGES,
    "finetune": "[data]\nlabels = true\ncaption_labels = false\ndev_share = 0.2\n"
    '[init]\ncheckpoint = "tiny"\n',
    "adopt": '[data]\ntexts = ["my/captions.jsonl"]\n[init]\nllm = "smollm2"\n'
    'encoder = "openai/clip-vit-base-patch32"\n[model.encoder]\nkind = "clip"\n'
    '[model.connector]\nkind = "unit_mlp"\n[text_distillation]\n',
    "audio": f'{_DATA.replace("my/", "sounds/")}[init]\nllm = "smollm2"\nencoder = "hearing"\n'
    '[model.encoder]\nkind = "audio"\nconfig = { size = 32 }\n',
    "adopt_pairs": f'{_DATA}[init]\ncheckpoint = "runs/adopt/model"\n',
    "tiny_regions": f"{_DATA}mosaics = 4\nregion_share = 0.4\n"
    f'[init]\ncheckpoint = "runs/tiny/model"\n{_ENCODER}',
    "xquad": '[self_retrieval]\npassages = "my/corpus.jsonl"\nqueries = ["my/queries.jsonl"]\n'
    "batch_size = 16\n"
    f'{_BASES}[model.encoder]\nkind = "none"\nconfig = {{ size = 32 }}\n',
}
_COMMON = """[preprocessing]
size = 32
max_text_tokens = 200
[model]
dim = 8
[optim]
warmup_steps = 1
[train]
out = "runs/{}"
epochs = 1
batch = 8
threads = 1
"""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return [body for found, body in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if found == language]


def commands(page: str) -> Iterator[list[str]]:
    for body in blocks(page, ""):
        for line in body.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the docs name, but for what their own commands make."""
    folder = tmp_path_factory.mktemp("docs")
    save_photos(folder / "home" / "Pictures", 6)
    for seed, name in enumerate(("photo.jpg", "query.jpg", "a.jpg", "b.jpg")):
        save_photo(folder / name, seed, (400, 320))
    films.save_film(folder / "film.mp4")
    films.save_gif(folder / "home" / "Pictures" / "cat.gif")
    for name in ("my", "flickr8k", "pairs"):
        toys.photos(folder / name)
    toys.photos_and_clips(folder / "my" / "clips")
    test_sound.sounds(folder / "sounds")
    test_sound.network().encoder.net.save_pretrained(folder / "hearing")
    (folder / "data.jsonl").symlink_to(folder / "my" / "captions.jsonl")
    (folder / "images").symlink_to(folder / "my" / "images")
    save_photos(folder / "classes" / "cat", 2)
    save_photos(folder / "classes" / "red_ball", 2)
    for name in ("our_boat", "cat"):
        save_photos(folder / "my" / "photos" / name, 6)
    _coco(folder / "coco")
    _karpathy(folder / "flickr8k")
    for name in ("my", "xquad"):
        _, queries = toys.corpus(folder / name)
        (folder / name / "dev.jsonl").write_bytes(queries.read_bytes())
    lines = [{"image": f"{n}.png", "de": "der Hund rennt"} for n in range(12)]
    (folder / "translations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "token").write_text("a-token\n")
    (folder / "new").mkdir()
    (folder / "new" / "one.md").write_text("# the red horse\n\nThe red horse jumps on the beach.\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "dogs.md").write_text("# dogs\n\nThe dog runs. The cat jumps on the snow.\n")
    _bases(folder / "cache" / "base")
    for name, family in (
        ("openai/clip-vit-base-patch32", "clip"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "clip"),
        ("google/siglip-base-patch16-224", "siglip"),
        ("google/siglip2-base-patch16-224", "siglip2"),
    ):
        adopt_toys.checkpoint(folder / name, family)
    (folder / "HuggingFaceTB").mkdir()
    (folder / "HuggingFaceTB" / "SmolLM2-135M").symlink_to(toys.base_models(folder / "cache" / "made")[0])
    (folder / "recipes").mkdir()
    for name, text in RECIPES.items():
        common = _COMMON.format(name)
        if name == "finetune":  # goes on from a model of another length
            common = common.replace("max_text_tokens = 200\n", "")
        (folder / "recipes" / f"{name}.toml").write_text(common + text)
    save_tiny_model(folder / "weights" / "tiny")
    return folder


def _coco(folder: Path) -> None:
    save_photos(folder, 2)
    images = [{"id": n, "file_name": f"{n:04}.png"} for n in range(2)]
    captions = [{"id": n, "image_id": n, "caption": "the dog runs"} for n in range(2)]
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": captions}))


def _karpathy(folder: Path) -> None:
    sentences = [{"raw": "the dog runs"}] * 5
    images = [{"filename": f"{n}.png", "split": "test", "sentences": sentences} for n in range(3)]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))


def _bases(folder: Path) -> None:
    lm, _ = toys.base_models(folder / "made")
    _, encoder = toys.base_models(folder / "made", encoder="efficientnet_lite0")
    for name in ("efficientnet_lite0", "minilm", *pull.SETS["tiny"]):
        made = encoder if name.startswith("efficientnet") else lm
        (folder / pull.cache_folder(name).name).symlink_to(made)


@pytest.fixture
def here(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as working directory, home, cache and home of the packaged model."""
    folder = Path(shutil.copytree(stocked, tmp_path / "here", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("MMGEM_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(registry, "PACKAGED", folder / "weights")
    monkeypatch.setattr(baselines, "minilm_embedder", lambda: lambda texts: _vectors(len(texts)))
    return folder


def _vectors(count: int):
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expanded(words: list[str]) -> list[str]:
    """What a shell makes of the words: home folder and file patterns."""
    made: list[str] = []
    for word in words:
        word = str(Path(word).expanduser()) if word.startswith("~") else word
        found = sorted(map(str, Path().glob(word))) if "*" in word and "[" not in word else []
        made += found or [word]
    return made


def run(words: list[str]) -> None:
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["mmgem", "serve", *rest]:
            assert main(["serve", *rest, "--port", "0"]) == 0
        case ["curl", *rest]:
            subprocess.run(["curl", "--fail", *expanded(rest)], check=True)
        case ["mmgem", "mosaic", *rest]:
            assert main(["mosaic", *rest, "--count", "4"]) == 0
        case ["mmgem", "data", "filter" | "recaption" as verb, *rest]:  # to a random model no pair is right
            more = [] if {"--keep", "--min-cosine"} & set(rest) else ["--keep", "0.7"]
            assert main(["data", verb, *rest, *more]) == 0
        case ["mmgem", "bulk", *rest]:  # workers would load the real model
            assert main(["bulk", *expanded(rest), "--workers", "0"]) == 0
        case ["mmgem", *rest]:
            assert main(expanded(rest)) == 0
        case ["torchrun", "--nproc-per-node", _, *rest]:
            started = ["--nproc-per-node", "2", *rest]
            all_end_well([Forked(Path("../said"), torch.distributed.run.main, started)])
        case ["pip", "install", what]:
            extra = re.fullmatch(r"mmgem\[(\w+)\]", what)
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert extra and extra[1] in project["optional-dependencies"]
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case _:
            pytest.fail(f"no test runs {shlex.join(words)}")


class Served:
    """The server of the last ``mmgem serve``, in a thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._make, self._server = server.make_server, None
        self.address = ""
        monkeypatch.setattr(server, "make_server", self.make)
        monkeypatch.setattr(os, "_exit", lambda code: None)

    def make(self, *arguments: Any) -> Served:
        self.stop()
        self._started = threading.Event()
        *others, _ = arguments
        self._server = self._make(*others, self._started.set)
        return self

    def run(self, sockets: list[socket.socket]) -> None:
        self.address = f"localhost:{sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(20)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    kept = Served(monkeypatch)
    yield kept
    kept.stop()


def _reachable(word: str, served: Served) -> str:
    """``word`` with servers that are there: ours, and Qdrant's local mode."""
    return word.replace("localhost:8000", served.address).replace("http://localhost:6333", "qdrant-server")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, here: Path, served: Served, hub: Any, traced_once: None) -> None:
    for words in commands(page):
        try:
            run([_reachable(word, served) for word in words])
        except (AssertionError, subprocess.CalledProcessError) as error:
            pytest.fail(f"{page}: {shlex.join(words)}: {error}")
    known: dict[str, object] = {}
    exec("from mmgem import MMGEM\nmodel = MMGEM.from_pretrained('tiny')", known)
    for body in blocks(page, "python"):
        exec(body.replace("localhost:8000", served.address), known)
