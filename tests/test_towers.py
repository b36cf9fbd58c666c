"""The default encoder's fast path against its plain one."""

from __future__ import annotations

import pytest
import torch
import toys

from mmgem.encoders.efficientnet import SameConv


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 8), (5, 2, 8), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height", [14, 15])
def test_relu6_with_the_convolution_is_relu6_after_it(
    kernel: int, stride: int, groups: int, dtype: torch.dtype, height: int
) -> None:
    torch.manual_seed(0)
    conv = SameConv(8, 8, kernel, stride, groups).to(dtype)
    x = (8 * torch.randn(2, 8, height, 16)).to(dtype).contiguous(memory_format=torch.channels_last)
    plain = conv.relu6(x)
    with torch.inference_mode():
        fused = conv.relu6(x)
    assert plain.requires_grad and plain.shape == fused.shape == (
        2,
        8,
        -(-height // stride),
        -(-16 // stride),
    )
    torch.testing.assert_close(plain.detach(), fused.clone())


def test_a_encoder_that_learns_and_one_that_does_not_see_the_same() -> None:
    encoder = toys.network(encoder="efficientnet_lite0").encoder
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        seen = encoder(pixels)
    assert encoder(pixels).detach().numpy() == pytest.approx(seen.numpy(), abs=1e-5)
