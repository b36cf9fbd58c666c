"""A model as an adapter beside its base LLM, and whole again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from mmgem import MMGEM
from mmgem.checkpoints import resolve
from mmgem.checkpoints.model_folder import save_model
from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.cli.main import main
from mmgem.errors import CheckpointError, MissingModelError, UsageError
from mmgem.export.adapter import ADAPTER_FILE, compose_model, is_adapter, write_adapter
from mmgem.utils.files import folder_bytes

TEXTS = ["a red dog", "the dog runs"]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A base LLM, and a model that has changed its blocks by a rank of 2, and a norm."""
    from transformers import AutoModelForCausalLM

    base = toys.base_models(tmp_path / "bases")[0]
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    network = toys.network("llama", "none")
    network.load_base_llm(lm)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in network.llm.blocks.named_parameters():
            if value.ndim == 2:
                value += 0.1 * torch.randn(len(value), 2) @ torch.randn(2, value.shape[1])
            elif "input" in name:
                value += 0.1
    save_model(tmp_path / "model", network, toys.tokenizer(), "# a card\n")
    return base, tmp_path / "model"


def test_base_and_adapter_are_the_model(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, model = trained
    command = ["export", str(model), str(tmp_path / "adapter"), "--format", "adapter", "--base", str(base)]
    assert main([*command, "--rank", "2"]) == 0
    assert is_adapter(tmp_path / "adapter") and not is_adapter(model)
    assert folder_bytes(tmp_path / "adapter") < folder_bytes(model) / 2
    stored = load_tensors(tmp_path / "adapter" / ADAPTER_FILE)
    assert not any("embed_tokens" in name for name in stored)
    assert {value.shape[1] for name, value in stored.items() if name.endswith(".up")} == {2}
    assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "whole"), "--format", "full"]) == 0
    one, other = (MMGEM.from_pretrained(path).embed_texts(TEXTS) for path in (model, tmp_path / "whole"))
    np.testing.assert_allclose(other, one, atol=5e-3)  # the LLM is kept in 16 bits
    assert (tmp_path / "whole" / "README.md").read_text() == "# a card\n"
    assert main(["check", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    for wrong in ([], ["--format", "onnx"]):
        assert main(["export", str(tmp_path / "adapter"), str(tmp_path / "no"), *wrong]) == 2
        assert "is an adapter" in capsys.readouterr().err
    assert main(["export", str(model), str(tmp_path / "no"), "--base", str(base)]) == 2


def test_what_is_no_adapter_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    base, model = trained
    with pytest.raises(UsageError, match=r"differs from .* by a rank of 2, above 1"):
        write_adapter(model, str(base), tmp_path / "adapter", 1)
    write_adapter(model, str(base), tmp_path / "adapter", 8)
    with pytest.raises(UsageError, match="adapter"):
        write_adapter(model, str(base), model, 8)
    weights = base / "model.safetensors"
    before = weights.read_bytes()
    tensors = load_tensors(weights, None)
    save_tensors(weights, {name: value + 1e-3 for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match="was made for other weights"):
        compose_model(tmp_path / "adapter", tmp_path / "whole")
    weights.write_bytes(before)
    (tmp_path / "adapter" / ADAPTER_FILE).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=ADAPTER_FILE):
        compose_model(tmp_path / "adapter", tmp_path / "whole")


def test_a_packaged_adapter_is_made_whole_by_pull(
    trained: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, model = trained
    monkeypatch.setattr(resolve, "PACKAGED", tmp_path / "weights")
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    write_adapter(model, str(base), tmp_path / "weights" / "words", 2)
    assert resolve.packaged_models() == ["words"]
    with pytest.raises(MissingModelError, match=r"words: ships as .* mmgem pull words makes it whole"):
        MMGEM.from_pretrained("words")
    assert main(["pull", "word"]) == 2
    assert "there are tiny, photos, words, smollm2" in capsys.readouterr().err
    assert main(["pull", "words"]) == 0
    name, _, folder = capsys.readouterr().out.strip().partition("\t")
    assert name == "words" and Path(folder).is_relative_to(tmp_path / "cache")
    one, other = (MMGEM.from_pretrained(name).embed_texts(TEXTS) for name in (model, "words"))
    np.testing.assert_allclose(other, one, atol=5e-3)
    assert resolve.lasting_name("words") == "words" and resolve.own_folder("words") == Path(folder)
    made = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert main(["pull", "words"]) == main(["check", "words"]) == 0
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == made
    assert resolve.packaged_adapter(str(tmp_path / "weights" / "words")) is None
