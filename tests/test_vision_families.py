"""Every family of vision models in the table works as it says, or is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.encoders.base import Encoder
from mmgem.encoders.families import FAMILIES, REFUSED, Family
from mmgem.encoders.transformers_vision import TransformersEncoder
from mmgem.errors import ConfigError

NAMES = [family.model_type for family in FAMILIES]
PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def built(family: Family) -> TransformersEncoder:
    """The family's tiny model, with weights wide enough for a picture to matter."""
    torch.manual_seed(0)
    encoder = TransformersEncoder({"model_type": family.model_type, **family.config}).eval()
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if name.endswith("attention_biases"):  # LeViT: look where one is, as it learns to
                p[:, 0] = 50
            elif p.ndim >= 2:
                p.normal_(std=p[0].numel() ** -0.5)
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:  # to the scale of these weights
            norm.train().momentum = 1.0
            norm.weight.fill_(1)
        if norms:
            encoder(torch.randn(8, 3, encoder.size, encoder.size))
    return encoder.eval()


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_family(family: Family) -> None:
    encoder = built(family)
    encoder.check_maps()
    side = encoder.size
    pixels = torch.randn(2, 3, side, side)
    both = encoder(pixels)
    grid = both.shape[1]
    assert both.shape == (2, grid, grid, encoder.channels) and both.dtype == torch.float32
    with torch.no_grad():
        for i in range(2):
            torch.testing.assert_close(encoder(pixels[i : i + 1])[0], both[i], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    both.square().sum().backward()
    learned = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert learned and all(bool(g.isfinite().all()) for g in learned)
    assert any(bool(g.any()) for g in learned)
    assert in_reading_order(encoder, 4 * side if family.any_size and grid < 4 else side)

    other = 2 * side
    if family.any_size:
        assert encoder(torch.randn(1, 3, other, other)).shape == (1, 2 * grid, 2 * grid, encoder.channels)
    else:
        with pytest.raises(ConfigError, match=rf"reads {side} pixels a side, not {other}") as refused:
            encoder(torch.randn(1, 3, other, other))
        assert "\n" not in str(refused.value)


def in_reading_order(encoder: Encoder, side: int) -> bool:
    """Whether what changes in a corner of pictures changes most in that corner of their maps."""
    half = side // 2
    plain = torch.randn(4, 3, side, side)
    with torch.no_grad():
        base = encoder(plain)
        for corner in range(4):
            down, right = divmod(corner, 2)
            pixels = plain.clone()
            changed = pixels[..., down * half :, right * half :][..., :half, :half]
            changed.copy_(3 * torch.randn_like(changed))
            change = (encoder(pixels) - base).abs().sum((0, 3))
            cells = len(change) // 2
            corners = [*_quarters(change, cells)]
            if max(range(4), key=lambda n: float(corners[n])) != corner:
                return False
    return True


def _quarters(change: Tensor, cells: int) -> Iterator[Tensor]:
    for down in (slice(cells), slice(-cells, None)):
        for right in (slice(cells), slice(-cells, None)):
            yield change[down, right].sum()


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_work_is_refused(model_type: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TransformersEncoder({"model_type": model_type})
    assert str(refused.value) == f"model.encoder.config: {model_type} {REFUSED[model_type]}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, r"bert cannot read images: "),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"model_type": "kosmos_2_vision_model"}, "kosmos_2_vision_model has no vision model of its own"),
        ({"model_type": "vit", "image_size": "x"}, "image_size"),
        ({"model_type": "convnext", "size": 1}, "convnext"),
    ],
)
def test_a_config_without_a_map_is_refused_in_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.encoder\.config: .*{message}") as refused:
        TransformersEncoder(config)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


class _Mixing(Encoder):
    """Gives an image something of the one beside it."""

    channels, size = 3, 8

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        return (pixels + pixels.mean(0)).permute(0, 2, 3, 1)


class _Flat(_Mixing):
    def frozen_stem(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 2, 3, 1).flatten(1, 2)


class _Endless(_Mixing):
    def frozen_stem(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 2, 3, 1) / 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [(_Mixing, "depends on the other images"), (_Flat, r"became \(2, 64, 3\)"), (_Endless, "not finite")],
)
def test_maps_that_are_none_are_found_when_training_starts(kind: type[Encoder], message: str) -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=rf"model\.encoder: .*{message}"):
        kind.build(EncoderConfig()).check_maps()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_page_shows_the_tables() -> None:
    section = PAGE.read_text().split("## Vision encoders")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", section, re.MULTILINE))
    sizes = {True: "any", False: "its own"}
    assert rows == {f.model_type: sizes[f.any_size] for f in FAMILIES} | REFUSED
