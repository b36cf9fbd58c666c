"""Weights on disk: exact as they are, or rounded to 8 or 4 bits within known bounds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model

from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.rounded import GROUP_OF_4_BITS
from mmgem.checkpoints.tensors import _umask, dequantize, load_tensors, quantize, save_tensors
from mmgem.errors import CheckpointError, UsageError
from mmgem.export.compress import average_weights, compress_model

HALF = 2.0**-11
"""Largest relative error of rounding to float16."""
TINY = 2.0**-24
"""Smallest step of float16."""


def grouped(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix cut into the groups that share a scale: 32 columns at 4 bits, a row at 8."""
    return weight.unflatten(-1, (-1, GROUP_OF_4_BITS if bits == 4 else weight.shape[-1]))


def bound(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Largest error of rounding each group of ``weight``, per group."""
    groups = grouped(weight, bits)
    low, high = groups.amin(-1), groups.amax(-1)
    step = (high - low) / (2**bits - 1)
    return 0.51 * step + HALF * (low.abs() + high.abs()) + 2**bits * TINY / 2


@pytest.mark.parametrize("bits", [8, 4])
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 100), st.floats(-10, 10))
def test_error_is_bounded(bits: int, seed: int, scale: float, shift: float) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 128)).astype(np.float32))
    weight = weight * scale + shift
    back = dequantize(quantize(weight, bits), bits)
    assert back.dtype == torch.float32
    error = grouped((back - weight).abs(), bits).amax(-1)
    assert (error <= bound(weight, bits)).all()


@pytest.mark.parametrize("bits", [8, 4])
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 100))
def test_rounding_twice_is_rounding_once(bits: int, seed: int, scale: float) -> None:
    # Weights of both signs, as a token table's are: training on the rounded table, then shipping it rounded.
    weight = (
        torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 128)).astype(np.float32)) * scale
    )
    once = quantize(weight, bits)
    twice = quantize(dequantize(once, bits), bits)
    for part in ("q", "scale", "low"):
        assert torch.equal(once[part], twice[part])


@pytest.mark.parametrize("bits", [8, 4])
def test_constant_groups_stay_constant(bits: int) -> None:
    weight = torch.tensor([[0.0], [0.1], [-3.3], [1e-5]]).expand(4, 64)
    back = dequantize(quantize(weight, bits), bits)
    torch.testing.assert_close(back, weight, atol=3e-7, rtol=2 * HALF)


def test_four_bits_take_an_eighth_of_the_space() -> None:
    parts = quantize(torch.randn(64, 256), 4)
    assert parts["q"].dtype == torch.uint8
    assert sum(p.numel() * p.element_size() for p in parts.values()) <= 64 * 256 * 4 / 6.4


def test_file_round_trip(tmp_path: Path) -> None:
    tensors = {
        "table": torch.randn(6, 64),
        "kernel": torch.randn(4, 8, 4, 2),
        "odd": torch.randn(5, 7),
        "bias": torch.randn(9),
        "exact": torch.randn(3, 64),
        "counts": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(4, 6).T,
    }
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors, {"table": 4, "kernel": 8, "odd": 4, "bias": 4})
    back = load_tensors(path)
    assert back.keys() == tensors.keys()
    for name in ("exact", "counts", "scalar", "turned"):
        assert torch.equal(back[name], tensors[name])
    assert torch.equal(back["table"], dequantize(quantize(tensors["table"], 4), 4))
    flat = tensors["kernel"].reshape(4, 64)
    assert torch.equal(back["kernel"], dequantize(quantize(flat, 8), 8).reshape(4, 8, 4, 2))
    # Where groups do not fit the shape, half precision.
    for name in ("odd", "bias"):
        assert torch.equal(back[name], tensors[name].half().float())
    assert load_file(str(path))["table.q"].dtype == torch.uint8


def test_plain_safetensors_files_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"w": torch.randn(2, 2), "h": torch.ones(2).half()}, str(path))
    assert load_tensors(path)["h"].dtype == torch.float32


def test_a_file_that_is_not_whole_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_tensors(path)
    save_tensors(path, {"w": torch.randn(64, 64)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_tensors(path)


def test_a_lost_part_of_a_rounded_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"w.q": torch.zeros(2, 64, dtype=torch.uint8), "w.low": torch.zeros(2, 1)},
        str(path),
        metadata={"quantized": '{"w": {"bits": 8, "shape": [2, 64]}}'},
    )
    with pytest.raises(CheckpointError, match=r"w\.scale"):
        load_tensors(path)


def test_two_models_are_averaged(tmp_path: Path) -> None:
    one, two = (save_tiny_model(tmp_path / str(seed), seed=seed) for seed in range(2))
    a, b = load_model(one)[0].state_dict(), load_model(two)[0].state_dict()
    network, _ = load_model(one)
    average_weights(network, load_model(two)[0], 0.25)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, 0.75 * a[name] + 0.25 * b[name])
    halves, zeros = toys.network(), toys.network()
    for same in (halves, zeros):
        torch.nn.init.constant_(same.emb_token, -0.0)
    average_weights(halves, zeros, 0.25)
    assert halves.emb_token.signbit().all()  # what is equal keeps its bits
    compress_model(one, tmp_path / "mixed", two, 0.25)
    mixed = load_model(tmp_path / "mixed")[0].state_dict()
    torch.testing.assert_close(
        mixed["emb_token"], 0.75 * a["emb_token"] + 0.25 * b["emb_token"], atol=1e-3, rtol=1e-3
    )
    with pytest.raises(CheckpointError, match="different shapes"):
        average_weights(network, toys.network(dim=4), 0.5)
    with pytest.raises(UsageError, match="alpha must be from 0 to 1"):
        average_weights(network, network, 1.5)
    if os.name == "posix":
        assert (tmp_path / "mixed" / "model.safetensors").stat().st_mode & 0o044 == 0o044 & ~_umask()


def test_tensors_may_lie_in_one_piece_of_memory(tmp_path: Path) -> None:
    """Side by side they are written as they lie; in one another's memory they are copied."""
    whole = torch.arange(12.0)
    tensors = {
        "right": whole[8:],
        "left": whole[:8].view(2, 4),
        "inside": whole[2:4],
        "same": whole,
        "turned": whole.view(3, 4).T,
        "none": whole[:0],
    }
    path = tmp_path / "t.safetensors"
    save_tensors(path, dict(tensors))
    back = load_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name
