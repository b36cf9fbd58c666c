"""The examples are short, and do what they show through the ordinary commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toys
from forks import command, run_ranks
from safetensors.torch import load_file

from mmgem.checkpoints.model_folder import load_model
from mmgem.cli.main import main
from mmgem.encoders import ENCODERS
from mmgem.errors import CheckpointError
from mmgem.models.connectors import CONNECTORS
from mmgem.search.stores import STORES
from mmgem.train import loop
from mmgem.utils.plugins import VARIABLE, load_plugin

EXAMPLES = Path(__file__).parents[1] / "examples"
OURS = ["--plugin", str(EXAMPLES / "encoder_color_grid.py"), "--plugin", str(EXAMPLES / "connector_gated.py")]
Run = Callable[..., tuple[int, str, str]]


def forget_plugins() -> None:
    """Be as a process that loaded none."""
    for name in [name for name in sys.modules if name.startswith("mmgem_plugin_")]:
        del sys.modules[name]
    for registry, names in (
        (ENCODERS, ["color_grid"]),
        (CONNECTORS, ["gated"]),
        (STORES, ["sqlite", "again"]),
    ):
        for name in names:
            registry._made.pop(name, None)
    os.environ.pop(VARIABLE, None)


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    forget_plugins()
    yield
    forget_plugins()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        return (main([str(part) for part in argv]), *capfd.readouterr())

    return command


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_shows_its_command(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 70
    assert f"mmgem --plugin examples/{path.name} " in text.split('"""')[1]


