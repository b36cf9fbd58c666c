"""Layers that let an LLM look at an image: put between its blocks by hooks, so that its own weights and names
stay as they are and every kind of LLM can have them.

What is shown is set around a pass of the LLM (:func:`showing`), apart for each thread; without it the layers
do nothing. Rows may hold several sequences, each of an image of its own: they are laid out one a row for the
attention and put back. Keys and values of an image are made once, however many sequences are shown it, and
once for all the tokens of a caption that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.models.packing import Packing, Segment

KeysValues = tuple[Tensor, Tensor]
"""``(N, heads, M, d)`` both."""


@dataclass(frozen=True)
class Shown:
    """``images``: vectors ``(N, M, W)``; ``of`` ``(S,)`` int64: which of them each sequence is shown, None:
    sequence i the i-th; ``places`` ``(S, L)`` int64: where the tokens of each lie in the flat rows, -1 behind
    its end; None: row i of the pass is sequence i. ``kept``: keys and values of the images by layer, if they
    are to serve later passes too."""

    images: Tensor
    of: Tensor | None = None
    places: Tensor | None = None
    kept: dict[nn.Module, KeysValues] | None = None


_SHOWN: ContextVar[Shown | None] = ContextVar("shown", default=None)


@contextmanager
def showing(shown: Shown | None) -> Iterator[None]:
    """Show images to the layers of a pass; None: nothing."""
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown_rows(images: Tensor, rows: Tensor | None, cache: Any) -> Shown:
    """What the rows of a pass are shown while captions are written: row i image ``rows[i]`` of ``images``
    ``(N, M, W)`` (None: the i-th). ``cache``: that of the captions' tokens; the images' keys and values are
    kept with it."""
    kept = None if cache is None else vars(cache).setdefault("shown_images", {})
    return Shown(images, rows, kept=kept)


def shown_in(packing: Packing, segments: Sequence[Segment], device: torch.device) -> Shown | None:
    """What packed ``segments`` are shown, each its ``image``; None if none has one."""
    numbers = [n for n, segment in enumerate(segments) if segment.image is not None]
    if not numbers:
        return None
    firsts: dict[int, int] = {}
    images: list[Tensor] = []
    of: list[int] = []
    for some, row in (segment.image for segment in segments if segment.image is not None):
        if id(some) not in firsts:
            firsts[id(some)] = sum(map(len, images))
            images.append(some)
        of.append(firsts[id(some)] + row)
    together = images[0] if len(images) == 1 else torch.cat(images)
    lengths = torch.tensor([_length(segments[n]) for n in numbers])
    steps = torch.arange(int(lengths.max()))
    places = packing.flat(torch.zeros_like(lengths), torch.tensor(numbers))[:, None] + steps
    places = places.masked_fill(steps >= lengths[:, None], -1)
    each = of == list(range(len(together)))
    return Shown(together, None if each else torch.tensor(of, device=device), places.to(device))


def _length(segment: Segment) -> int:
    prefix = 0 if segment.prefix is None else len(segment.prefix)
    return prefix + len(segment.ids) + segment.pool


class MultiHeadAttention(nn.Module):
    """``heads`` heads of attention from vectors ``(B, L, width)`` to others ``(B, M, context)``; ``heads`` is
    made smaller until it divides ``width``."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = max(n for n in range(1, heads + 1) if width % n == 0)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(context, width), nn.Linear(context, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """``(B, L, width)``."""
        return self.attend(queries, self.keys_values(context))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Of vectors ``(B, M, context)``."""
        return self._apart(self.key(context)), self._apart(self.value(context))

    def attend(self, queries: Tensor, keys_values: KeysValues) -> Tensor:
        """:meth:`forward`, of what :meth:`keys_values` gave."""
        attended = F.scaled_dot_product_attention(self._apart(self.query(queries)), *keys_values)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(width: int, times: int = 4) -> nn.Sequential:
    """Norm, linear to ``times`` the width, GELU, linear back."""
    hidden = times * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class CrossAttention(nn.Module):
    """Residual cross-attention and, if ``dense``, a feed-forward layer, both after a norm. ``gated``: each is
    multiplied by the tanh of a scalar that starts at 0 (Flamingo, Alayrac et al. 2022, arXiv 2204.14198)."""

    def __init__(self, width: int, context: int, heads: int, dense: bool = True, gated: bool = False):
        super().__init__()
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(context)
        self.attention = MultiHeadAttention(width, context, heads)
        self.dense = feed_forward(width) if dense else None
        self.gates = nn.Parameter(torch.zeros(2)) if gated else None

    def forward(self, states: Tensor, shown: Shown) -> Tensor:
        """States ``(S, L, width)`` of sequences that have seen what is ``shown`` to each."""
        attended: Tensor | float = 1.0
        dense: Tensor | float = 1.0
        if self.gates is not None:
            attended, dense = self.gates.tanh().unbind()
        states = states + attended * self.attention.attend(self.norm(states), self._keys_values(shown))
        return states if self.dense is None else states + dense * self.dense(states)

    def _keys_values(self, shown: Shown) -> KeysValues:
        """Of the image of each sequence."""
        found = None if shown.kept is None else shown.kept.get(self)
        if found is None:
            images = shown.images.to(self.context_norm.weight.dtype)
            found = self.attention.keys_values(self.context_norm(images))
        if shown.kept is not None:
            shown.kept[self] = found
        return found if shown.of is None else (found[0][shown.of], found[1][shown.of])


class AttentionPool(nn.Module):
    """``queries`` learned vectors that look at an image (CoCa, Yu et al. 2022, arXiv 2205.01917): ``(B, M,
    context)`` -> ``(B, queries, width)``, normed."""

    def __init__(self, queries: int, width: int, context: int, heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(context)
        self.attention = MultiHeadAttention(width, context, heads)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Pool ``images``."""
        queries = self.norm(self.queries).expand(len(images), -1, -1)
        return self.out_norm(self.attention(queries, self.context_norm(images)))


class ImageLayers(nn.ModuleDict):
    """Layers beside the blocks of an LLM, by the numbers ``at`` of the blocks, that run while something is
    shown: behind each, or ``before`` it."""

    def __init__(self, at: Sequence[int], make: Callable[[], nn.Module]):
        super().__init__({str(number): make() for number in at})

    def attach(self, blocks: nn.ModuleList, before: bool = False) -> None:
        """Put the layers between ``blocks``; they may lie between those of several LLMs."""
        for name, layer in self.items():
            block = blocks[int(name)]
            if before:
                block.register_forward_pre_hook(_Before(layer), with_kwargs=True)
            else:
                block.register_forward_hook(_After(layer))


class _After:
    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        return with_states(output, lambda states: _seen(self.layer, states))


class _Before:
    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (_seen(self.layer, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": _seen(self.layer, kwargs["hidden_states"])}


def with_states(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a block of transformers gave, its hidden states changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _seen(layer: nn.Module, states: Tensor) -> Tensor:
    shown = _SHOWN.get()
    if shown is None:
        return states
    dtype = next(layer.parameters()).dtype
    if shown.places is None:
        return layer(states.to(dtype), shown).to(states.dtype)
    flat = states.flatten(0, 1)
    valid = shown.places >= 0
    new = layer(flat[shown.places.clamp(min=0)].to(dtype), shown)
    return flat.index_copy(0, shown.places[valid], new[valid].to(flat.dtype)).view_as(states)
