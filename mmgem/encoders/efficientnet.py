"""EfficientNet-Lite, the default vision encoder: Lite0 has 3.4M parameters, 224 px -> a (1280, 7, 7) map.

Written from the papers (Tan & Le 2019, arXiv 1905.11946; the Lite variant drops squeeze-and-excite
and uses ReLU6). Batch norm is folded into the convolutions when base weights are converted
(:func:`fold_batch_norm`): the encoder has plain convolutions with a bias, which is the same function in
inference, faster, and the form that fine-tunes well on small batches (frozen statistics).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.encoders.base import BaseWeights, Encoder
from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.model_files import read_json_object
from mmgem.utils.safetensors_files import load_safetensors

# (expansion, kernel, stride, out channels, repeats). Larger ones have wider stages and more blocks in each
# but the first and the last; the stem and the 1280 channels at the end are those of Lite0.
LITE0_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def scaled_stages(width: float, depth: float) -> tuple[tuple[int, int, int, int, int], ...]:
    """:data:`LITE0_STAGES` with ``width`` times the channels (to the nearest multiple of 8, at most a tenth
    less) and ``depth`` times the blocks (rounded up)."""
    last = len(LITE0_STAGES) - 1
    stages = []
    for n, (expansion, kernel, stride, cout, repeats) in enumerate(LITE0_STAGES):
        channels = max(8, int(cout * width + 4) // 8 * 8)
        channels += 8 if channels < 0.9 * cout * width else 0
        stages.append(
            (expansion, kernel, stride, channels, repeats if n in (0, last) else math.ceil(depth * repeats))
        )
    return tuple(stages)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow "SAME" padding: the odd pixel goes right and below."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(cin, cout, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C', ceil(H / stride), ceil(W / stride))``."""
        return super().forward(self._padded(x))

    def relu6(self, x: Tensor) -> Tensor:
        """:meth:`forward` and ReLU6: in one pass of oneDNN where nothing is learned or exported, which gives
        the same numbers, in half the time in bfloat16."""
        if self._fusible(x):
            weight, padding, kernel = self.weight, self.padding, self.kernel_size[0]
            if self.stride[0] == 2 and kernel > 1 and x.shape[-2] % 2 == x.shape[-1] % 2 == 0:
                # What lies right and below is a padding on all sides for a kernel with zeros left and above;
                # that saves a padded copy of x.
                weight, padding = F.pad(weight, (1, 0, 1, 0)), (kernel // 2, kernel // 2)
            else:
                x = self._padded(x)
            settings = (padding, self.stride, self.dilation, self.groups, "hardtanh", [0.0, 6.0], "")
            return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *settings)
        return F.relu6(self(x), inplace=True)  # new memory would cost more than this

    def _fusible(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if x.device.type != "cpu" or x.dtype != self.weight.dtype or not torch.backends.mkldnn.is_available():
            return False
        return x.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def _padded(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return x
        kernel, stride = self.kernel_size[0], self.stride[0]
        pad_h, pad_w = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        return F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))