def recipe(folder: Path) -> list[object]:
    """A recipe of the encoder and the connector, and what ``mmgem train`` is given."""
    lm, _ = toys.base_models(folder / "bases")
    data = toys.photos(folder / "data")
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[data]
train = "{data}"
cache = "{folder / "features"}"
dev_split = ""
[image_text]
[preprocessing]
size = 32
lowercase = true
[init]
llm = "{lm}"
[model]
dim = 8
visual_tokens = 2
encoder = {{kind = "color_grid", config = {{size = 32, cells = 4, channels = 8}}}}
connector = {{kind = "gated", config = {{bias = 0.5}}}}
[optim]
warmup_steps = 2
lr_encoder = 1e-2
[train]
out = "{folder / "run"}"
epochs = 3
batch_size = 8
checkpoint_every = 2
keep_checkpoints = 9
threads = 1
grad_cache_chunk_size = 3
"""
    )
    return ["train", path]


def test_an_encoder_and_a_connector_of_ones_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = recipe(tmp_path)
    code, _, err = run(*train)
    assert code == 2 and err.count("\n") == 1
    assert (
        "model.encoder.kind: no encoder is called 'color_grid' (known: audio, clip, efficientnet_lite0, "
        in err
    )
    assert "--plugin" in err

    # Planned, and trained: alone; then stopped, and gone on with by two processes.
    code, said, err = run(*OURS, "plan", train[1], "--json")
    assert code == 0, err
    assert json.loads(said)["parameters"]["encoder"] == 8 * 6 * 9 + 8 + 8 * 8 + 8
    code, said, err = run(*OURS, *train, f"train.out={tmp_path / 'whole'}")
    assert code == 0, err
    model = Path(said.strip())
    plain = loop.train_step

    def stopped(run: Any, step: int, *more: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return plain(run, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert run(*OURS, *train)[0] == 130
    os.environ.pop(VARIABLE, None)  # the command line alone names the plugins
    run_ranks(tmp_path / "said", 2, command, [*OURS, *map(str, train)])
    whole, resumed = (
        load_file(str(folder / "checkpoints" / "step-00000009" / "weights.safetensors"))
        for folder in (tmp_path / "whole", tmp_path / "run")
    )
    assert {"encoder.mix.0.weight", "visual_connector.gate.weight"} <= whole.keys()
    for name, value in resumed.items():
        assert value.numpy() == pytest.approx(whole[name].numpy(), rel=1e-4, abs=1e-5), name
    first = load_file(str(tmp_path / "whole" / "checkpoints" / "step-00000002" / "weights.safetensors"))
    for name in ("encoder.mix.0.weight", "visual_connector.gate.weight"):
        assert not first[name].equal(whole[name]), name

    # Loaded again: with the plugins alone.
    photo = tmp_path / "data" / "images" / "0.png"
    assert run(*OURS, "caption", photo, "--model", model)[0] == 0
    for form in ("small", "onnx"):
        out = tmp_path / form
        code, _, err = run(*OURS, "export", model, out, "--format", form)
        assert code == 0, err
        embedded = [run(*OURS, "embed", photo, "--model", m, "--json")[1] for m in (model, out)]
        plain, exported = (json.loads(said)["embeddings"][0]["vector"] for said in embedded)
        assert exported == pytest.approx(plain, abs=0.02), form
    forget_plugins()
    code, _, err = run("caption", photo, "--model", model)
    assert code == 1 and err.count("\n") == 1
    assert "model.encoder.kind: no encoder is called 'color_grid'" in err and "--plugin" in err
    with pytest.raises(CheckpointError, match=r"no encoder is called 'color_grid'.*--plugin"):
        load_model(model)
    # A library's user loads them, or the environment names them.
    load_plugin(EXAMPLES / "encoder_color_grid.py")
    with pytest.raises(CheckpointError, match=r"model\.connector\.kind: no connector is called 'gated'"):
        load_model(model)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(OURS[1::2]))
    assert type(load_model(model)[0].visual_connector).__name__ == "Gated"


def test_a_store_of_ones_own(
    run: Run, tmp_path: Path, tiny_photos: list[Path], tiny_model_folder: Path
) -> None:
    plugin = ["--plugin", EXAMPLES / "store_sqlite.py"]
    index, place = tmp_path / "idx", f"sqlite:{tmp_path / 'p.db'}"
    made = run("index", tiny_photos[0].parent, "--out", index, "--regions", 2, "--model", tiny_model_folder)
    assert made[0] == 0, made
    code, _, err = run("store", "push", index, place)
    assert code == 2 and "is no store" in err and "--plugin" in err
    code, _, err = run(*plugin, "store", "search", place, "a dog")
    assert code == 1 and err.count("\n") == 1 and "unable to open" in err
    for added in (18, 0):
        code, said, err = run(*plugin, "store", "push", index, place, "--json")
        assert code == 0, err
        assert {"points": 18, "added": added, "removed": 0}.items() <= json.loads(said).items()
    for query in (["a red dog"], ["a red dog", "--regions"], ["--image", tiny_photos[2]]):
        code, said, err = run(*plugin, "store", "search", place, *query, "-k", 3, "--json")
        assert code == 0, err
        assert said == run("search", index, *query, "-k", 3, "--json")[1]
    code, _, err = run(*plugin, "store", "search", place, "a dog", "--name", "other")
    assert code == 2 and "holds no photos" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def", "SyntaxError"),
        (
            "from mmgem.encoders import ENCODERS\nENCODERS.register('none')(object)",
            "encoder 'none': the name is taken",
        ),
        (
            "from mmgem.search.stores import STORES\n"
            "STORES.register('again')(object)\nSTORES.register('again')(int)",
            "vector store 'again': the name is taken",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    code, said, err = run("--plugin", path, "store", "search", "qdrant:x", "a dog")
    assert (code, said) == (2, "") and err.count("\n") == 1
    assert f"plugin {path}: " in err and message in err
    assert run("--plugin", tmp_path / "none.py", "plan", path)[2].endswith("none.py: no such file\n")


def test_a_plugin_is_loaded_once_and_named_to_child_processes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import os\nos.environ['MET'] = os.environ.get('MET', '') + 'x'\n")
    monkeypatch.setenv("MET", "")
    monkeypatch.chdir(tmp_path)
    assert load_plugin("mine.py") is load_plugin(tmp_path / "mine.py")
    assert load_plugin("json").__name__ == "json"
    assert os.environ["MET"] == "x"
    assert os.environ[VARIABLE] == os.pathsep.join([str(tmp_path / "mine.py"), "json"])


def test_a_recipe_cannot_name_a_plugin(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "mine.py"
    bad.write_text("raise SystemExit('loaded')\n")
    path = recipe(tmp_path)[1]
    for key in ("model.encoder.plugin", "train.plugins", "plugins", "model.encoder.kind"):
        code, _, err = run("train", path, f"{key}={bad}")
        assert code == 2 and err.count("\n") == 1 and "loaded" not in err
