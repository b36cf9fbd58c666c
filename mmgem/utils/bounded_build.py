"""Building modules of a configuration that nobody vouches for: no more of them than the weights can fill."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

from mmgem.errors import CheckpointError

_SPARE_TENSORS, _SPARE_VALUES = 256, 1 << 24
"""Beside what is stored: buffers, a pooler that is left out."""

_TIMES = 8
"""How often a tensor may be registered while a model is built: as table, as head, when they are tied."""


@contextmanager
def bounded_build(sizes: Iterable[int], where: str) -> Iterator[None]:
    """Inside, this thread's modules may register some times as many tensors and numbers as are stored.

    ``sizes``: of the stored tensors, in numbers. Raises ``CheckpointError`` that begins with ``where`` as
    soon as there are more. Meant for the meta device, where a tensor takes no memory: this bounds the time,
    :func:`check_total` what the model will take.
    """
    stored = list(sizes)
    most_tensors, most_values = _TIMES * len(stored) + _SPARE_TENSORS, _TIMES * sum(stored) + _SPARE_VALUES
    thread = threading.get_ident()
    count = modules = values = 0

    def check() -> None:
        if count > most_tensors or modules > 8 * most_tensors or values > most_values:
            raise _larger(stored, where)

    def on_tensor(module: Any, name: str, tensor: Any) -> None:
        nonlocal count, values
        if tensor is not None and threading.get_ident() == thread:
            count, values = count + 1, values + tensor.numel()
            check()

    def on_module(module: Any, name: str, inner: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            check()

    handles = [
        hooks.register_module_parameter_registration_hook(on_tensor),
        hooks.register_module_buffer_registration_hook(on_tensor),
        hooks.register_module_module_registration_hook(on_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_total(model: nn.Module, sizes: Iterable[int], where: str) -> None:
    """Raise ``CheckpointError`` that begins with ``where`` if ``model``, on whatever device, has more than
    twice the numbers that are stored in tensors of these ``sizes``, and some for buffers."""
    stored = list(sizes)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if sum(tensor.numel() for tensor in tensors.values()) > 2 * sum(stored) + _SPARE_VALUES:
        raise _larger(stored, where)


def _larger(stored: list[int], where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: describes a larger model than its weights, which are {len(stored)} tensors of "
        f"{sum(stored)} numbers"
    )
