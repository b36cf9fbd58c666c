"""Exported graphs embed as torch does, wherever a model embeds; what is read small is read right."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from mmgem import MMGEM
from mmgem.checkpoints.model_folder import save_model
from mmgem.cli.main import main
from mmgem.errors import CheckpointError, UsageError
from mmgem.export import graphs, write
from mmgem.export.graphs import TextGraph
from mmgem.export.run import Kind, Precision, wanted_graphs
from mmgem.export.write import export_graphs
from mmgem.inference.images import encode_images, map_images, preprocess_image

TEXTS = [
    "a dog runs on the beach",
    "snow",
    "two men and a child. the boat is on the sea near the house",
    "cat",
]


@pytest.mark.parametrize("pool", ["emb", "mean"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("llm", toys.LLMS)
def test_the_padded_text_path_is_the_packed_one(llm: str, attention: str, pool: str) -> None:
    network = toys.network(llm, "none", attention=attention, text_pool=pool)
    ids = toys.sequences([1, 5, 12, 3])
    padded = pad_sequence(
        [torch.cat([row, torch.tensor([7])]) for row in ids], batch_first=True, padding_value=3
    )
    with torch.inference_mode():
        found = TextGraph(network)(padded, torch.tensor([len(row) for row in ids]))
        assert torch.allclose(found, network.encode_text(ids), atol=1e-4)


@pytest.mark.parametrize("llm", ["mistral", "windowed gemma3"])
def test_traced_graphs_keep_the_windows(llm: str) -> None:
    """Traced on texts within the window, and run on longer ones."""
    network = toys.network(llm, "none")
    dynamic = torch.export.Dim.DYNAMIC
    inputs = (torch.zeros(3, 4, dtype=torch.long), torch.tensor([3, 2, 1]))
    with torch.no_grad():
        program = torch.export.export(
            TextGraph(network).eval(),
            inputs,
            dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic}),
            strict=True,
        )
        for counts in ([2, 1], [12, 3, 9, 30]):
            ids = toys.sequences(counts)
            padded = pad_sequence(ids, batch_first=True)
            padded = torch.nn.functional.pad(padded, (0, 1))
            vectors = program.module()(padded, torch.tensor(counts))
            torch.testing.assert_close(vectors, network.encode_text(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind, precision, least",
    [
        ("onnx", "float32", 0.9999),
        ("onnx", "int8", 0.99),
        ("openvino", "float32", 0.9999),
        ("openvino", "bfloat16", 0.99),
        ("openvino", "int8", 0.99),
    ],
)
def test_graphs_embed_as_torch_does(
    kind: Kind,
    precision: Precision,
    least: float,
    tiny_model_folder: Path,
    tiny_photos: list[Path],
    tmp_path: Path,
    traced_once: None,
) -> None:
    facts = export_graphs(tiny_model_folder, tmp_path / "fast", kind, precision, 0.98)
    plain, fast = (MMGEM.from_pretrained(folder) for folder in (tiny_model_folder, tmp_path / "fast"))
    assert facts.kind == kind and fast.fingerprint == plain.fingerprint
    boxes = [None, (3, 4, 30, 30)] * 3
    for own, other in (
        (plain.embed_images(tiny_photos), fast.embed_images(tiny_photos)),
        (plain.embed_images(tiny_photos, boxes), fast.embed_images(tiny_photos, boxes)),
        (plain.embed_texts(TEXTS), fast.embed_texts(TEXTS)),
    ):
        assert (own * other).sum(1).min() >= least
    if precision == "float32":
        assert fast.caption(tiny_photos[:2]) == plain.caption(tiny_photos[:2])
        assert np.allclose(
            fast.heatmap(tiny_photos[0], TEXTS), plain.heatmap(tiny_photos[0], TEXTS), atol=1e-3
        )
        again = MMGEM.from_pretrained(tmp_path / "fast", backend="torch")
        assert np.array_equal(again.embed_texts(TEXTS), plain.embed_texts(TEXTS))
        other = "openvino" if kind == "onnx" else "onnx"
        with pytest.raises(CheckpointError, match=f"no {other} graphs; mmgem export"):
            MMGEM.from_pretrained(tmp_path / "fast", backend=other)
        with pytest.raises(UsageError, match="load it with backend='torch' and precision='float32'"):
            fast.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("kind, precision", [("onnx", "float32"), ("onnx", "int8"), ("openvino", "int8")])
def test_large_weights_lie_beside_the_graph(
    kind: Kind,
    precision: Precision,
    tmp_path: Path,
    traced_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "_LARGE", 0)  # bytes
    save_model(tmp_path / "texts", toys.network(encoder="none"), toys.tokenizer(), "# Texts\n")
    export_graphs(tmp_path / "texts", tmp_path / "fast", kind, precision, 0.98)
    files = {file.name for file in (tmp_path / "fast" / "graphs").iterdir()}
    weights = {"text.onnx", "text.onnx.data"} if kind == "onnx" else {"text.xml", "text.bin"}
    assert files == {"graphs.json", *weights}
    plain, fast = (MMGEM.from_pretrained(tmp_path / name).embed_texts(TEXTS) for name in ("texts", "fast"))
    assert (plain * fast).sum(1).min() >= 0.98


def test_an_index_is_searched_by_graphs(
    tiny_model_folder: Path,
    tiny_photos: list[Path],
    tmp_path: Path,
    traced_once: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fast, index = str(tmp_path / "fast"), str(tmp_path / "idx")
    assert main(["export", str(tiny_model_folder), fast, "--format", "onnx"]) == 0
    out, notes = capsys.readouterr()
    assert out.strip() == fast and "lowest cosine with torch on samples: images 1.0000" in notes
    photos = str(tiny_photos[0].parent)
    assert main(["index", photos, "--out", index, "--model", str(tiny_model_folder), "--regions", "2"]) == 0
    found = []
    for model in (str(tiny_model_folder), fast):
        capsys.readouterr()
        assert main(["search", index, "a dog", "--model", model]) == 0
        assert main(["search", index, "--image", str(tiny_photos[0]), "--model", model, "--regions"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_what_would_embed_otherwise_is_not_written(
    tiny_model_folder: Path,
    tmp_path: Path,
    traced_once: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "export",
        str(tiny_model_folder),
        str(tmp_path / "out"),
        "--format",
        "onnx",
        "--precision",
        "int8",
    ]
    assert main([*command, "--min-cosine", "1"]) == 1
    assert "texts of the int8 graphs agree with torch to cosine 0.99" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for wrong, said in (
        (["--format", "tflite"], "'tflite' is not one of 'small', 'full', 'adapter', 'onnx', 'openvino'"),
        (["--precision", "int8"], "--precision and --min-cosine are for"),
        (["--format", "onnx", "--average", "tiny"], "--average and --pca-rotate are for"),
        (["--format", "onnx", "--precision", "bfloat16"], "bfloat16 is for openvino"),
    ):
        assert main(["export", str(tiny_model_folder), str(tmp_path / "out"), *wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_missing_library_is_named(
    tiny_model_folder: Path, tmp_path: Path, traced_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_graphs(tiny_model_folder, tmp_path / "fast", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"need onnxruntime: pip install 'mmgem\[export\]'"):
        MMGEM.from_pretrained(tmp_path / "fast")
    (tmp_path / "fast" / "graphs" / "graphs.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"graphs\.kind: missing"):
        MMGEM.from_pretrained(tmp_path / "fast")


def test_graphs_of_other_weights_are_refused(
    tiny_model_folder: Path, tmp_path: Path, traced_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = tmp_path / "fast"
    export_graphs(tiny_model_folder, fast, "onnx")
    kept = shutil.copytree(fast / "graphs", tmp_path / "kept")
    tensors = load_file(fast / "model.safetensors")
    save_file({**tensors, "emb_token": tensors["emb_token"] + 1}, fast / "model.safetensors")
    (fast / "checksums.json").unlink()
    with pytest.raises(
        CheckpointError, match="graphs: the model beside these graphs is not the one they were"
    ):
        MMGEM.from_pretrained(fast)
    trained = MMGEM.from_pretrained(fast, backend="torch")
    monkeypatch.setattr(
        write,
        "write_onnx",
        lambda _network, _sides, folder: shutil.copytree(kept, folder, dirs_exist_ok=True),
    )
    export_graphs(fast, fast, "onnx", min_cosine=-1)  # in its own place
    assert MMGEM.from_pretrained(fast).fingerprint == trained.fingerprint


def test_large_photos_are_read_small_and_seen_alike(tmp_path: Path) -> None:
    scene = Image.open(Path(__file__).parents[1] / "docs" / "demo.jpg").convert("RGB")
    picture = scene.crop((0, 0, 600, 450)).resize((4000, 3000), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "large.jpg", quality=92)
    model = MMGEM.from_pretrained("tiny")
    whole = Image.open(tmp_path / "large.jpg")
    whole.load()
    drafted, full = model.embed_images([tmp_path / "large.jpg", whole])
    assert drafted @ full >= 0.998


def test_threads_change_nothing(tiny_photos: list[Path]) -> None:
    network, prep = toys.network(), toys.prep(scales=(48,))
    same = Image.open(tiny_photos[0])  # one picture twice: it must not be loaded by two threads
    images = [*tiny_photos, tiny_photos[0].read_bytes(), same, same]
    before = torch.get_num_threads()
    seen = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            seen.append(map_images(partial(preprocess_image, prep), images))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*seen, strict=True):
        assert [square.shape[0] for square in one] == [32, 48]
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    with torch.inference_mode():
        whole = encode_images(network, prep, images)
        assert torch.allclose(encode_images(network, prep, images, [[None]] * len(images)), whole)


def test_graphs_of_before_are_read(tiny_model_folder: Path, tmp_path: Path, traced_once: None) -> None:
    fast = tmp_path / "fast"
    info = export_graphs(tiny_model_folder, fast, "onnx")
    file = fast / "graphs" / "graphs.json"
    file.write_text(file.read_text().replace("min_cosine", "least_cosine"))
    assert wanted_graphs(fast, "onnx", "cpu") == info
