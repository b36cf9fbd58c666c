"""What a step holds, moves and multiplies, followed operator by operator.

The step runs on PyTorch's fake tensors, which have shapes, types and storages of a size but no data. Numbers
that the code itself looks at (which token lies where) are real, and computed; one that depends on fake data
reads as 1. So the plan takes the very path that training takes, whatever the model is.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmgem.utils.flops import flops, multiplied

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class MemoryTracker(TorchDispatchMode):
    """Follows what runs inside it.

    ``peak``: bytes of each kind at the moment when all of them were most; a kind is what :meth:`kind` said
    when the memory was taken, ``logits`` where rows are as wide as one of ``words``. ``work``: how often an
    operator of (type multiplied, operations, bytes read and written) ran, times ``weight``.
    """

    def __init__(self, words: set[int]) -> None:
        super().__init__()
        self.words = words
        self.weight = 1.0
        self.held: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.work: Counter[tuple[torch.dtype, int, int]] = Counter()
        self._kind = "other"
        self._known: dict[int, tuple[str, int]] = {}

    @contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """What is taken inside is of this kind."""
        before, self._kind = self._kind, name
        yield
        self._kind = before

    def label(self, owner: Any, method: str, name: str, result: str | None = None) -> None:
        """Let what a method takes be of kind ``name``, and the tensor it returns of kind ``result``."""
        original: Callable[..., Any] = getattr(owner, method)

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.kind(name):
                output = original(*args, **kwargs)
            if result is not None:
                self.hold(output, result)
            return output

        setattr(owner, method, labelled)

    def hold(self, tensor: Tensor, kind: str) -> None:
        """Count the memory of ``tensor``, or what it is counted as, as ``kind`` from now on."""
        self._track(tensor, kind)
        key = tensor.untyped_storage()._cdata
        before, size = self._known[key]
        self.held[before] -= size
        self.held[kind] += size
        self._known[key] = kind, size

    def forget(self, tensor: Tensor) -> None:
        """Count the memory of ``tensor`` no longer."""
        key = tensor.untyped_storage()._cdata
        kind, size = self._known[key]
        self.held[kind] -= size
        self._known[key] = kind, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE:  # asked as often as anything is computed
            return func(*args)
        inputs = _tensors((*args, *kwargs.values()))
        fake = next((x.fake_mode for x in inputs if isinstance(x, FakeTensor)), None)
        if fake and func is _aten._local_scalar_dense.default:
            return 1.0
        if fake and func in _INDEXING:
            args = (args[0], _numbered(args[1]), *args[2:])
        # What func itself comes to, without the dispatcher in between.
        result = fake.__torch_dispatch__(func, types, args, kwargs) if fake else func(*args, **kwargs)
        outputs = _tensors((result,))
        if fake:
            self._count(func, args, kwargs, inputs, outputs, result)
        for tensor in outputs:
            logits = bool(tensor.shape) and tensor.shape[-1] in self.words
            self._track(tensor, "logits" if logits else self._kind)
        return result

    def _count(
        self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], result: Any
    ) -> None:
        count = flops(func, args, kwargs, result)
        if not func._schema.is_mutable:
            input_storages = {x.untyped_storage()._cdata for x in inputs}
            if all(x.untyped_storage()._cdata in input_storages for x in outputs):
                return  # a view
        bytes_moved = sum(
            min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in inputs + outputs
        )
        self.work[multiplied(args) if count else torch.float32, count, bytes_moved] += self.weight  # type: ignore[assignment]

    def _track(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = kind, size
        self.held[kind] += size
        if self.held.total() > self.peak.total():
            self.peak = Counter(self.held)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self.held[kind] -= size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among ``values``, and in lists of them: operators know nothing deeper."""
    lists = (value if isinstance(value, list | tuple) else (value,) for value in values)
    return [x for values in lists for x in values if isinstance(x, Tensor)]


def _numbered(indices: Any) -> list[Any]:
    """Masks that are known as the places they choose."""
    numbered: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        numbered += index.nonzero().unbind(1) if mask else [index]
    return numbered
