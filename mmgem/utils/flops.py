"""Operations of a step, counted as PyTorch dispatches it: where a run's arithmetic goes, and what a plan
predicts, by the same formulas.

A product of an m x k and a k x n matrix is 2 m n k operations, a convolution 2 for each weight that an output
sees; attention is its two products, five in the backward pass (which takes the first one again). What is
added, scaled or normalised is not counted. Formulas are PyTorch's (``torch.utils.flop_counter``) but for two:
it knows no attention on a CPU, and takes a grouped convolution's gradient of its weights for a full one's.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts the operations of what runs inside it, backward passes too; changes nothing of what is computed
    (PyTorch's own counter decomposes operators, so that results differ in the last bits)."""

    def __init__(self) -> None:
        super().__init__()
        self.by_type: Counter[torch.dtype] = Counter()
        """Operations by the type of what is multiplied."""

    @property
    def total(self) -> int:
        """All operations so far."""
        return sum(self.by_type.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flops(func, args, kwargs or {}, out)
        if count:
            self.by_type[multiplied(args)] += count
        return out


def flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> int:
    """Operations of one call of the operator ``func`` with the result ``out``; 0 for those that multiply no
    matrices."""
    name = func.overloadpacket.__name__
    if name == "convolution_backward":
        return _convolution_backward(args[0], args[1], args[2], args[10])
    if name.startswith("_scaled_dot_product"):
        backward = name.endswith("_backward")
        query, keys, values = args[backward : backward + 3]
        return _attention(query, keys, values, (3, 2) if backward else (1, 1))
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


def multiplied(args: Any) -> torch.dtype:
    """The type of the tensors an operator with these arguments multiplies."""
    return next(x.dtype for x in args if isinstance(x, Tensor))


def _attention(query: Tensor, keys: Tensor, values: Tensor, products: tuple[int, int]) -> int:
    """``products``: how many there are with a side of the keys' width, and of the values'; every pair of
    positions counts, whatever the mask."""
    pairs = 2 * prod(query.shape[:-1]) * keys.shape[-2]
    return pairs * (products[0] * query.shape[-1] + products[1] * values.shape[-1])


def _convolution_backward(gradient: Tensor, _inputs: Tensor, weight: Tensor, wanted: list[bool]) -> int:
    """As many as the forward pass for each of the two gradients that is ``wanted``."""
    return 2 * gradient.numel() * prod(weight.shape[1:]) * sum(wanted[:2])