class InvertedBottleneck(nn.Module):
    """Expand (1x1) -> depthwise -> project (1x1), with a skip where the shapes allow."""

    def __init__(self, cin: int, cout: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        mid = cin * expansion
        self.expand = SameConv(cin, mid, 1) if expansion != 1 else None
        self.depthwise = SameConv(mid, mid, kernel, stride, groups=mid)
        self.project = SameConv(mid, cout, 1)
        self.skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C', H / stride, W / stride)``."""
        y = self.expand.relu6(x) if self.expand is not None else x
        y = self.project(self.depthwise.relu6(y))
        return x + y if self.skip else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite feature extractor.

    ``forward``: pixels ``(B, 3, H, W)`` float32, already ``(x - 127) / 128`` -> map
    ``(B, C, ceil(H/32), ceil(W/32))`` float32, C = ``head``.
    """

    def __init__(self, stem: int = 32, stages: tuple = LITE0_STAGES, head: int = 1280):
        super().__init__()
        self.stem = SameConv(3, stem, 3, stride=2)
        blocks, cin = [], stem
        for expansion, kernel, stride, cout, repeats in stages:
            for i in range(repeats):
                blocks.append(InvertedBottleneck(cin, cout, expansion, kernel, stride if i == 0 else 1))
                cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(cin, head, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels to the map, see the class."""
        x = self.stem.relu6(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return self.head.relu6(x)


def fold_batch_norm(weights: dict[str, Tensor], eps: float = 1e-3) -> dict[str, Tensor]:
    """Convert a published ``efficientnet-lite`` state dict (conv + batch norm pairs) to ours.

    ``w' = w * g / sqrt(var + eps)``, ``b' = beta - mean * g / sqrt(var + eps)``. The classifier
    (``_fc``) is dropped. Raises ``KeyError`` if a convolution has no batch norm beside it.
    """
    pairs = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
    per_block = {"_expand_conv": ("_bn0", "expand"), "_depthwise_conv": ("_bn1", "depthwise")}
    per_block["_project_conv"] = ("_bn2", "project")
    out = {}
    for name, w in weights.items():
        if w.ndim != 4:
            continue
        *prefix, conv, _ = name.split(".")
        norm, ours = (per_block if prefix else pairs)[conv]
        bn = ".".join([*prefix, norm])
        scale = weights[f"{bn}.weight"] / torch.sqrt(weights[f"{bn}.running_var"] + eps)
        target = ".".join([*(["blocks", prefix[1]] if prefix else []), ours])
        out[f"{target}.weight"] = w * scale[:, None, None, None]
        out[f"{target}.bias"] = weights[f"{bn}.bias"] - weights[f"{bn}.running_mean"] * scale
    return out


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0. ``freeze_until``: how many of its 16 blocks belong to ``frozen_stem`` (None: the
    whole net)."""

    can_freeze_stages = True
    pulled_weights = ("efficientnet_lite0",)
    stages: ClassVar[tuple] = LITE0_STAGES

    def __init__(self, freeze_until: int | None = None, size: int = 224, stem: int = 32, head: int = 1280):
        super().__init__()
        self.net = EfficientNetLite(stem, self.stages, head)
        if freeze_until is not None and not 0 <= freeze_until <= len(self.net.blocks):
            raise ConfigError(
                f"model.encoder.freeze_until: {freeze_until} is not between 0 and {len(self.net.blocks)}"
            )
        self.freeze_until, self.size, self.channels = freeze_until, size, head

    @classmethod
    def load_base(cls, source: str, config: EncoderConfig) -> BaseWeights:
        """Weights of a folder that ``mmgem pull`` made. Raises ``ConfigError`` for another, and
        ``CheckpointError`` for damaged weights and for those of another shape."""
        folder = Path(source)
        facts = read_json_object(folder / "config.json") if (folder / "config.json").exists() else {}
        if (kind := facts.get("kind")) not in cls.pulled_weights:
            wanted = " or ".join(cls.pulled_weights)
            raise ConfigError(f"init.encoder: {folder} does not hold weights of {wanted}, but of {kind}")
        encoder = cls.build(config)
        weights = load_safetensors(folder / "model.safetensors")
        try:
            encoder.net.load_state_dict(weights)
        except RuntimeError as error:
            wrong = [line.strip() for line in str(error).splitlines()[1:2]]
            raise CheckpointError(f"{folder}: tensors do not fit the model: {' '.join(wrong)}") from error
        return BaseWeights(encoder.state_dict(), config)

    @classmethod
    def load_classifier(cls, source: str) -> tuple[Tensor, Tensor, list[str] | None]:
        """Of ``classifier.safetensors`` in a folder that ``mmgem pull`` made: ``weight`` and ``bias``."""
        path = Path(source) / "classifier.safetensors"
        if not path.exists():
            raise ConfigError(f"{path}: No such file; there is no classifier of these weights")
        head = load_safetensors(path)
        if missing := sorted({"weight", "bias"} - head.keys()):
            raise CheckpointError(f"{path}: {missing[0]} is missing")
        return head["weight"], head["bias"], None

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """Stem and the first ``freeze_until`` blocks."""
        x = self.net.stem.relu6(pixels.contiguous(memory_format=torch.channels_last))
        for block in self.net.blocks[: self.freeze_until]:
            x = block(x)
        if self.freeze_until is None:
            x = self.net.head.relu6(x)
        return x.permute(0, 2, 3, 1)

    def trainable_head(self, features: Tensor) -> Tensor:
        """The remaining blocks and the 1280-channel head."""
        if self.freeze_until is None:
            return features
        x = features.permute(0, 3, 1, 2)
        for block in self.net.blocks[self.freeze_until :]:
            x = block(x)
        return self.net.head.relu6(x).permute(0, 2, 3, 1)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters of the stem and the first ``freeze_until`` blocks."""
        if self.freeze_until is None:
            return list(self.parameters())
        return [*self.net.stem.parameters(), *self.net.blocks[: self.freeze_until].parameters()]


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1: 21 blocks; its weights were trained at 240 pixels."""

    pulled_weights = ("efficientnet_lite1",)
    stages = scaled_stages(1.0, 1.1)

    def __init__(self, freeze_until: int | None = None, size: int = 240, stem: int = 32, head: int = 1280):
        super().__init__(freeze_until, size, stem, head)


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2: 21 blocks, a tenth wider; its weights were trained at 260 pixels."""

    pulled_weights = ("efficientnet_lite2",)
    stages = scaled_stages(1.1, 1.2)

    def __init__(self, freeze_until: int | None = None, size: int = 260, stem: int = 32, head: int = 1280):
        super().__init__(freeze_until, size, stem, head)
