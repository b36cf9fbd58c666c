"""Queries without torch: the same embeddings, for the models that allow it, and the others as always."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toys
from test_cli import heavy

from mmgem import MMGEM
from mmgem.checkpoints.model_folder import save_model
from mmgem.checkpoints.resolve import PACKAGED
from mmgem.checkpoints.rounded import StoredArrays
from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.cli.main import main
from mmgem.data.tokens import even_shares
from mmgem.errors import CheckpointError, DataError
from mmgem.inference.query_encoder import QueryEncoder

TEXTS = ["the dog", "A Red Horse jumps on the beach. The cat runs! the dog", "dog " * 40, "snow"]


@pytest.mark.parametrize("options", [{}, {"text_pool": "mean"}, {"attention": "bidirectional"}])
@pytest.mark.parametrize("small", [False, True])
def test_as_the_network_embeds(tmp_path: Path, options: dict[str, str], small: bool) -> None:
    network = toys.network(seed=3, **options)
    save_model(tmp_path / "m", network, toys.tokenizer(), "# toy\n")
    model = MMGEM.from_pretrained(tmp_path / "m")
    if small:
        model.save_pretrained(tmp_path / "m", small=True)
        model = MMGEM.from_pretrained(tmp_path / "m")
    encoder = QueryEncoder.load(str(tmp_path / "m"))
    assert encoder is not None
    assert encoder.fingerprint == model.fingerprint and encoder.dim == model.dim
    for text in TEXTS:
        np.testing.assert_allclose(encoder.embed_texts([text]), model.embed_texts([text]), atol=2e-6)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS), model.embed_texts(TEXTS), atol=2e-6)
    for queries in (["dog"], TEXTS):
        np.testing.assert_allclose(encoder.embed_queries(queries), model.embed_queries(queries), atol=2e-6)
    assert encoder.embed_texts([]).shape == (0, model.dim)
    for wrong in ([""], ["a\ud800"]):
        for embed in (encoder.embed_texts, model.embed_texts):
            with pytest.raises(DataError):
                embed(wrong)


@pytest.mark.skipif(not (PACKAGED / "tiny" / "config.json").is_file(), reason="no packaged model")
def test_as_the_packaged_model_embeds() -> None:
    encoder, model = QueryEncoder.load("tiny"), MMGEM.from_pretrained("tiny", backend="torch")
    assert encoder is not None and encoder.fingerprint == model.fingerprint
    texts = [*TEXTS, "Zwei Hunde im Schnee — 雪の中の犬 🐕", "<|im_end|> a token's name", "a  b\tc\nd"]
    for text in texts:
        np.testing.assert_allclose(encoder.embed_texts([text]), model.embed_texts([text]), atol=5e-6)


def test_other_models_are_left_to_torch(tmp_path: Path) -> None:
    for llm in ("gpt2", "gemma2", "mistral"):
        save_model(tmp_path / llm, toys.network(llm), toys.tokenizer(), "# toy\n")
        assert QueryEncoder.load(str(tmp_path / llm)) is None
    save_model(tmp_path / "m", toys.network(), toys.tokenizer(), "# toy\n")
    (tmp_path / "m" / "graphs").mkdir()
    assert QueryEncoder.load(str(tmp_path / "m")) is None
    (tmp_path / "m" / "graphs").rmdir()
    assert QueryEncoder.load(str(tmp_path / "m")) is not None
    for change in ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
                   {"attention_bias": True}, {"new_thing": 1}, {"head_dim": 4}):  # fmt: skip
        file = tmp_path / "m" / "config.json"
        before = file.read_text()
        config = json.loads(before)
        config["model"]["llm"]["config"] |= change
        file.write_text(json.dumps(config))
        assert QueryEncoder.load(str(tmp_path / "m")) is None
        file.write_text(before)


def test_damage_is_an_error(model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        QueryEncoder.load(str(model_copy))


def test_rounded_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    tensors = {"four": torch.randn(6, 64), "eight": torch.randn(5, 7), "half": torch.randn(9)}
    tensors["plain"] = torch.randn(4, 3)
    save_tensors(tmp_path / "w.safetensors", tensors, {"four": 4, "eight": 8, "half": 16})
    loaded, arrays = load_tensors(tmp_path / "w.safetensors"), StoredArrays(tmp_path / "w.safetensors")
    assert arrays.shapes == {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(arrays.read(name), tensor.numpy())
    rows = np.array([3, 0, 3])
    for name in ("four", "eight", "plain"):
        np.testing.assert_array_equal(arrays.read(name, rows), loaded[name].numpy()[rows])


def test_shares_are_those_of_torch() -> None:
    import torch

    for size in range(1, 12):
        for count in range(1, size + 1):
            expected = [share.tolist() for share in torch.arange(size).tensor_split(count)]
            assert even_shares(list(range(size)), count) == expected


def test_a_search_imports_no_torch(tiny_photos: list[Path], tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "idx"
    assert main(["index", str(tiny_photos[0].parent), "--out", str(out), "-m", str(tiny_model_folder)]) == 0
    assert {"torch", "transformers"}.isdisjoint(heavy("search", out, "the dog", "--min-score", "-1"))
    assert {"torch", "transformers"}.isdisjoint(heavy("search", out, '"the dog" -"snow"', "--json"))
    assert "torch" in heavy("search", out, "--image", tiny_photos[0])
    assert "torch" in heavy("search", out, "the dog", "--precision", "bfloat16")


def test_a_device_that_is_not_there(
    tiny_photos: list[Path], tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["caption", str(tiny_photos[0]), "-m", str(tiny_model_folder), "--device"]
    assert main([*argv, "abacus"]) == 2
    assert "--device abacus: " in capfd.readouterr().err
    assert main([*argv, "cpu"]) == 0


def test_the_benchmark_runs(tiny_photos: list[Path], tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "idx"
    assert main(["index", str(tiny_photos[0].parent), "--out", str(out), "-m", str(tiny_model_folder)]) == 0
    script = Path(__file__).parents[1] / "benchmarks" / "shell_search.py"
    done = subprocess.run(
        [sys.executable, str(script), "--index", str(out), "--runs", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "import torch" in done.stdout, done.stderr
