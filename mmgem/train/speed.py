"""Where a run's time goes: the share that steps wait for data, and the arithmetic they do a second beside
what a large matrix product reaches on the same device.

Operations are counted in the first step, by hooks that change nothing (PyTorch's own counter takes other
kernels, and a resumed run would no longer be bitwise the same): 2 m n k of every linear map and convolution,
as much again for each of the two products of its backward pass that is needed. Attention's own products, a
few percent at these lengths, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmgem.ranks import Ranks


class Speed:
    """Where a step's time goes, over the steps since :meth:`facts` was last asked."""

    def __init__(self, ranks: Ranks, precision: str):
        self.ranks, self.precision = ranks, precision
        self.flops = 0
        self.peak = 0.0
        self.seconds = self.waiting = 0.0
        self.steps = 0

    @contextmanager
    def measured(self, network: nn.Module | None) -> Iterator[None]:
        """Around a step: timed, or counted if given the ``network`` that takes it."""
        started = time.monotonic()
        if network is None:
            yield
            self.seconds += time.monotonic() - started
            self.steps += 1
            return
        hooks = [m.register_forward_hook(self._count) for m in network.modules() if _multiplies(m)]
        yield
        for hook in hooks:
            hook.remove()
        self.waiting = 0.0
        self.peak = _matrix_product_rate(self.ranks.device, self.precision)

    def waited(self, seconds: float) -> None:
        """Count time in which a step waited for its batch."""
        self.waiting += seconds

    def facts(self) -> dict[str, float]:
        """``data_wait``: share of the time; ``tflops``: 10^12 operations a second of a rank; ``utilisation``:
        their share of what a matrix product reaches."""
        if not self.steps:
            return {}
        rate = self.flops * self.steps / self.seconds
        told = {
            "data_wait": self.waiting / self.seconds,
            "tflops": rate / 1e12,
            "utilisation": rate / self.peak,
        }
        self.seconds = self.waiting = 0.0
        self.steps = 0
        return {name: round(value, 4) for name, value in told.items()}

    def _count(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = module.weight
        back = (inputs[0].requires_grad + weight.requires_grad) if torch.is_grad_enabled() else 0
        rows = output.numel() // weight.shape[0 if not _transposed(module) else 1]
        self.flops += 2 * rows * weight.numel() * (1 + back)


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear map, (in, out)


def _matrix_product_rate(device: torch.device, precision: str) -> float:
    """Operations a second of the best of a few products of two square matrices."""
    side = 4096 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    best = float("inf")
    for _ in range(3):
        started = time.monotonic()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - started)
    return 2 * side**3 / best
