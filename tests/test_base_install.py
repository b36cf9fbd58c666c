"""The base install: every verb works, or says in one line which extra it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import adopt_toys
import pytest
import toys
import typer
from base_install import EXTRAS

from mmgem.cli.main import app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def told(tiny_model_folder: Path, tiny_photos: list[Path], tmp_path_factory) -> dict[str, tuple[Any, ...]]:
    """What every command line of ``rows`` did, by its name."""
    folder = tmp_path_factory.mktemp("base")
    named = rows(folder, str(tiny_model_folder), [str(p) for p in tiny_photos])
    (folder / "rows.json").write_text(json.dumps(list(named.values())))
    command = [sys.executable, str(Path(__file__).with_name("base_install.py")), str(folder / "rows.json")]
    environment = {**os.environ, "MMGEM_CACHE": str(folder / "cache")}  # where nothing has been pulled
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: tuple(row) for name, row in zip(named, json.loads(done.stdout), strict=True)}


def rows(folder: Path, model: str, photos: list[str]) -> dict[str, list[str]]:
    """Command lines that work in the base install, then those that need an extra."""
    data = toys.photos(folder / "data", train=8, dev=4)
    lm, encoder = toys.base_models(folder / "bases")
    checkpoint, adopted = folder / "clip", str(folder / "adopted")
    adopt_toys.checkpoint(checkpoint, "clip")
    lines = adopt_toys.texts(folder / "texts", 12)
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[data]\ntrain = "{data}"\ncache = "{folder / "features"}"\n[preprocessing]\nsize = 32\n'
        f'[init]\nencoder = "{encoder}"\nllm = "{lm}"\n[model]\ndim = 8\n'
        f'[model.encoder]\nkind = "transformers"\n'
        f'[train]\nout = "{folder / "run"}"\nepochs = 1\nbatch_size = 4\n[image_text]\n'
    )
    (folder / "notes").mkdir()
    texts = folder / "notes"
    (texts / "a.md").write_text("# a dog\n\nThe dog runs.\n")
    (texts / "b.pdf").write_text("%PDF-1.4")
    m, idx, photo = ["-m", model], str(folder / "idx"), photos[0]
    index = ["index", str(Path(photo).parent), "--out", idx, *m]
    return {
        "index": index,
        "search": ["search", idx, "a dog"],
        "duplicates": ["duplicates", idx],
        "cluster": ["cluster", idx],
        "caption": ["caption", photo, *m],
        "classify": ["classify", photo, "--classes", "dog,cat", *m],
        "heatmap": ["heatmap", photo, "a dog", "--out", str(folder / "heat.png"), *m],
        "embed": ["embed", photo, "--out", str(folder / "a.npy"), *m],
        "eval": ["eval", "retrieval", "--data", str(data), "--split", "dev", *m],
        "export": ["export", model, str(folder / "small")],
        "mosaic": ["mosaic", str(data), "--out", str(folder / "mosaics")],
        "data": ["data", "pack", str(data), "--out", str(folder / "shards")],
        "data check": ["data", "check", str(data), "--out", str(folder / "checked")],
        "data filter": ["data", "filter", str(data), "--out", str(folder / "f.jsonl"), "--keep", "0.7", *m],
        "data caption-labels": [
            "data",
            "caption-labels",
            str(data),
            "--texts",
            str(data),
            "--out",
            str(folder / "l.jsonl"),
            *m,
        ],
        "data recaption": [
            "data",
            "recaption",
            str(data),
            "--out",
            str(folder / "r.jsonl"),
            "--keep",
            "0.7",
            *m,
        ],
        "demo": ["demo", "--photos", str(Path(photo).parent), "--out", str(folder / "demo"), *m],
        "check": ["check", model],
        "completion": ["completion", "bash"],
        "plan": ["plan", str(recipe)],
        "train": ["train", str(recipe)],
        "adopt": ["adopt", str(checkpoint), "--llm", str(lm), "--texts", str(lines), "--out", adopted],
        "compare": ["compare", str(recipe), "--data", str(data), "--out", str(folder / "compared")],
        "calibrate": ["calibrate", str(folder / "small"), "--data", str(folder / "no.jsonl")],
        "corpus": ["corpus", "search", "a dog", *m],
        "corpus index": ["corpus", "index", str(texts), "--out", str(folder / "texts.idx"), *m],
        "corpus ask": ["corpus", "ask", "a dog", "--index", str(folder / "texts.idx")],
        "bulk": ["bulk", str(Path(photo).parent), "--out", str(folder / "bulk"), *m],
        "bulk workers": ["bulk", str(Path(photo).parent), "--out", str(folder / "b"), "--workers", "2", *m],
        "data parquet": ["data", "pack", str(data), "--out", str(folder / "parquet"), "--format", "parquet"],
        "index hnsw": [*index, "--hnsw", "float32"],
        "store": ["store", "push", idx, f"qdrant:{folder / 'q'}"],
        "store lance": ["store", "push", idx, f"lance:{folder / 'l'}"],
        "store search": ["store", "search", f"lance:{folder / 'l'}", "a dog"],
        "export onnx": ["export", model, str(folder / "onnx"), "--format", "onnx"],
        "export openvino": ["export", model, str(folder / "openvino"), "--format", "openvino"],
        "serve": ["serve", idx, "--port", "0"],
        "watch": ["watch", str(Path(photo).parent), "--out", idx],
        "pull": ["pull", "smollm2"],
        "train lora": ["train", str(recipe), "optim.lora_rank=2", f"train.out={folder / 'lora'}"],
        "train tensorboard": ["train", str(recipe), 'train.trackers=["tensorboard"]'],
    }


NEEDS = {
    "bulk": "shards",
    "bulk workers": "ray|shards",
    "data parquet": "shards",
    "index hnsw": "index",
    "store": "qdrant",
    "store lance": "lance",
    "store search": "lance",
    "export onnx": "export",
    "export openvino": "export",
    "serve": "serve",
    "watch": "watch",
    "pull": "base",
    "train lora": "train",
    "train tensorboard": "train",
}
OTHER_REASONS = {"calibrate": "no.jsonl", "corpus": "has learned no corpus"}


def test_every_verb_works_or_names_its_extra(told):
    wrong = []
    for name, (code, out, line) in told.items():
        extras = [f"mmgem[{extra}]" for extra in NEEDS.get(name, "").split("|") if extra]
        reasons = extras or ([OTHER_REASONS[name]] if name in OTHER_REASONS else [])
        if reasons:
            is_line = code in (1, 2) and line.startswith("mmgem: error: ") and out == ""
            right = is_line and any(reason in line for reason in reasons)
        else:
            right = code == 0
        if not right:
            wrong.append((name, code, line))
    assert wrong == []


def test_pdfs_are_skipped_with_the_name_of_the_extra(told):
    code, out, line = told["corpus index"]
    assert (code, "1 passages of 1 files" in out) == (0, True)
    assert "mmgem[pdf]" in line


def test_all_verbs_are_here(told):
    command = typer.main.get_command(app)
    verbs = set(command.commands)  # type: ignore[attr-defined]
    assert verbs == {name.partition(" ")[0] for name in told}


def test_all_extras_are_blocked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {"qdrant-client": "qdrant_client", "sentence-transformers": "sentence_transformers"}
    modules |= {"pillow-heif": "pillow_heif"}
    modules |= {"prometheus-client": "prometheus_client", "python-multipart": "python_multipart"}
    for extra, needs in project["optional-dependencies"].items():
        if extra in ("dev", "plugs"):
            continue
        for need in needs:
            name = need.partition(">")[0].partition("[")[0]
            assert modules.get(name, name) in EXTRAS, need
