"""The model folder: loads equal, offline and whole, or says by name what is wrong; survives any kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file, save_file

from mmgem.checkpoints.initialize import init_network
from mmgem.checkpoints.model_folder import load_model, own_tensors, save_model
from mmgem.checkpoints.resolve import fingerprint, resolve
from mmgem.errors import CheckpointError, ConfigError, UsageError
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.files import write_folder


def outputs(network: MMGEMNetwork) -> torch.Tensor:
    """Something that every part of the network has a hand in."""
    torch.manual_seed(0)
    with torch.no_grad():
        side = network.encoder.size
        visual = network.encode_image(network.encoder(torch.randn(2, 3, side, side)))
        texts, states = toys.packed(
            network, toys.sequences([3, 5]), toys.sequences([4, 2]), network.project_visual_prefix(visual)
        )
        return torch.cat([visual.flatten(), texts.flatten(), network.llm.logits(states).flatten()])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, toys.network("qwen2"), toys.tokenizer(), "a card")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_loads_equal(folder: Path) -> None:
    network, tokenizer = load_model(folder)
    assert not network.training
    assert network.config == toys.network("qwen2").config
    assert torch.equal(outputs(network), outputs(toys.network("qwen2")))
    assert tokenizer.prep == toys.prep()
    assert tokenizer.encode_all(["a dog runs"])[0].tolist() == [2, 4, 9]
    assert {"config.json", "preprocessor.json", "tokenizer.json", "model.safetensors", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "README.md").read_text() == "a card"


def test_saving_what_was_loaded_changes_nothing(folder: Path) -> None:
    network, tokenizer = load_model(folder)
    before = (folder / "model.safetensors").read_bytes(), fingerprint(folder)
    save_model(folder, network, tokenizer, "a card")
    assert ((folder / "model.safetensors").read_bytes(), fingerprint(folder)) == before


@pytest.mark.parametrize("llm", ["qwen2", "gpt2", "gemma3", "llama"])
def test_tied_embeddings_are_saved_once(llm: str, tmp_path: Path) -> None:
    network = toys.network(llm)
    save_model(tmp_path / "model", network, toys.tokenizer(), "")
    names = [
        n for n, t in load_file(str(tmp_path / "model" / "model.safetensors")).items() if len(t.shape) == 2
    ]
    tables = [n for n in names if "embed_tokens" in n or "wte" in n or "lm_head" in n]
    assert len(tables) == (2 if llm == "llama" else 1)
    loaded, _ = load_model(tmp_path / "model")
    head, table = loaded.llm.lm.get_output_embeddings().weight, loaded.llm.lm.get_input_embeddings().weight
    assert (head is table) == (llm != "llama")


def test_rounded_weights(folder: Path) -> None:
    network, tokenizer = load_model(folder)
    exact = outputs(network)
    bits = {n: 8 for n, t in own_tensors(network).items() if t.ndim >= 2}
    save_model(folder, network, tokenizer, "", bits)
    rounded = outputs(load_model(folder)[0])
    # Every matrix is off by up to half a 255th of its rows' range.
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=0) > 0.999
    assert not torch.equal(rounded, exact)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    (folder / "checksums.json").unlink()
    tensors = load_file(str(path))
    for change, message in (
        (
            lambda t: t.pop("visual_projection.1.weight"),
            r"model\.safetensors: .*missing visual_projection\.1\.weight",
        ),
        (lambda t: t.update(extra=torch.zeros(1)), r"unexpected extra"),
        (
            lambda t: t.update({"emb_token": torch.zeros(3)}),
            r"wrong shape emb_token \(3,\) instead of \(16,\)",
        ),
    ):
        changed = dict(tensors)
        change(changed)
        save_file(changed, str(path))
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)
    save_file({}, str(path))
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_model(folder)


def test_a_folder_that_is_not_whole_is_refused(folder: Path) -> None:
    for name, message in (
        ("config.json", r"config\.json: missing"),
        ("preprocessor.json", r"preprocessor\.json: missing"),
        ("model.safetensors", r"model\.safetensors: missing"),
        ("tokenizer.json", "no usable tokenizer"),
    ):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)
        (folder / name).write_bytes(content)
    load_model(folder)
    with pytest.raises(CheckpointError, match="no such model folder"):
        load_model(folder / "none")


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("config.json", ["format"], 99, "format 99"),
        ("config.json", ["model", "dims"], 8, r"model\.dims: unknown field"),
        ("config.json", ["model", "dim"], "8", r"model\.dim: expected int"),
        ("config.json", ["model", "llm", "config", "model_type"], "nonsense", r"model\.llm\.config"),
        ("config.json", ["model", "encoder", "config", "model_type"], "nonsense", r"model\.encoder\.config"),
        ("preprocessor.json", ["resize"], "stretch", r"preprocessor\.resize: 'stretch' is not one of"),
        ("preprocessor.json", ["size"], 48, r"preprocessing\.size: 48, but the encoder reads 32"),
    ],
)
def test_wrong_config_is_refused_by_field(
    folder: Path, name: str, path: list[str], value: object, message: str
) -> None:
    data = json.loads((folder / name).read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / name).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_config_that_is_not_json_is_refused(folder: Path) -> None:
    for text, message in (("{", "not JSON"), ("[1]", "expected an object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
            load_model(folder)


class Killed(BaseException):
    """What a process that dies looks like to the code it dies in."""


@pytest.mark.parametrize("files_written", [0, 1, 2])
def test_a_kill_while_writing_leaves_the_old_model(folder: Path, files_written: int) -> None:
    def fill(new: Path) -> None:
        for i in range(files_written):
            (new / f"{i}.bin").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        write_folder(folder, fill)
    assert folder.with_name("model.mmgem-new").is_dir()
    before = outputs(load_model(folder)[0])
    other = toys.network("qwen2", seed=1)
    save_model(folder, other, toys.tokenizer(), "")
    assert torch.equal(outputs(load_model(folder)[0]), outputs(other))
    assert not torch.equal(before, outputs(other))
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_kill_between_the_renames_leaves_a_model(folder: Path) -> None:
    before = outputs(load_model(folder)[0])
    # The old folder is out of the way, the new one not yet in its place.
    shutil.copytree(folder, folder.with_name("model.mmgem-new"))
    folder.rename(folder.with_name("model.mmgem-old"))
    assert torch.equal(outputs(load_model(folder)[0]), before)
    assert resolve(folder) == folder.with_name("model.mmgem-old")
    save_model(folder, toys.network("qwen2", seed=1), toys.tokenizer(), "")
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert resolve(folder) == folder


def test_a_kill_before_the_old_folder_is_deleted(folder: Path) -> None:
    # Both names are there: the new model counts, the leftover goes with the next write.
    shutil.copytree(folder, folder.with_name("model.mmgem-old"))
    (folder.with_name("model.mmgem-old") / "config.json").unlink()
    network, tokenizer = load_model(folder)
    save_model(folder, network, tokenizer, "")
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_what_is_no_model_is_not_replaced(folder: Path) -> None:
    network, tokenizer = load_model(folder)
    mine = folder.with_name("photos")
    beside = [folder.with_name(name) for name in ("model.old", "model.new", "photos")]
    for place in beside:
        place.mkdir()
        (place / "photo.jpg").write_bytes(b"mine")
    (mine / "config.json").write_text('{"model_type": "llama"}')
    link = folder.with_name("link")
    link.symlink_to(folder)
    for place, said in ((mine, "other things"), (mine / "photo.jpg", "no folder"), (link, "no folder")):
        with pytest.raises(UsageError, match=said):
            save_model(place, network, tokenizer, "")
    empty = folder.with_name("empty")
    empty.mkdir()
    for place in (folder, empty):
        save_model(place, network, tokenizer, "")
        load_model(place)
    assert all((place / "photo.jpg").read_bytes() == b"mine" for place in beside)
    assert link.is_symlink()


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        resolve(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such model"):
        resolve("nothing")


def test_fingerprint_tells_models_apart(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    assert fingerprint(Path(shutil.copytree(folder, tmp_path / "copy"))) == before
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    seen = {before}
    for name, tensor in tensors.items():  # each alone: a vector of [EMB] as well as a large matrix
        save_file({**tensors, name: tensor + 0.01}, weights)
        seen.add(fingerprint(folder))
    assert len(seen) == 1 + len(tensors)
    for damage in (
        weights.read_bytes()[:-1],
        b"no weights, but of some length",
        b"",
        b"\x02" + bytes(7) + b"[]",
    ):
        weights.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged, or not in the safetensors"):
            fingerprint(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        fingerprint(folder)


def test_a_shipped_copy_is_small_and_nearly_the_same(tmp_path: Path, tiny_model_folder: Path) -> None:
    from mmgem import MMGEM
    from mmgem.export.compress import compress_model

    size = compress_model(tiny_model_folder, tmp_path / "small")
    weights = (tmp_path / "small" / "model.safetensors").stat().st_size
    # Toy matrices are small beside the names and scales; real ones shrink to a quarter and an eighth.
    assert weights < (tiny_model_folder / "model.safetensors").stat().st_size
    assert size >= weights
    texts = ["a dog runs", "a red car on a street"]
    before = MMGEM.from_pretrained(tiny_model_folder).embed_texts(texts)
    after = MMGEM.from_pretrained(tmp_path / "small").embed_texts(texts)
    assert (before * after).sum(1).min() > 0.98


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_turned_model_is_the_same_one(projection: str) -> None:
    from mmgem.export.rotate import rotate_embedding_space
    from mmgem.inference.pca import pca_components

    network = toys.network(projection=projection, dropout=0.0)
    maps = network.encoder(torch.randn(6, 3, network.encoder.size, network.encoder.size))
    ids = toys.sequences([3, 5, 9])
    with torch.inference_mode():
        photos, texts = network.encode_image(maps), network.encode_text(ids)
        words = network.project_visual_prefix(photos)
        axes = pca_components(photos[:, 0].numpy(), network.config.dim)
        rotate_embedding_space(network, axes)
        turned = network.encode_image(maps)
        assert torch.allclose(turned, photos @ torch.from_numpy(axes), atol=1e-5)
        assert torch.allclose(network.encode_text(ids) @ turned[:, 0].T, texts @ photos[:, 0].T, atol=1e-4)
        assert torch.allclose(network.project_visual_prefix(turned), words, atol=1e-5)
    lengths = turned[:, 0].square().sum(0)
    assert (lengths.diff() <= 1e-4).all()


def test_dimensions_are_ordered_on_export(
    tmp_path: Path, tiny_model_folder: Path, tiny_photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from mmgem import MMGEM
    from mmgem.cli.main import main

    command = ["export", str(tiny_model_folder), str(tmp_path / "turned")]
    assert main([*command, "--pca-rotate", str(tiny_photos[0].parent)]) == 0
    before, after = (
        MMGEM.from_pretrained(f).embed_images(tiny_photos) for f in (tiny_model_folder, command[2])
    )
    assert np.allclose(after @ after.T, before @ before.T, atol=0.02)
    lengths = np.square(after).sum(0)
    assert (np.diff(lengths) <= 0.02).all() and lengths[:4].sum() > np.square(before).sum(0)[:4].sum()
    capsys.readouterr()
    assert main([*command, "--pca-rotate", str(tmp_path / "none")]) == 2
    assert "none: no such file" in capsys.readouterr().err
    assert main([*command, "--pca-rotate", str(tmp_path), "--format", "onnx"]) == 2
    assert "--average and --pca-rotate are for --format small" in capsys.readouterr().err


def test_the_language_side_of_a_model_before_another_encoder(tmp_path: Path) -> None:
    old = toys.network(seed=5)
    save_model(tmp_path / "old", old, toys.tokenizer(), "card")
    data = toys.photos(tmp_path / "photos", train=4, dev=2)
    lm, encoder = toys.base_models(tmp_path, seed=1)
    recipe = toys.recipe(tmp_path, data, tmp_path / "old", encoder)
    new, tokenizer = init_network(recipe)
    base, _ = init_network(toys.recipe(tmp_path, data, lm, encoder))
    ids = toys.sequences([3, 5])
    assert torch.equal(new.encode_text(ids), old.encode_text(ids)) and tokenizer.prep == recipe.preprocessing
    visual = torch.randn(2, 1, old.config.dim)
    assert torch.equal(new.project_visual_prefix(visual), old.project_visual_prefix(visual))
    for name, value in base.encoder.state_dict().items():
        assert torch.equal(new.encoder.state_dict()[name], value)
    recipe.model.dim *= 2
    with pytest.raises(ConfigError, match=r"init\.llm: its .*set \[model\] as it is there"):
        init_network(recipe)
