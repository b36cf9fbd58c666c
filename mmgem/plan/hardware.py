"""What a recipe may run on. Figures are those of the vendors' datasheets, without sparsity: peaks that no
program reaches. Prices are not ours to know."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mmgem.errors import UsageError


@dataclass(frozen=True)
class Hardware:
    """``count`` devices alike. ``memory``: GB (10^9 bytes) of one; ``tflops``: 10^12 operations a second on
    bfloat16, ``tflops_float32``: on float32 (a GPU's TF32), ``bandwidth``: GB/s of its memory; ``price``: $
    an hour of one, None: not known. ``device``: what PyTorch calls its kind."""

    name: str
    memory: float
    tflops: float
    tflops_float32: float
    bandwidth: float
    count: int = 1
    price: float | None = None
    device: Literal["cpu", "cuda"] = "cuda"

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a number that is not positive."""
        for field in ("memory", "tflops", "tflops_float32", "bandwidth", "count", "price"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"hardware: {field} is {value}, not a number above 0")

    def rate(self, dtype: torch.dtype) -> float:
        """Operations a second on tensors of a type."""
        return 1e12 * (self.tflops_float32 if dtype == torch.float32 else self.tflops)


KNOWN = {
    "a100": Hardware("A100 80 GB SXM", 80, 312, 156, 2039),
    "h100": Hardware("H100 SXM", 80, 989.4, 494.7, 3350),
    "h200": Hardware("H200 SXM", 141, 989.4, 494.7, 4800),
    "l4": Hardware("L4", 24, 121, 60, 300),
    "rtx4090": Hardware("RTX 4090", 24, 165.2, 82.6, 1008),
}


def known_hardware(name: str, count: int = 1, price: float | None = None) -> Hardware:
    """``count`` devices of :data:`KNOWN`. Raises ``UsageError`` listing them for any other name."""
    hardware = KNOWN.get(name.lower().replace(" ", "").replace("-", ""))
    if hardware is None:
        raise UsageError(f"no hardware {name!r} is known; there are {', '.join(KNOWN)}: or say its figures")
    return replace(hardware, count=count, price=price)
